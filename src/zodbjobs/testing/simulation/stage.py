"""Threads that take turns, so that the order of events can be chosen.

An `Actor` is a real thread that runs only while it has the turn.  It gives the
turn back to the director, who runs in the thread that made the `Stage`, by
`pass_turn` (it could go on at once) or by `wait` (it goes on when something is
true).  Exactly one of all these threads runs at any time, so nothing here is
guarded, and nothing ever happens in an order that the director did not choose.
"""

import threading

from zodbjobs.model import queue as queue_module


class Killed(BaseException):
    """The process of this actor has crashed: its thread unwinds and touches nothing more."""


class Stage:
    """Where actors take turns.  Used by the director, and by whichever actor has the turn."""

    def __init__(self):
        self.actors = []
        self.current = None  # the actor that has the turn, or None: the director
        self._returned = _closed_gate()

    def spawn(self, process, name, target):
        """A new Actor of `process` that will run `target()`; it has no turn yet."""
        actor = Actor(self, process, name, target)
        self.actors.append(actor)
        return actor

    def runnable(self):
        """The actors that could go on now, in the order they were made."""
        return [actor for actor in self.actors if actor.is_runnable()]

    def give_turn(self, actor):
        """Let `actor` go on until it gives the turn back or ends."""
        process = actor.process
        # A process remembers the times of its filings; so does each of ours.
        mine, queue_module._filings = queue_module._filings, process.filings
        self.current = actor
        actor._go()
        self._returned.acquire()
        self.current = None
        queue_module._filings = mine
        if actor.has_ended:
            self.actors.remove(actor)

    def pass_turn(self, where):
        """Give the turn back for a while, if an actor has it; `where` is a word for the log."""
        if self.current is not None:
            self.current._pause(where, None)

    def wait(self, ready, where):
        """Give the turn back until `ready()` is true, if it is not."""
        actor = self.current
        if actor is None:
            assert ready(), f'the director cannot wait for {where}'
        elif actor.is_killed or not ready():
            actor._pause(where, ready)

    def kill(self, actors):
        """End the threads of `actors`, as a crash does."""
        for actor in actors:
            actor.is_killed = True
            while not actor.has_ended:
                self.give_turn(actor)


class Actor:
    """A thread of a simulated process."""

    def __init__(self, stage, process, name, target):
        self.stage = stage
        self.process = process
        self.name = name
        self.where = 'start'  # what it is about to do
        self.error = None  # what ended it, if that was an exception
        self.is_killed = False
        self.has_ended = False
        self.wakes_at = None  # virtual microseconds, if it waits for that
        self.worker = None  # the pool's Worker that this thread stands for, if any
        self._target = target
        self._ready = None
        self._turn = _closed_gate()
        self._thread = None

    def is_runnable(self):
        """Whether it could go on now."""
        return not self.process.is_paused and (self._ready is None or self._ready())

    @property
    def ident(self):
        """As of a threading.Thread."""
        return id(self)

    @property
    def assignment(self):
        """What it works on (an Assignment), or None."""
        return None if self.worker is None else self.worker.assignment

    def is_alive(self):
        """As threads have it."""
        return not self.has_ended

    def join(self, seconds):
        """As threads have it, in virtual time; for other actors of the same process."""
        self.process.sleep(seconds, lambda: self.has_ended, 'join')

    def _go(self):
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=str(self), daemon=True)
            self._thread.start()
        else:
            self._turn.release()

    def _run(self):
        try:
            if not self.is_killed:
                self._target()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - the director tells of it
            self.error = error
        self.has_ended = True
        self.stage._returned.release()

    def _pause(self, where, ready):
        if self.is_killed:
            raise Killed(self)
        self.where, self._ready = where, ready
        self.stage._returned.release()
        self._turn.acquire()
        self._ready = None
        if self.is_killed:
            raise Killed(self)

    def __str__(self):
        return f'{self.process.name} {self.name}'


def _closed_gate():
    """A lock that whoever acquires it waits for; releasing it lets one through."""
    gate = threading.Lock()
    gate.acquire()
    return gate
