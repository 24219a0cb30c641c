"""The mapping of feeds, and what happened in it.

It has a log of its own for feeds that are made and deleted; all logs together
make one sequence, as their numbers are those of the database's commits.  What was
left in the log of a deleted feed goes with its delete notice, so that nobody
misses what happened just before.

Everything runs in the caller's transaction; handlers are called by the runtime.
"""

import heapq

from persistent import Persistent
from zope.event import notify
from zope.interface import implementer

from zodbjobs.facts import Notice
from zodbjobs.interfaces import (
    FeedChanged,
    HandlerRegistered,
    HandlerRemoved,
    IFeeds,
    NoticesGone,
)
from zodbjobs.model.feed import CONFIGS, KINDS, Feed, ToldFeed, checked_config, config_dict
from zodbjobs.model.jobfeed import JobFeed
from zodbjobs.model.log import Item, Log, numbered
from zodbjobs.model.merging import MergingTree
from zodbjobs.model.messagequeue import MessageQueue
from zodbjobs.model.sortedfeed import SortedFeed

#: kind -> its class
CLASSES = {each.kind: each for each in (Feed, SortedFeed, MessageQueue, JobFeed)}

#: The end of a handler's kind.
SUFFIX = '_notice'


@implementer(IFeeds)
class Feeds(Persistent):
    """See IFeeds."""

    def __init__(self):
        self.by_name = MergingTree()  # {name: feed}
        self.log = Log()

    # get or create

    def feed(self, name, config=None):
        return self._get_or_create('feed', name, config)

    def sorted_feed(self, name, config=None):
        return self._get_or_create('sorted_feed', name, config)

    def queue(self, name, config=None):
        return self._get_or_create('queue', name, config)

    def job(self, name, config=None):
        return self._get_or_create('job', name, config)

    def create_feed(self, name, config=None):
        kind = _kind_in(config)
        if name in self:
            raise ValueError(
                f'there is a feed {name!r} already, {self[name]!r}: use feeds[name], or set_config'
            )
        return self._get_or_create(kind, name, config)

    def _get_or_create(self, kind, name, config):
        if name in self:
            feed = self[name]
            if feed.kind != kind:
                raise TypeError(
                    f'{name!r} is a {feed.kind!r}, not a {kind!r}:'
                    f' use feeds.{feed.kind}({name!r}), or another name'
                )
        else:
            feed = self._create(kind, name, config)
        if config is not None:
            feed.configure(config)
        return feed

    def _create(self, kind, name, config):
        if not isinstance(name, str) or not name:
            raise TypeError(f'the name of a feed is a text that is not empty, not {name!r}')
        checked_config(config, kind, CONFIGS[kind])
        jar = self._jar()
        feed = CLASSES[kind](self, name)
        jar.add(feed)
        self.by_name[name] = feed
        self._tell('create', Item(name))
        return feed

    def _jar(self):
        if self._p_jar is None:
            raise ValueError(
                'these feeds are in no database yet, so what is published could be lost: first'
                ' root[name] = feeds, and commit'
            )
        return self._p_jar

    def delete_feed(self, name):
        feed = self[name]
        left = feed.deleted()
        del self.by_name[name]
        self._tell('delete', Item(name, left))

    def set_config(self, name, config):
        self[name].configure(config)

    def get_config(self, name):
        return self[name].config

    # look

    def feed_exists(self, name):
        return name in self

    def get_feed_names(self):
        return list(self.by_name)

    def __getitem__(self, name):
        feed = self.by_name.get(name) if isinstance(name, str) else None
        if feed is None:
            raise KeyError(f'there is no feed {name!r}; there are {self.get_feed_names()[:20]}')
        return feed

    def get(self, name, default=None):
        feed = self.by_name.get(name) if isinstance(name, str) else None
        return default if feed is None else feed

    def __contains__(self, name):
        return self.get(name) is not None

    def __iter__(self):
        return iter(self.get_feed_names())

    def __len__(self):
        return len(self.by_name)

    def __bool__(self):
        return True

    # notices

    def notices(self, since=None):
        """See IFeeds.notices."""
        found = [self._own_notices(since)]
        found += [feed.notices(since) for feed in self._told()]
        return list(heapq.merge(*found))

    def _own_notices(self, since):
        found = []
        for number, kind, item, _ in self.log.read(since):
            found.append(Notice(number, kind, item.id, None, None))
            if kind == 'delete':
                found += _left_notices(item, since)
        return sorted(found)

    def _told(self):
        return [feed for feed in self.by_name.values() if isinstance(feed, ToldFeed)]

    def follow(self, since, feed=None):
        """What happened after `since`, in all feeds or that of the name `feed`; by number.

        Where some of it is not kept any more there is a notice of the kind 'lost'.
        """
        found = []
        for read in self._reads(feed):
            try:
                found += read(since)
            except NoticesGone as error:
                name = getattr(read.__self__, 'name', feed)
                found.append(Notice(error.number, 'lost', name))
                found += read(error.number)
        if feed is not None:
            found = [notice for notice in found if notice.feed == feed]
        return sorted(found, key=lambda notice: notice.number)

    def _reads(self, feed):
        told = self._told() if feed is None else [self.get(feed)]
        return [self._own_notices, *(each.notices for each in told if isinstance(each, ToldFeed))]

    def oids(self):
        """The 8-byte oids that change when there are notices (for watching)."""
        found = self.log.lanes.oids()
        for feed in self._told():
            found |= feed.oids()
        return found

    @property
    def last_number(self):
        """See IFeeds.last_number."""
        numbers = [feed.last_number for feed in self._told()]
        return max([self.log.last_number(), *numbers])

    def register_handler(self, kind, handler, since=None, feed=None):
        self._jar()
        kind = _checked_kind(kind)
        if not callable(handler):
            raise TypeError(f'a handler is called with what a notice says; {handler!r} cannot be')
        source = self if feed is None else self[feed]
        if since is not None:
            source.notices(since)  # raises NoticesGone
        notify(HandlerRegistered(self, kind, handler, since, feed))

    def remove_handler(self, kind, handler):
        self._jar()
        notify(HandlerRemoved(self, _checked_kind(kind), handler))

    def _tell(self, kind, item):
        self.log.add(self._jar(), kind, item)
        notify(FeedChanged(self, kind, item.id))

    def __repr__(self):
        return f'<Feeds {self.get_feed_names()[:20]}>'


def _kind_in(config):
    kind = config_dict(config).get('type', 'feed')
    if kind not in CLASSES:
        raise ValueError(f'there is no type {kind!r} of feed; there are {sorted(CLASSES)}')
    return kind


def _left_notices(item, since):
    """What was left in the log of a deleted feed, after `since`."""
    dropped, entries = item.value
    if since is not None and since < dropped:
        raise NoticesGone(
            f'the feed {item.id!r} was deleted, and of its notices those up to {dropped} are not'
            f' kept any more',
            dropped,
        )
    return [
        Notice(number, kind, item.id, each.id, each.value if extra is None else extra)
        for number, kind, each, extra in numbered(entries, dropped if since is None else since)
    ]


def _checked_kind(kind):
    name = kind.removesuffix(SUFFIX) if isinstance(kind, str) else kind
    if name not in (*KINDS, 'lost') or name == kind:
        raise ValueError(
            f'{kind!r} is no kind of notice; there are'
            f' {", ".join(each + SUFFIX for each in (*KINDS, "lost"))}'
        )
    return name
