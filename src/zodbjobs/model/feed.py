"""Feeds: items with ids, in an order, whose changes are told by numbered notices.

A publish writes the new item, one leaf of the index of ids, one chunk of the
order and one of the log, each of which merges with what others write to it at
the same time.  So publishers conflict when they publish the same id, and hardly
ever else.  What is read often and written rarely (`FeedSettings`) lies apart.

Of a feed that holds `max_length` items at most the newest are what there is.
The older ones leave with a retract notice in the transaction of a publisher;
two that publish at the same moment leave them to each other's next one.

Everything here runs in the caller's transaction.
"""

import json
import uuid

from persistent import Persistent
from zope.event import notify
from zope.interface import implementer

from zodbjobs import clock
from zodbjobs.facts import Notice
from zodbjobs.interfaces import (
    ArrivalAwaited,
    Empty,
    FeedChanged,
    FeedDeleted,
    IAnyFeed,
    IFeed,
    IToldFeed,
)
from zodbjobs.model.call import check_storable, stored_form
from zodbjobs.model.intake import lane_number
from zodbjobs.model.job import Job
from zodbjobs.model.lanes import Lanes, lane_of
from zodbjobs.model.log import KEEP_COUNT, Item, Log
from zodbjobs.model.merging import MergingTree
from zodbjobs.model.moments import moment
from zodbjobs.model.queue import Queue
from zodbjobs.model.reservations import reserve

#: Feeds with more items than this are not the ones to bound by counting them at each publish.
LONGEST = 100_000


class FeedSettings(Persistent):
    """What is set rarely and read by every publisher."""

    deleted = False

    def __init__(self):
        self.config = {}
        self.subscriptions = ()  # of (queue, stored call, kinds or None, options of put)


@implementer(IAnyFeed)
class FeedRecord(Persistent):
    """What all that stands in a Feeds mapping has in common: a name and settings.

    This record itself is written once.
    """

    #: The word for this kind in a configuration.
    kind = ''

    @property
    def config_checks(self):
        """{name in the configuration of this kind: what checks the value}."""
        return CONFIGS[self.kind]

    def __init__(self, feeds, name):
        self.feeds = feeds
        self.name = name
        self.settings = FeedSettings()

    # configuration

    @property
    def config(self):
        """The configuration, a new dict with the `type` and what was set."""
        return {'type': self.kind, **self.settings.config}

    def configure(self, config):
        """Set what `config`, a mapping, names; None takes a setting back.

        Raises TypeError for another kind than this one's, ValueError for what is
        no setting of this kind or has a wrong value.
        """
        self._live()
        new = dict(self.settings.config)
        for name, value in checked_config(config, self.kind, self.config_checks).items():
            new[name] = value
            if value is None:
                del new[name]
        if new != self.settings.config:
            self.settings.config = new

    def _setting(self, name, default=None):
        return self.settings.config.get(name, default)

    # life

    def _live(self):
        """The connection; raises FeedDeleted if there is no such feed any more."""
        if self.settings.deleted:
            raise FeedDeleted(
                f'the feed {self.name!r} was deleted; to begin a new one of that name ask'
                f' feeds.{self.kind}({self.name!r})'
            )
        return self._p_jar

    def deleted(self):
        """The feed was taken out of the mapping; returns what was left in its log.

        Everything that somebody could still add to is closed, so a change under
        way elsewhere conflicts and does not vanish.
        """
        self.settings.deleted = True
        return 0, ()

    # waiting

    def _wait_for(self, look, timeout):
        """What `look()` finds, a tuple; () means nothing.  Wait for it `timeout` seconds.

        None is for ever.  Who waits sees what others commit meanwhile.  Raises Empty.
        """
        awaited = ArrivalAwaited(self, check_timeout(timeout))
        try:
            while True:
                self._live()
                found = look()
                if found:
                    return found
                awaited.again, awaited.sooner = False, self._next_change()
                if awaited.seconds is None or awaited.seconds > 0:
                    notify(awaited)
                if not awaited.again:
                    raise Empty(f'nothing came to {self!r} within {timeout} seconds')
        finally:
            awaited.close()

    def _next_change(self):
        """Seconds until something comes by itself, or None."""
        return None

    def oids(self):
        """The 8-byte oids that change when something comes (for watching)."""
        return {self.settings._p_oid}

    def __bool__(self):
        return True

    def __repr__(self):
        return f'<{type(self).__name__} {self.name!r}>'


