"""Who takes what, among the transactions of this process that are under way.

Two transactions that take the same thing conflict, and the work of one is lost.
Between processes that cannot be helped; within one, who looks for something to
take passes over what another transaction has taken and not yet given back.

Nothing here is stored; any thread may call.  Single operations of a dict are
all that is shared.
"""

from zodbjobs import clock

#: So many things are remembered at most; beyond that the oldest are forgotten, which
#: costs a conflict at the worst.
REMEMBERED = 20_000

#: After the commit a thing stays reserved so long, for transactions that do not see the
#: commit yet.  Not for ever: it may be there still, if a savepoint was rolled back.
AFTERWARDS_SECONDS = 3

#: name -> the transaction that takes it, or when the reservation ends.
_taken: dict = {}


def reserve(transaction, db, *name):
    """Whether `transaction` may take the thing of that `name` in `db`; it is reserved then."""
    key = (id(db), *name)
    holder = _taken.setdefault(key, transaction)
    if holder is transaction:
        if len(_taken) > REMEMBERED:
            for old in list(_taken)[: -(REMEMBERED // 2)]:
                _taken.pop(old, None)
    elif isinstance(holder, float) and holder <= clock.monotonic():
        _taken[key] = transaction
    else:
        return False
    transaction.addAfterAbortHook(_give_back, (key,))
    transaction.addAfterCommitHook(_settle, (key,))
    return True


def clear():
    """Forget everything, as another process that knows of nothing (for tests)."""
    _taken.clear()


def _settle(committed, key):
    if committed:
        _taken[key] = clock.monotonic() + AFTERWARDS_SECONDS
    else:
        _give_back(key)


def _give_back(key):
    _taken.pop(key, None)
