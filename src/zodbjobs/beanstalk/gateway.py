"""The gateway: clients, what they wait for, and one commit for all that they ask at a time.

Commands that have arrived by the time of a `flush` are applied together and
committed together; the answers go out after the commit, so what a client was
told is stored.  The clients of one flush may be thought of as having come in any
order; the commands of one client are applied in theirs.

When the commit conflicts with another process's, everything that the batch has
changed in memory goes back to how it was, and the batch is applied again.  When
a command raises what it should not, the batch is applied again in single steps,
so that it harms nobody but its client.

A batch runs in a thread of its own where the database has a server, which may be
slow, or away; meanwhile the reactor takes in what comes, to be told to the gateway
when the batch is over.  Where the database is a file, the batch runs in the
reactor's thread: there is nothing to wait for but the disk, and handing over would
cost more than it saves.  Nothing here touches a socket.
"""

import collections
import heapq
import itertools
import logging
import random
import threading
import typing

from zodbjobs import clock
from zodbjobs.beanstalk import figures, protocol
from zodbjobs.beanstalk.commands import Commands, without
from zodbjobs.model.claim import SOON_SECONDS
from zodbjobs.runtime import trouble

log = logging.getLogger('zodbjobs.beanstalk')

#: Commands of one batch, and of one client in it: others shall have their turn.
BATCH_COMMANDS, CLIENT_COMMANDS = 2000, 200

#: A batch that conflicts is applied again so often before it waits for a moment.
BATCH_ATTEMPTS = 4

#: Seconds until the next try: after so many conflicts at most so many, as others wait as well;
#: and while the database is out of reach.
CROWDED_SECONDS, UNREACHABLE_SECONDS = 0.02, 0.5

#: Before so many microseconds a lease that is about to end is announced.
SOON = SOON_SECONDS * clock.SECOND

#: After a batch has failed so many commands of a client, and so many clients, are tried one by one.
STEPS = 200

#: So many entries that count no more may be among the moments that are waited for.
OUTDATED = 10_000

#: What is said of a database, once.
AWAY, REFUSES = 'the database is out of reach: %s', 'the database takes no writes: %s'

DEFAULT = 'default'


class Held(typing.NamedTuple):
    """A reservation of a client: until when, and in which slots its lease may lie."""

    reservation: object
    until: int
    keys: tuple


class Client:
    """What the gateway knows of one connection.

    `send(data)` writes an answer, `close()` closes after what was written.
    """

    def __init__(self, send, close):
        self.send = send
        self.close = close
        self.commands = collections.deque()
        self.mailed = 0  # commands that have arrived behind these, and wait for a batch to end
        self.answers = []
        self.use = DEFAULT
        self.watch = {DEFAULT: None}
        self.held = {}  # number -> Held
        self.waits = False  # in a reserve
        self.until = None  # microseconds until which it waits; None: for ever
        self.patience = None  # microseconds at which its wait ends at the latest, or None
        self.puts = self.works = False  # what it has done at least once
        self.ends = False  # it will send nothing more, or is to be closed
        self.gone = False  # its connection is closed
        self.stalled = False  # it does not read what it is sent

    def names(self):
        """The names of the tubes that it uses and watches, a list."""
        return [self.use, *self.watch]

    def state(self):
        """What a batch may change, to `restore` it.  `watch` is replaced, never changed."""
        return (
            self.commands.copy(), self.use, self.watch, self.held.copy(),
            self.waits, self.until, self.puts, self.works, self.ends,
        )  # fmt: skip

    def restore(self, state):
        (
            self.commands, self.use, self.watch, self.held,
            self.waits, self.until, self.puts, self.works, self.ends,
        ) = state  # fmt: skip
        self.answers = []


class _Batch:
    """What is undone when a batch does not hold."""

    def __init__(self):
        self.saved = {}  # Client -> its state
        self.counted = []  # (Counter, key)
        self.count = 0  # commands
        self.tubes = None  # those of the gateway, once one of them has vanished


def at_once(work, then):
    """Work here and now."""
    then(work())


