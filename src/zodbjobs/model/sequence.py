"""Keys of things that are ordered by hand: there is always room for one between two others.

A key is a text of hexadecimal digits, read as the digits of a fraction: '8' is a
half, '48' a bit more than a quarter.  It never ends in '0', so each fraction
has one spelling, and texts sort as fractions do.  Keys at the ends step away
from each other by a share of the room that has sixteen digits and serves some
10 ** 13 of them; a key between two others lies about half-way.  Parts of a step
are chance, so that two who put something at the same place at the same time
get different keys.

Plain functions of texts; no database.
"""

import random

#: Digits of a key at an end.
END_DIGITS = 16
_END_ROOM = 16**END_DIGITS

#: A step at an end is this much, and up to twice that.
STEP = 1 << 18

#: Digits more than the neighbours have, for chance.
CHANCE_DIGITS = 4


def first_key():
    """A key for the only thing there is."""
    return _text(_END_ROOM // 2 + random.randrange(STEP), END_DIGITS)


def key_after(last):
    """A key behind `last`."""
    number = _number(last, END_DIGITS) + STEP + random.randrange(STEP)
    return _text(number, END_DIGITS) if number < _END_ROOM else key_between(last, '')


def key_before(first):
    """A key before `first`."""
    number = _number(first, END_DIGITS) - STEP - random.randrange(STEP)
    return _text(number, END_DIGITS) if number > 0 else key_between('', first)


def key_between(low, high):
    """A key between two; '' is the beginning for `low`, the end for `high`."""
    digits = max(len(low), len(high)) + CHANCE_DIGITS
    bottom = _number(low, digits)
    top = _number(high, digits) if high else 16**digits
    room = top - bottom  # at least 16 ** CHANCE_DIGITS
    return _text(bottom + room // 4 + random.randrange(room // 2), digits)


def spread(low, high, count):
    """`count` keys between two, as short as can be, evenly spaced."""
    digits = 1
    while True:
        bottom = _number(low, digits)
        top = _number(high, digits) if high else 16**digits
        step = (top - bottom) // (count + 1)
        if step >= 16:  # room for chance, and for the neighbours to come
            return [
                _text(bottom + step * n + random.randrange(step // 2) + 1, digits)
                for n in range(1, count + 1)
            ]
        digits += 1


def _number(key, digits):
    """The first so many digits of `key`, as a whole number."""
    return int(key[:digits].ljust(digits, '0'), 16)


def _text(number, digits):
    return f'{number:0{digits}x}'.rstrip('0')
