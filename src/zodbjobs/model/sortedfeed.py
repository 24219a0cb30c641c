"""Feeds that are ordered by hand.

An item's place is a key of `sequence`, a text; there is always one between two
others, so an item is put or moved by writing its own entries only, in O(log n).
Where very many were put between the same two, the keys of some neighbours are
made short again.

Runs in the caller's transaction.
"""

from zope.interface import implementer

from zodbjobs.interfaces import ISortedFeed
from zodbjobs.model.call import check_storable
from zodbjobs.model.feed import ToldFeed
from zodbjobs.model.log import Item
from zodbjobs.model.merging import MergingTree
from zodbjobs.model.moments import moment
from zodbjobs.model.sequence import first_key, key_after, key_before, key_between, spread

#: Digits of a key from which on neighbours are spread anew.
LONG_KEY = 64

#: Neighbours on each side that are given new keys, at first.
NEIGHBOURS = 16

BEGIN, END = 'begin:', ':end'


@implementer(ISortedFeed)
class SortedFeed(ToldFeed):
    """See ISortedFeed."""

    kind = 'sorted_feed'

    def __init__(self, feeds, name):
        super().__init__(feeds, name)
        self.index = MergingTree()  # {id, turned: (moment, key in order, Item)}
        self.order = MergingTree()  # {key: id}

    # put

    def append(self, item):
        return self._insert(item, END)

    def publish(self, item):
        return self._insert(item, END)

    def prepend(self, item):
        return self._insert(item, BEGIN)

    def publish_before(self, id, item):
        return self._insert(item, f':{id}')

    def publish_after(self, id, item):
        return self._insert(item, f'{id}:')

    def _insert(self, item, position):
        jar = self._live()
        key = self._key_at(position)
        check_storable(item, jar, 'the item')
        number = moment()
        record = Item(str(number), item)
        self._place(record.id, key, record)
        self._tell('publish', record)
        self._tell('position', record, position)
        return record.id

    # change

    def edit(self, id, item):
        jar = self._live()
        key = self._entry(id)[1]
        check_storable(item, jar, 'the item')
        record = Item(str(id), item)
        self.index[_turned(record.id)] = (moment(), key, record)
        self._tell('edit', record)

    def retract(self, id):
        self._live()
        _, key, record = self._entry(id)
        del self.index[_turned(record.id)]
        del self.order[key]
        self._tell('retract', Item(record.id))

    def move(self, position, id):
        self._live()
        _, old, record = self._entry(id)
        key = self._key_at(position, moving=record.id)
        if key is not None:
            del self.order[old]
            self._place(record.id, key, record)
            self._tell('position', Item(record.id), position)

    def move_before(self, anchor, id):
        self.move(f':{anchor}', id)

    def move_after(self, anchor, id):
        self.move(f'{anchor}:', id)

    def move_first(self, id):
        self.move(BEGIN, id)

    def move_last(self, id):
        self.move(END, id)

    # places

    def _entry(self, id):
        found = self.index.get(_turned(id))
        if found is None:
            raise LookupError(f'feed {self.name!r} has no item {id!r}')
        return found

    def _place(self, id, key, record):
        self.order[key] = id
        self.index[_turned(id)] = (moment(), key, record)
        if len(key) > LONG_KEY:
            self._spread(key)

    def _key_at(self, position, moving=None):
        """A key for `position`; None if the item `moving` is there already."""
        low, high = self._gap(position)
        if moving is not None and moving in (self.order.get(low), self.order.get(high)):
            return None
        if low and high:
            return key_between(low, high)
        if low:
            return key_after(low)
        return key_before(high) if high else first_key()

    def _gap(self, position):
        """(key before, key behind) the position; '' where there is none."""
        if position == BEGIN:
            return '', self.order.first() or ''
        if position == END:
            return self.order.last() or '', ''
        anchor, colon, before = str(position).partition(':')
        if not colon or bool(anchor) == bool(before):
            raise ValueError(
                f"a position is ':ID' (before that item), 'ID:' (after it), {BEGIN!r} or {END!r},"
                f' not {position!r}'
            )
        key = self._entry(anchor or before)[1]
        if anchor:
            return key, self.order.next_key(key) or ''
        return self.order.previous_key(key) or '', key

    def _spread(self, key):
        """Give `key` and its neighbours short keys: as many as are needed for that."""
        count = NEIGHBOURS
        while True:
            low = self._far(self.order.previous_key, key, count)
            high = self._far(self.order.next_key, key, count)
            keys = [low] if low else []
            while (following := self.order.next_key(low)) and following != high:
                keys.append(following)
                low = following
            before = self.order.previous_key(keys[0]) or ''
            new = spread(before, high, len(keys))
            if max(map(len, new)) <= LONG_KEY // 2 or (not before and not high):
                break
            count *= 4
        ids = [self.order.pop(old) for old in keys]
        for id, fresh in zip(ids, new, strict=True):
            self.order[fresh] = id
            self.index[_turned(id)] = (moment(), fresh, self._entry(id)[2])

    def _far(self, step, key, count):
        """The key so many steps away, '' beyond the end."""
        for _ in range(count):
            key = step(key)
            if key is None:
                return ''
        return key

    # look

    def get_ids(self):
        return list(self.order.values())

    def get_item(self, id):
        found = self.index.get(_turned(id))
        return None if found is None else found[2].value

    def get_items(self):
        items = {item.id: item for _, _, item in self.index.values()}
        return {id: items[id].value for id in self.order.values()}

    get_all = get_items

    def __contains__(self, id):
        return isinstance(id, (str, int)) and _turned(id) in self.index

    def __iter__(self):
        return iter(self.get_ids())

    def __len__(self):
        return len(self.index)


def _turned(id):
    """The key of an id in the index: ids grow, and would all meet at its end."""
    return str(id)[::-1]
