"""The contracts of feeds."""

from zope.interface import Attribute, Interface

#: Where the commands look for feeds (IFeeds) in the root.
FEEDS_KEY = 'zodbjobs.feeds'


class IFeeds(Interface):
    """Feeds by name; stored anywhere in a database."""

    last_number = Attribute('the number that stands for all notices there are now')

    def feed(name, config=None):
        """The IFeed of this name; it is made if there is none, and configured if `config` is given.

        `config` is a mapping, or the JSON text of one, with `max_length` (how many
        items it holds at most), `notices` (how many are kept at least, default
        1000) and `title`.  Raises TypeError if the name is another kind's.
        """

    def sorted_feed(name, config=None):
        """As `feed`, for an ISortedFeed (`notices`, `title`)."""

    def queue(name, config=None):
        """As `feed`, for an IMessageQueue (`title`)."""

    def job(name, config=None):
        """As `feed`, for an IJobFeed (`lease` in seconds, default 3600; `notices`, `title`)."""

    def create_feed(name, config=None):
        """Make a feed of the `type` in `config`: 'feed', 'sorted_feed', 'queue' or 'job'.

        Raises ValueError if there is one of that name.
        """

    def delete_feed(name):
        """Delete a feed with all that is in it.  KeyError if there is none.

        Who still has the object gets FeedDeleted.
        """

    def set_config(name, config):
        """Change settings of a feed; None takes one back.  KeyError, TypeError, ValueError."""

    def get_config(name):
        """The settings of a feed, a dict with its `type`."""

    def feed_exists(name):
        """Whether there is a feed of this name."""

    def get_feed_names():
        """The names, sorted (a list)."""

    def __getitem__(name):
        """The feed of this name.  KeyError."""

    def notices(since=None):
        """What happened in all feeds, a list of `zodbjobs.facts.Notice`, by number.

        All that is kept, or what came after the number `since`.  Raises
        NoticesGone if some of that is not kept any more.
        """

    def register_handler(kind, handler, since=None, feed=None):
        """Have `handler` called in this process after each commit that brings such notices.

        `kind` is one of 'publish_notice' (feed, item, id), 'edit_notice' (feed, item,
        id), 'retract_notice' (feed, id), 'position_notice' (feed, id, position),
        'create_notice' (feed), 'delete_notice' (feed), 'finish_notice' (feed, id,
        result); 'lost_notice' (feed, number) is called when notices were dropped
        before this process came to them.  Commits of all processes count.

        `since` is a number already seen: what came after it is delivered first.
        `feed` is the name of the only feed to hear of.  Handlers are called one at
        a time, in a thread of their own, in the order of the numbers.  Raises
        NoticesGone if what came after `since` is not complete.
        """

    def remove_handler(kind, handler):
        """Call it no more.  LookupError if it is not registered."""


class IAnyFeed(Interface):
    """What all kinds have."""

    name = Attribute('its name in the feeds')
    feeds = Attribute('the IFeeds')
    kind = Attribute("'feed', 'sorted_feed', 'queue' or 'job'")
    config = Attribute('the settings, a new dict with the `type`')

    def configure(config):
        """Change settings, as IFeeds.set_config."""

    def get_ids():
        """The ids of the items in order (a list)."""

    def __len__():
        """How many items there are."""

    def __iter__():
        """The ids in order."""


class IToldFeed(IAnyFeed):
    """A feed whose changes are told."""

    last_number = Attribute('the number that stands for all its notices there are now')

    def notices(since=None):
        """What happened to this feed, as IFeeds.notices."""

    def subscribe(queue, call, kinds=None, **options):
        """Put a job in `queue` for every notice, in the transaction of whoever causes it.

        The job is ``call(kind, feed name, id, value)`` with the item, position or
        result as value.  `kinds` limits it ('publish' or several); `options` go
        to ``queue.put``.  A second subscription of the same call replaces the first.
        """

    def unsubscribe(queue, call):
        """Put no more jobs; whether there was such a subscription."""

    def get_item(id):
        """The item of this id, or None."""

    def __contains__(id):
        """Whether there is an item of this id."""


