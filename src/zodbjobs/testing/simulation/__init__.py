"""A world in one process in which dispatchers crash, pause and collide, as a seed decides.

Several dispatchers work on one storage, each with connections, transaction
managers, threads and a clock of its own, as if it were a process.  Their
threads are real, but only one of them runs at a time and gives up its turn
where the database is asked for something (`stage`), so what happens, and in
which order, follows from a number alone: the seed.  Time is virtual.  After
each commit the invariants are checked against the database itself (`ledger`).

    python -m zodbjobs.testing.simulate --seed 1 --steps 150

A run has `steps` steps, each chosen by the seed and its own number alone: some
turns of a thread, a put, a crash, some time.  Then all trouble ends and time
goes on, until everything that was put must be done.  As a step depends on its
number only, a failing run is shortened by leaving out steps.
"""

from zodbjobs.testing.simulation.play import Play
from zodbjobs.testing.simulation.shrink import shortest

__all__ = ['Play', 'shortest']