@implementer(IToldFeed)
class ToldFeed(FeedRecord):
    """A feed whose changes are told: it has a log, and subscriptions."""

    def __init__(self, feeds, name):
        super().__init__(feeds, name)
        self.log = Log()

    # notices

    def notices(self, since=None):
        """See IFeed.notices."""
        self._live()
        return [self._notice(*entry) for entry in self.log.read(since)]

    @property
    def last_number(self):
        """See IFeed.last_number."""
        return self.log.last_number()

    def _notice(self, number, kind, item, extra):
        value = item.value if extra is None else extra
        return Notice(number, kind, self.name, item.id, value)

    def subscribe(self, queue, call, kinds=None, **options):
        """See IFeed.subscribe."""
        self._live()
        if not isinstance(queue, Queue):
            raise TypeError(f'a subscription needs a queue to put jobs in, not {queue!r}')
        stored = stored_form(call)
        check_storable((stored, options), self._p_jar, 'the subscription')
        kinds = None if kinds is None else checked_kinds(kinds)
        self.unsubscribe(queue, call)
        self.settings.subscriptions += ((queue, stored, kinds, options),)

    def unsubscribe(self, queue, call):
        """See IFeed.unsubscribe."""
        stored = stored_form(call)
        kept = tuple(
            each
            for each in self.settings.subscriptions
            if each[0] is not queue or each[1] != stored
        )
        found = len(self.settings.subscriptions) - len(kept)
        if found:
            self.settings.subscriptions = kept
        return bool(found)

    def _tell(self, kind, item, extra=None):
        """Note what happened to `item`, and put a job for every subscription to it."""
        self.log.add(self._p_jar, kind, item, extra, self._setting('notices', KEEP_COUNT))
        for queue, stored, kinds, options in self.settings.subscriptions:
            if kinds is None or kind in kinds:
                job = Job(_subscriber)
                # Not looked up here: only the workers need to have that code.
                job._call = stored
                value = item.value if extra is None else extra
                job.args.extend((kind, self.name, item.id, value))
                queue.put(job, **options)
        notify(FeedChanged(self, kind, item.id))

    def oids(self):
        return super().oids() | self.log.lanes.oids()

    def deleted(self):
        super().deleted()
        return self.log.close()