class IFeed(IToldFeed):
    """Items in the order in which they were published."""

    def publish(item, id=None):
        """Add an item at the end; returns its id.

        `item` is whatever can be stored.  Without `id` it gets a new one; with the id
        of an item that is there it takes its place, at the end of the feed.
        """

    def edit(id, item):
        """Publish an item that takes the place of another.  LookupError if there is none."""

    def retract(id):
        """Remove an item.  LookupError if there is none."""

    def get_all():
        """A dict of all items by id, in order."""


class ISortedFeed(IToldFeed):
    """Items ordered by hand.  Ids are growing numbers, as text; a number may be passed."""

    def append(item):
        """Add an item at the end; returns its id."""

    def publish(item):
        """The same as append."""

    def prepend(item):
        """Add an item at the beginning; returns its id."""

    def publish_before(id, item):
        """Add an item before another; returns its id.  LookupError."""

    def publish_after(id, item):
        """Add an item behind another; returns its id.  LookupError."""

    def edit(id, item):
        """Replace an item in its place.  LookupError."""

    def retract(id):
        """Remove an item.  LookupError."""

    def move(position, id):
        """Move an item to ':ID' (before that one), 'ID:' (behind it), 'begin:' or ':end'.

        Raises LookupError for ids that are not there, ValueError for another
        position.  Moving an item to where it is changes nothing.
        """

    def move_before(anchor, id):
        """Move an item before another."""

    def move_after(anchor, id):
        """Move an item behind another."""

    def move_first(id):
        """Move an item to the beginning."""

    def move_last(id):
        """Move an item to the end."""

    def get_items():
        """A dict of all items by id, in order."""

    def get_all():
        """The same as get_items."""


class IMessageQueue(IAnyFeed):
    """Messages of which each is taken once."""

    HIGH = Attribute('priority of a message that goes before those that have none')

    def put(item, priority=None):
        """Add a message; returns its id.  With priority HIGH it goes before all others."""

    def publish(item, priority=None):
        """The same as put."""

    def get(timeout=None):
        """Take the first message, in the caller's transaction, and return it.

        Waits `timeout` seconds for one (0: not at all; None: for ever) and then
        raises Empty.  Who waits must have changed nothing in his transaction:
        others' commits can only be seen by a new one.
        """


class IJobFeed(IToldFeed):
    """Items that are claimed for a time, and come back unless they are finished.

    An id may be given as text, or as what `get` returned: then a claim that ended
    and went to somebody else raises ClaimLost.
    """

    HIGH = Attribute('priority of an item that goes before those that have none')

    def put(item, priority=None):
        """Add an item at the end, or with priority HIGH before all others; returns its id."""

    def publish(item, priority=None):
        """The same as put."""

    def get(timeout=None):
        """Claim the first item: (id, item, how often it was cancelled or not finished in time).

        Others see the claim when the transaction is committed.  It lasts as long
        as the feed's `lease` says.  Waits as IMessageQueue.get.
        """

    def finish(id, item=None, result=None, timeout=None):
        """Say that a claimed item is done; it leaves the feed.

        `item` is its result, which is kept for `timeout` seconds (default: 7 days);
        None is kept only if `result` is true.  LookupError if it is not claimed.
        """

    def get_result(id, timeout=None):
        """(what was put, the result), as often as one likes.

        Waits as get for an item that is not finished.  LookupError if there is none.
        """

    def cancel(id):
        """Give a claimed item back: it goes to the end, and its failures are counted.

        (To end it for good is `retract`.)  LookupError if it is not claimed.
        """

    def stall(id):
        """Set an item aside until `retry`; forgets its failures.  LookupError."""

    def retry(id):
        """Offer an item that was stalled again.  LookupError if it was not."""

    def retract(id):
        """Remove an item in whatever state, or its result.  LookupError."""

    def get_failure_count(id):
        """How often its claim was cancelled or ended.  LookupError."""

    def get_state(id):
        """'available', 'claimed' or 'stalled'.  LookupError."""
