"""Tokens: the number of each filing of a job, which is also its place among equals.

A token is the time of the filing in microseconds and six bits more, which tell the
filings of one job for one instant apart.  Plain numbers; nothing here is stored.
"""

#: Bits of a token that are not time.
TIE_BITS = 6
TIE_MASK = (1 << TIE_BITS) - 1

#: Keys have 63 bits, so a time beyond this (the year 4253, in microseconds) sorts as this.
FAR = 2**56


def bounded(us):
    """The time `us` (microseconds), or the nearest one that a token can hold."""
    return min(max(us, 0), FAR)


def order_key(us):
    """The first key for the time `us` (microseconds), whatever time a caller wished for."""
    return bounded(us) << TIE_BITS


def first_token(us):
    """The token of a job that was put at `us` and may begin at once."""
    return us << TIE_BITS | 1


def next_token(token, urgent):
    """The number of a job's next filing after `token`, before its time is put in.

    That of an urgent one is even, so that the number alone tells them apart: an
    urgent filing is not among those that are counted, current or stale.
    """
    return (token | 1) + 1 if urgent else (token + 1) | 1


def is_counted(token):
    """Whether a filing counted as a waiting one."""
    return bool(token & 1)