@implementer(IFeed)
class Feed(ToldFeed):
    """See IFeed."""

    kind = 'feed'

    def __init__(self, feeds, name):
        super().__init__(feeds, name)
        self.index = MergingTree()  # {id: (moment, place in lanes, Item)}
        self.lanes = Lanes()  # {moment: id}

    # change

    def publish(self, item, id=None):
        jar = self._live()
        id = uuid.uuid4().hex if id is None else checked_id(id)
        check_storable(item, jar, 'the item')
        known = self.index.get(id)
        if known is not None and id in self._hidden():
            self._evict(id)
            known = None
        key = moment()
        record = Item(id, item)
        place, _ = self.lanes.add(jar, key, id)
        if known is not None:
            self.lanes.remove(known[1], known[0])
        self.index[id] = (key, place, record)
        self._tell('publish' if known is None else 'edit', record)
        if known is None:
            self._trim()
        return id

    def edit(self, id, item):
        self._known(id)
        return self.publish(item, id)

    def retract(self, id):
        self._known(id)
        self._evict(id)

    def configure(self, config):
        super().configure(config)
        self._trim(everybody=True)

    def _known(self, id):
        self._live()
        if id not in self:
            raise LookupError(f'feed {self.name!r} has no item {id!r}')

    def _evict(self, id):
        key, place, _ = self.index.pop(id)
        self.lanes.remove(place, key)
        self._tell('retract', Item(id))

    # max_length

    def _excess(self):
        """How many items there are beyond max_length."""
        longest = self._setting('max_length')
        return 0 if longest is None else max(0, len(self.lanes) - longest)

    def _oldest(self, count):
        """[(key, place, id)] of the oldest items."""
        return self.lanes.in_order()[:count] if count else []

    def _hidden(self):
        """The ids of items that are beyond max_length and were not retracted yet."""
        return {id for _, _, id in self._oldest(self._excess())}

    def _trim(self, everybody=False):
        """Retract what is beyond max_length.

        Two transactions that retract the same item would conflict.  In this process
        they know of each other.  For the sake of other processes the items of a
        lane in which somebody was busy a moment ago are left to him, unless
        `everybody` is to be seen to.
        """
        now, jar = clock.micros(), self._p_jar
        mine, transaction = lane_number(jar), jar.transaction_manager.get()
        for key, place, id in self._oldest(self._excess()):
            lane = lane_of(place)
            if (everybody or lane == mine or not self.lanes.is_busy(lane, now)) and reserve(
                transaction, jar.db(), self._p_oid, place, key
            ):
                self._evict(id)

    # look

    def get_ids(self):
        return [id for _, _, id in self.lanes.in_order()[self._excess() :]]

    def get_item(self, id):
        found = self.index.get(id) if isinstance(id, str) else None
        if found is None or id in self._hidden():
            return None
        return found[2].value

    def get_all(self):
        hidden = self._hidden()
        found = {id: (key, item) for id, (key, _, item) in self.index.items() if id not in hidden}
        return {id: item.value for id, (_, item) in sorted(found.items(), key=_moment_of)}

    def __contains__(self, id):
        return isinstance(id, str) and id in self.index and id not in self._hidden()

    def __iter__(self):
        return iter(self.get_ids())

    def __len__(self):
        return len(self.lanes) - self._excess()


def _moment_of(entry):
    return entry[1][0]


def _subscriber(*args):
    """Stands in a subscription's job until it is given its own call."""


# What may stand in a configuration

#: What can happen to a feed or an item.
KINDS = ('publish', 'edit', 'retract', 'position', 'create', 'delete', 'finish')


def checked_config(config, kind, checks):
    """`config`, a mapping or the JSON text of one, as a dict without its `type`."""
    config = config_dict(config)
    wanted = config.pop('type', kind)
    if wanted != kind:
        raise TypeError(f'this is a {kind!r} and cannot become a {wanted!r}: use another name')
    for name, value in config.items():
        if name not in checks:
            raise ValueError(
                f'a feed of type {kind!r} has no setting {name!r};'
                f' there are type, {", ".join(sorted(checks))}'
            )
        if value is not None:
            checks[name](name, value)
    return config


def config_dict(config):
    """A new dict of a configuration: a mapping, the JSON text of one, or None."""
    return dict((json.loads(config) if isinstance(config, (str, bytes)) else config) or {})


def check_count(name, value):
    """Raise ValueError unless `value` is a whole number of things to keep."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST:
        raise ValueError(f'{name} is a whole number from 1 to {LONGEST}, not {value!r}')


def check_text(name, value):
    if not isinstance(value, str):
        raise ValueError(f'{name} is a text, not {value!r}')


def check_seconds(name, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ValueError(f'{name} is a number of seconds, not {value!r}')


_TOLD = {'title': check_text, 'notices': check_count}

#: kind -> {setting: what checks its value}
CONFIGS = {
    'feed': {**_TOLD, 'max_length': check_count},
    'sorted_feed': _TOLD,
    'queue': {'title': check_text},
    'job': {**_TOLD, 'lease': check_seconds},
}


def check_timeout(timeout):
    """`timeout` if it is None or seconds from 0 on."""
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0
    ):
        raise ValueError(
            f'timeout is seconds to wait (0: not at all), or None for ever, not {timeout!r}'
        )
    return timeout


def checked_id(id):
    """`id` if it can be one."""
    if not isinstance(id, str) or not id:
        raise TypeError(f'the id of an item is a text that is not empty, not {id!r}')
    return id


def checked_kinds(kinds):
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f'{kind!r} is nothing that happens to a feed; there are {KINDS}')
    return kinds