class Gateway(Commands):
    """Serves clients from `store`; `body_bytes` is the longest body a client may put.

    The server sets `call_later(seconds, call)`, which returns an object with
    cancel(), and `carry_out(work, then)`, which calls ``then(work())``: the work may
    be done in another thread, the rest is done in the reactor's.  `info` are facts
    for the statistics, (key, value) pairs.
    """

    def __init__(self, store, body_bytes=protocol.BODY_BYTES, info=()):
        self.store = store
        self.body_bytes = body_bytes
        self.info = dict(info)
        self.started = clock.monotonic()
        self.call_later = None
        self.carry_out = at_once
        self.committer = None  # the number of the thread that commits now
        self.draining = False
        # Of the reactor's thread alone
        self._timer = self._soon = None
        self._timer_at = 0  # microseconds
        self._is_busy = self._again = False
        self._mail = []  # (method, arguments): what is told while a batch is under way
        # Of the thread of the batch, while there is one
        self.clients = {}  # ordered
        self.counts = collections.Counter()
        self.tubes = {DEFAULT: collections.Counter()}  # name -> figures, in order of creation
        self.uses = collections.Counter()  # name of a tube -> how often clients use and watch it
        self.pauses = {}  # name of a tube -> the seconds asked for
        self._wanting = {}  # clients that have commands
        self._waiters = {}  # name of a tube -> {client: None}, who waits longest first
        self._stirred = set()  # names of tubes in which something may be ready now
        self._events = {}  # name of a tube with waiters -> when to look again, or None
        self._ends = []  # heap of (until, tie, client, number) of reservations
        self._ends_limit = OUTDATED
        self._patience = []  # heap of (moment, tie, client): who waits until then
        self._asking = {}  # clients that have begun to wait, or may not want to any more
        self._ties = itertools.count()
        self._solo = False
        self._shall_sweep = False
        self._batch = _Batch()
        self._is_in_doubt = False  # whether the last batch was committed
        self._trouble = None  # what was last said of it
        self._outbox = []  # (client, bytes, or None to close)

    # what the server tells

    def connected(self, client):
        self._tell(self._connected, client)

    def _connected(self, client):
        self.clients[client] = None
        self.uses.update(client.names())
        self.counts['total-connections'] += 1

    def received(self, client, commands):
        """These commands have arrived."""
        client.mailed += len(commands)
        self._tell(self._received, client, commands)

    def _received(self, client, commands):
        client.mailed -= len(commands)
        client.commands.extend(commands)
        self._wake(client)

    def wake(self, client):
        """There may be something to do for a client."""
        self._tell(self._wake, client)

    def _wake(self, client):
        self._wanting[client] = None
        self._flush_soon()

    def half_closed(self, client):
        """The client will send nothing more, and may still read."""
        self._tell(self._half_closed, client)

    def _half_closed(self, client):
        client.ends = True
        self._wake(client)

    def disconnected(self, client):
        """The connection is closed; what the client sent before is still done."""
        self._tell(self._disconnected, client)

    def _disconnected(self, client):
        client.gone = client.ends = True
        client.stalled = False  # nobody is there to read the answers
        self._wake(client)

    def rung(self):
        """Another process, or another part of this one, has committed something about jobs."""
        self._tell(self._rung)

    def _rung(self):
        self._stirred.update(self._waiters)
        self._flush_soon()

    def sweep(self):
        """Look soon for jobs that ended elsewhere."""
        self._shall_sweep = True
        self._flush_soon()

    def drain(self):
        """Take no more jobs."""
        self.draining = True

    def _tell(self, deed, *args):
        """Do what changes the state of clients, as soon as no batch is under way."""
        if self._is_busy or self._is_in_doubt:
            self._mail.append((deed, args))
        else:
            deed(*args)

    def _flush_soon(self):
        if self._is_busy:
            self._again = True
        elif self._soon is None:
            self._soon = self.call_later(0, self.flush)

    def flush(self):
        """Have what has arrived applied, committed and answered."""
        self._soon = None
        self._is_busy = True
        self._again = False
        self.carry_out(self._work, self._done)

    def _done(self, seconds):
        """A batch is over, or to be tried again in so many seconds."""
        self._is_busy = False
        if seconds is not None:
            self._soon = self.call_later(seconds, self.flush)
        outbox, self._outbox = self._outbox, []
        for client, data in outbox:
            if data is None:
                client.close()
            elif not client.gone:
                client.send(data)
        if not self._is_in_doubt:
            mail, self._mail = self._mail, []
            for deed, args in mail:
                deed(*args)
        if seconds is None:
            if self._wanting or self._again:
                self._flush_soon()
            self._set_timer()

    # a batch: from here on in its thread

    def _work(self):
        """Apply what has arrived, and commit; the seconds until the next try, or None."""
        try:
            if self._is_in_doubt:
                self._resolve_doubt()
                return 0
            return self._try_batch()
        except Exception as error:
            if trouble.is_disconnected(error):
                self._say(AWAY, error)
            else:
                log.critical('the gateway cannot go on with a batch', exc_info=True)
            return UNREACHABLE_SECONDS

    def _try_batch(self):
        for _ in range(BATCH_ATTEMPTS):
            try:
                wrote = self._apply_and_commit()
            except Exception as error:
                if trouble.is_disconnected(error):
                    self._is_in_doubt = self.committer is not None
                self.committer = None
                if self._is_in_doubt:
                    raise
                self._undo()
                if trouble.is_disconnected(error):
                    raise
                if not trouble.is_conflict(error):
                    return self._single_steps(error)
            else:
                self._answer()
                if wrote or self._trouble == AWAY:
                    self._say(None)
                return None
        return random.uniform(0, CROWDED_SECONDS)

    def _resolve_doubt(self):
        """The connection was lost in a commit: was it made?"""
        if self.store.was_committed():
            self._answer()
        else:
            self._undo()
        self._is_in_doubt = False

    def _say(self, text, error=None):
        """Log what is wrong with the database, once; None: nothing any more."""
        if text != self._trouble:
            self._trouble = text
            if text is None:
                log.warning('the database takes commits again')
            else:
                log.error(text, trouble.in_short(error))

    def _apply_and_commit(self):
        """Whether anything was written."""
        self._batch = _Batch()
        self.store.begin()
        self._tick()
        if self._shall_sweep:
            self._sweep()
        self._apply()
        self.committer = threading.get_ident()
        wrote = self.store.commit()
        self.committer = None
        self._shall_sweep = False
        return wrote

    def _single_steps(self, error):
        """Apply command by command, to find whom the error concerns.

        The command that raises is answered with INTERNAL_ERROR.  Where the database
        takes no writes, a put is refused, and other commands wait until it does.
        Returns the seconds until the next try, or None.
        """
        if trouble.is_refused(error):
            self._say(REFUSES, error)
        else:
            log.error('a batch failed, and is applied in single steps', exc_info=error)
        wanting, left = list(self._wanting), {}
        for client in wanting[STEPS:]:
            left[client] = None
        self._solo = True
        try:
            for client in wanting[:STEPS]:
                if not self._steps(client, left) or client.gone:
                    left[client] = None
        finally:
            self._solo = False
            self._wanting = left
        return UNREACHABLE_SECONDS if left else None

    def _steps(self, client, left):
        """Apply what one client has sent; False if it has to wait for the database."""
        for _ in range(STEPS):
            if not client.commands or client.waits or client.stalled:
                return True
            self._wanting = {client: None}
            if not self._step(client):
                return False
            left.update(self._wanting)
        return not client.commands

    def _step(self, client):
        verb = client.commands[0].verb
        try:
            self._apply_and_commit()
        except Exception as error:  # noqa: BLE001 - told apart here
            self.committer = None
            self._undo()
            if trouble.is_disconnected(error) or trouble.is_conflict(error):
                return False
            is_refused = trouble.is_refused(error)
            if is_refused and verb != 'put':
                return False
            if not is_refused:
                log.exception('the command %s failed', verb)
            client.commands.popleft()
            answer = protocol.OUT_OF_MEMORY if is_refused else protocol.INTERNAL_ERROR
            self._outbox.append((client, answer))
        else:
            self._answer()
        return True

    def _undo(self):
        """Put back what the batch has changed in memory."""
        try:
            self.store.abort()
        except Exception as error:
            if not trouble.is_disconnected(error):  # that one says it twice
                log.exception('cannot abort')
        for counter, key in self._batch.counted:
            counter[key] -= 1
        for client, state in self._batch.saved.items():
            self._unlist(client)
            client.restore(state)
            self.clients[client] = None
            if client.waits:
                self._list(client)
            for number, held in client.held.items():
                self._note_end(client, number, held.until)
            if client.commands or client.ends:
                self._wanting[client] = None
        if self._batch.tubes is not None:
            self.tubes = self._batch.tubes
        self.uses = collections.Counter(name for each in self.clients for name in each.names())
        self.store.recall(
            held.reservation for client in self.clients for held in client.held.values()
        )
        self._stirred.update(self._waiters)
        self._batch = _Batch()

    def _touch(self, client):
        """The batch is about to change this client."""
        if client not in self._batch.saved:
            self._batch.saved[client] = client.state()

    def _sweep(self):
        for name in list(self.tubes):
            self._may_vanish(name)
        self.store.sweep({name for name, count in self.uses.items() if count})
        self.uses = +self.uses

    def count(self, counter, key):
        counter[key] += 1
        self._batch.counted.append((counter, key))

    def tube(self, name):
        """The figures of a tube, which exists by this."""
        found = self.tubes.get(name)
        if found is None:
            found = self.tubes[name] = collections.Counter()
        return found

    def _may_vanish(self, name):
        """Nobody uses a tube any more, or a job has left it: without either it is no more."""
        if name in self.tubes and not figures.exists(self, name):
            if self._batch.tubes is None:
                self._batch.tubes = dict(self.tubes)
            self.tubes = without(self.tubes, name)
            self.pauses.pop(name, None)
            self.store.vanished(name)

    def _apply(self):
        """Run commands, and serve who waits, until nothing moves any more."""
        wanting, self._wanting = self._wanting, {}
        wanting = list(wanting)
        for client in wanting:
            self._touch(client)
        while True:
            for client in wanting:
                self._advance(client)
            wanting = self._serve()
            if self._solo or not wanting:
                self._wanting.update(dict.fromkeys(wanting))
                return

    def _advance(self, client):
        """Run the commands of a client until it waits, or has had its turn."""
        self._touch(client)
        limit = 1 if self._solo else CLIENT_COMMANDS
        while client.commands and not client.waits and not client.stalled:
            if not limit or self._batch.count >= BATCH_COMMANDS:
                self._wanting[client] = None
                return  # also if it is gone: what it has sent is still done
            limit -= 1
            self._batch.count += 1
            command = client.commands.popleft()
            answer = self.run(client, command)
            if answer is not None:
                client.answers.append(answer)
        if client.waits:
            self._asking[client] = None
        if client.gone or (client.ends and not client.commands and not client.waits):
            self._part(client)

    def _part(self, client):
        """A client goes: its reservations are ready again at once."""
        client.commands.clear()
        client.waits = False
        self._unlist(client)
        for held in client.held.values():
            self.store.give_back(held.reservation, held.keys)
            self._stirred.add(held.reservation.lent.queue)
        client.held.clear()
        if client in self.clients:
            del self.clients[client]
            self.uses.subtract(client.names())
            for name in client.names():
                self._may_vanish(name)

    def _answer(self):
        """Have sent what was committed."""
        for client in self._batch.saved:
            if client.answers:
                self._outbox.append((client, b''.join(client.answers)))
                client.answers = []
            if client not in self.clients and not client.gone:
                self._outbox.append((client, None))

    # time

    def _tick(self):
        """Do what has become due."""
        now = self.store.now
        while self._ends and self._ends[0][0] <= now:
            _, _, client, number = heapq.heappop(self._ends)
            held = client.held.get(number)
            if held is not None and held.until <= now:
                self._touch(client)
                del client.held[number]
                if self.store.end(held.reservation, held.keys):
                    self.count(self.counts, 'job-timeouts')
                self._stirred.add(held.reservation.lent.queue)
        for name, moment in self._events.items():
            if moment is not None and moment <= now:
                self._stirred.add(name)
                self.store.take_back(name)

    def _set_timer(self):
        """Flush again when something becomes due."""
        moments = [moment for moment in self._events.values() if moment is not None]
        while self._patience:
            moment, _, client = self._patience[0]
            if client.waits and client.patience == moment:
                moments.append(moment)
                break
            heapq.heappop(self._patience)
        while self._ends:
            until, _, client, number = self._ends[0]
            held = client.held.get(number)
            if held is not None and held.until <= until:
                moments.append(until)
                break
            heapq.heappop(self._ends)
        if moments and (self._timer is None or min(moments) < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = min(moments)
            seconds = max(0, self._timer_at - clock.micros()) / clock.SECOND
            self._timer = self.call_later(seconds, self._on_timer)

    def _on_timer(self):
        self._timer = None
        self._flush_soon()

    def _note_end(self, client, number, until):
        heapq.heappush(self._ends, (until, next(self._ties), client, number))
        if len(self._ends) > self._ends_limit:  # most are of jobs that were deleted long before
            self._ends = [
                (held.until, next(self._ties), each, number)
                for each in self.clients
                for number, held in each.held.items()
            ]
            heapq.heapify(self._ends)
            self._ends_limit = 2 * len(self._ends) + OUTDATED

    # waiting

    def _list(self, client):
        """Note that a client waits."""
        for name in client.watch:
            self._waiters.setdefault(name, {})[client] = None
        self._asking[client] = None
        moments = [held.until - SOON for held in client.held.values()]
        if client.until is not None:
            moments.append(client.until)
        client.patience = min(moments, default=None)
        if moments:
            heapq.heappush(self._patience, (client.patience, next(self._ties), client))
        if len(self._patience) > 2 * len(self.clients) + OUTDATED:
            self._patience = [
                (each.patience, next(self._ties), each)
                for each in self.clients
                if each.waits and each.patience is not None
            ]
            heapq.heapify(self._patience)

    def _unlist(self, client):
        for name in client.watch:
            waiters = self._waiters.get(name)
            if waiters is not None:
                waiters.pop(client, None)
                if not waiters:
                    del self._waiters[name]
                    self._events.pop(name, None)

    def _wait(self, client, until):
        client.waits = True
        client.until = until
        self._list(client)
        self._stirred.update(client.watch)

    def _serve(self):
        """Give what is ready to those who wait; returns the clients that can go on by that."""
        served = []
        heads = []
        names = self._stirred & self._waiters.keys()
        self._stirred.clear()
        for name in names:
            self._push_head(heads, name)
        while heads:
            *_, name, item = heapq.heappop(heads)
            waiters = self._waiters.get(name)
            if waiters:
                client = next(iter(waiters))
                reservation = self.store.reserve(name, item)
                if reservation is not None:
                    self._touch(client)
                    self._stop_waiting(client, self._reserved(client, reservation))
                    served.append(client)
                self._push_head(heads, name)
        asking, self._asking = self._asking, {}
        while self._patience and self._patience[0][0] <= self.store.now:
            asking[heapq.heappop(self._patience)[-1]] = None
        for client in asking:
            answer = self._given_up(client) if client.waits else None
            if answer is not None:
                self._touch(client)
                self._stop_waiting(client, answer)
                served.append(client)
        for name in names & self._waiters.keys():
            self._events[name] = self.store.next_event(name)
        return [client for client in served if client.commands or client.ends]

    def _push_head(self, heads, name):
        head = self.store.head(name) if name in self._waiters else None
        if head is not None:
            priority, order, item = head
            heapq.heappush(heads, (priority, order, next(self._ties), name, item))

    def _stop_waiting(self, client, answer):
        self._unlist(client)
        client.waits = False
        client.answers.append(answer)

    def _given_up(self, client):
        """The answer to a client that waits no longer, or None."""
        now = self.store.now
        if any(held.until - now <= SOON for held in client.held.values()):
            return protocol.DEADLINE_SOON
        if client.ends or (client.until is not None and client.until <= now):
            return protocol.TIMED_OUT
        return None

    def _reserved(self, client, reservation):
        """Note a reservation; returns its answer."""
        lent = reservation.lent
        client.held[reservation.number] = Held(reservation, lent.until, (lent.key,))
        self._note_end(client, reservation.number, lent.until)
        return protocol.found(b'RESERVED', reservation.number, reservation.body)
