"""The gateway: clients, what they wait for, and one commit for all that they ask at a time.

Commands that have arrived by the time of a `flush` are applied together and
committed together; the answers go out after the commit, so what a client was
told is stored.  The clients of one flush may be thought of as having come in any
order; the commands of one client are applied in theirs.

When the commit conflicts with another process's, everything that the batch has
changed in memory goes back to how it was, and the batch is applied again.  When
a command raises what it should not, the batch is applied again in single steps,
so that it harms nobody but its client.

Runs in the reactor's thread; nothing here touches a socket.
"""

import collections
import heapq
import itertools
import logging
import random
import typing

from zodbjobs import clock
from zodbjobs.beanstalk import figures, protocol
from zodbjobs.beanstalk.store import Refused
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
        self.answers = []
        self.use = DEFAULT
        self.watch = {DEFAULT: None}
        self.held = {}  # number -> Held
        self.waits = False  # in a reserve
        self.until = None  # microseconds until which it waits; None: for ever
        self.puts = self.works = False  # what it has done at least once
        self.ends = False  # it will send nothing more, or is to be closed
        self.gone = False  # its connection is closed
        self.stalled = False  # it does not read what it is sent

    def names(self):
        """The names of the tubes that it uses and watches, a list."""
        return [self.use, *self.watch]

    def state(self):
        """What a batch may change, to `restore` it."""
        return (
            self.commands.copy(), self.use, self.watch.copy(), self.held.copy(),
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


class Gateway:
    """Serves clients from `store`; `body_bytes` is the longest body a client may put.

    The server sets `call_later(seconds, call)`, which returns an object with
    cancel(); `info` are facts for the statistics, (key, value) pairs.
    """

    def __init__(self, store, body_bytes=protocol.BODY_BYTES, info=()):
        self.store = store
        self.body_bytes = body_bytes
        self.info = dict(info)
        self.started = clock.monotonic()
        self.draining = False
        self.clients = {}  # ordered
        self.counts = collections.Counter()
        self.tubes = {DEFAULT: collections.Counter()}  # name -> figures, in order of creation
        self.uses = collections.Counter()  # name of a tube -> how often clients use and watch it
        self.pauses = {}  # name of a tube -> the seconds asked for
        self.call_later = None
        self._wanting = {}  # clients that have commands
        self._waiters = {}  # name of a tube -> {client: None}, who waits longest first
        self._stirred = set()  # names of tubes in which something may be ready now
        self._events = {}  # name of a tube with waiters -> when to look again, or None
        self._ends = []  # heap of (until, tie, client, number) of reservations
        self._ties = itertools.count()
        self._timer = self._soon = None
        self._solo = False
        self._shall_sweep = False
        self._batch = _Batch()
        self.committing = False

    # what the server tells

    def connected(self, client):
        self.clients[client] = None
        self.uses.update(client.names())
        self.counts['total-connections'] += 1

    def received(self, client, commands):
        """These commands have arrived."""
        client.commands.extend(commands)
        self.wake(client)

    def wake(self, client):
        """There may be something to do for a client."""
        self._wanting[client] = None
        self._flush_soon()

    def disconnected(self, client):
        """The connection is closed; what the client sent before is still done."""
        client.gone = client.ends = True
        client.stalled = False  # nobody is there to read the answers
        self.wake(client)

    def rung(self):
        """Another process, or another part of this one, has committed something about jobs."""
        self._stirred.update(self._waiters)
        self._flush_soon()

    def sweep(self):
        """Look soon for jobs that ended elsewhere."""
        self._shall_sweep = True
        self._flush_soon()

    def drain(self):
        """Take no more jobs."""
        self.draining = True

    def _flush_soon(self):
        if self._soon is None:
            self._soon = self.call_later(0, self.flush)

    # a batch

    def flush(self):
        """Apply what has arrived, commit, answer."""
        self._soon = None
        for _ in range(BATCH_ATTEMPTS):
            try:
                self._apply_and_commit()
                break
            except Exception as error:  # noqa: BLE001 - told apart here
                self._undo()
                if trouble.is_disconnected(error):
                    log.error('the database is out of reach: %s', error)
                    self._soon = self.call_later(UNREACHABLE_SECONDS, self.flush)
                    return
                if not trouble.is_conflict(error):
                    self._single_steps(error)
                    break
        else:
            self._soon = self.call_later(random.uniform(0, CROWDED_SECONDS), self.flush)
            return
        self._answer()
        self._set_timer()

    def _apply_and_commit(self):
        self._batch = _Batch()
        self.store.begin()
        self._tick()
        if self._shall_sweep:
            self._sweep()
        self._apply()
        self.committing = True
        try:
            self.store.commit()
        finally:
            self.committing = False
        self._shall_sweep = False

    def _single_steps(self, error):
        """Apply command by command; the one that raises is answered with INTERNAL_ERROR."""
        log.error('a batch failed, and is applied in single steps', exc_info=error)
        self._solo = True
        wanting = list(self._wanting)
        try:
            for client in wanting:
                while client.commands and not client.waits and not client.stalled:
                    self._step(client)
        finally:
            self._solo = False
            for client in wanting:
                if client.gone:
                    self.wake(client)

    def _step(self, client):
        command = client.commands[0]
        self._wanting = {client: None}
        try:
            self._apply_and_commit()
        except Exception:
            self._undo()
            log.exception('the command %s failed', command.verb)
            client.commands.popleft()
            client.send(protocol.INTERNAL_ERROR)
        else:
            self._answer()

    def _undo(self):
        """Put back what the batch has changed in memory."""
        self.store.abort()
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
            self.tubes = _without(self.tubes, name)
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
                self._flush_soon()
                return  # also if it is gone: what it has sent is still done
            limit -= 1
            self._batch.count += 1
            command = client.commands.popleft()
            answer = self._run(client, command)
            if answer is not None:
                client.answers.append(answer)
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
        """Send what was committed."""
        for client in self._batch.saved:
            if client.answers and not client.gone:
                client.send(b''.join(client.answers))
            client.answers = []
            if client not in self.clients and not client.gone:
                client.close()

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
        for client in self._waiting():
            if client.until is not None:
                moments.append(client.until)
            moments += [held.until - SOON for held in client.held.values()]
        while self._ends:
            until, _, client, number = self._ends[0]
            held = client.held.get(number)
            if held is not None and held.until <= until:
                moments.append(until)
                break
            heapq.heappop(self._ends)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if moments:
            seconds = max(0, min(moments) - clock.micros()) / clock.SECOND
            self._timer = self.call_later(seconds, self._on_timer)

    def _on_timer(self):
        self._timer = None
        self._flush_soon()

    def _note_end(self, client, number, until):
        heapq.heappush(self._ends, (until, next(self._ties), client, number))

    # waiting

    def _waiting(self):
        """Who waits, each once."""
        return dict.fromkeys(client for waiters in self._waiters.values() for client in waiters)

    def _list(self, client):
        for name in client.watch:
            self._waiters.setdefault(name, {})[client] = None

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
        for client in self._waiting():
            answer = self._given_up(client)
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

    # commands: each method returns the answer, or None

    def _run(self, client, command):
        verb, args = command
        if verb not in (protocol.ANSWER, protocol.MALFORMED_PUT):
            self.count(self.counts, figures.COUNTED_AS.get(verb, verb))
        return getattr(self, 'do_' + verb.replace('-', '_').replace(' ', '_'))(client, *args)

    def do_answer(self, client, answer):
        return answer

    def do_oversize_put(self, client):
        return protocol.JOB_TOO_BIG

    def do_malformed_put(self, client):
        self.count(self.counts, 'put')
        client.puts = True
        self.store.use_number()
        return protocol.EXPECTED_CRLF

    def do_put(self, client, priority, delay, ttr, body):
        client.puts = True
        if self.draining:
            self.store.use_number()
            return protocol.DRAINING
        try:
            number = self.store.put(client.use, priority, delay, ttr, body)
        except Refused as refused:
            return protocol.OUT_OF_MEMORY if refused.full else protocol.DRAINING
        self.count(self.counts, 'total-jobs')
        self.count(self.tube(client.use), 'total-jobs')
        self._stirred.add(client.use)
        return b'INSERTED %d\r\n' % number

    def do_reserve(self, client):
        client.works = True
        self._wait(client, None)

    def do_reserve_with_timeout(self, client, seconds):
        client.works = True
        until = None if seconds is None else self.store.now + seconds * clock.SECOND
        self._wait(client, until)

    def do_reserve_job(self, client, number):
        job = self.store.find(number)
        if job is None or self.store.state(job) == 'reserved':
            return protocol.NOT_FOUND
        client.works = True
        return self._reserved(client, self.store.reserve_job(job))

    def do_delete(self, client, number):
        held = client.held.pop(number, None)
        if held is not None:
            name = held.reservation.lent.queue
            done = self.store.finish(held.reservation, held.keys)
        else:
            job = self.store.find(number)
            name = None if job is None else job.queue.name
            done = job is not None and self.store.delete(job)
        if not done:
            return protocol.NOT_FOUND
        self.count(self.tube(name), 'cmd-delete')
        if not self.uses[name]:
            self._may_vanish(name)
        return protocol.DELETED

    def do_release(self, client, number, priority, delay):
        held = client.held.pop(number, None)
        if held is None or not self.store.release(held.reservation, held.keys, priority, delay):
            return protocol.NOT_FOUND
        self._stirred.add(held.reservation.lent.queue)
        return protocol.RELEASED

    def do_bury(self, client, number, priority):
        held = client.held.pop(number, None)
        if held is None or not self.store.bury(held.reservation, held.keys, priority):
            return protocol.NOT_FOUND
        return protocol.BURIED

    def do_touch(self, client, number):
        held = client.held.get(number)
        if held is None:
            return protocol.NOT_FOUND
        touched = self.store.touch(held.reservation, held.keys)
        if touched is None:
            del client.held[number]
            return protocol.NOT_FOUND
        until, keys = touched
        client.held[number] = Held(held.reservation, until, keys)
        self._note_end(client, number, until)
        return protocol.TOUCHED

    def do_use(self, client, name):
        former, client.use = client.use, name
        self.uses.subtract([former])
        self.uses.update([name])
        self.tube(name)
        self._may_vanish(former)
        return b'USING %s\r\n' % name.encode()

    def do_watch(self, client, name):
        if name not in client.watch:
            client.watch[name] = None
            self.uses.update([name])
        self.tube(name)
        return b'WATCHING %d\r\n' % len(client.watch)

    def do_ignore(self, client, name):
        if name in client.watch and len(client.watch) == 1:
            return protocol.NOT_IGNORED
        if name in client.watch:
            client.watch = _without(client.watch, name)
            self.uses.subtract([name])
            self._may_vanish(name)
        return b'WATCHING %d\r\n' % len(client.watch)

    def do_peek(self, client, number):
        return self._found(self.store.find(number))

    def do_peek_ready(self, client):
        return self._peek(client, self.store.ready)

    def do_peek_delayed(self, client):
        return self._peek(client, lambda queue: next(iter(self.store.delayed(queue)), None))

    def do_peek_buried(self, client):
        return self._peek(client, lambda queue: next(iter(self.store.buried(queue)), None))

    def _peek(self, client, look):
        queue = self.store.tube(client.use)
        return self._found(None if queue is None else look(queue))

    def _found(self, job):
        if job is None:
            return protocol.NOT_FOUND
        return protocol.found(b'FOUND', self.store.number(job), job.body)

    def do_kick(self, client, bound):
        count = self.store.kick(client.use, bound)
        self._stirred.add(client.use)
        return b'KICKED %d\r\n' % count

    def do_kick_job(self, client, number):
        job = self.store.find(number)
        if job is None or not self.store.kick_job(job):
            return protocol.NOT_FOUND
        self._stirred.add(job.queue.name)
        return protocol.KICKED

    def do_pause_tube(self, client, name, seconds):
        if not figures.exists(self, name):
            return protocol.NOT_FOUND
        self.store.pause(name, seconds)
        self.pauses[name] = seconds
        self.count(self.tube(name), 'cmd-pause-tube')
        self._stirred.add(name)
        return protocol.PAUSED

    def do_list_tubes(self, client):
        return protocol.chunk(protocol.listing(figures.tube_names(self)))

    def do_list_tubes_watched(self, client):
        return protocol.chunk(protocol.listing(client.watch))

    def do_list_tube_used(self, client):
        return b'USING %s\r\n' % client.use.encode()

    def do_stats(self, client):
        return protocol.chunk(protocol.mapping(figures.of_server(self)))

    def do_stats_tube(self, client, name):
        if not figures.exists(self, name):
            return protocol.NOT_FOUND
        return protocol.chunk(protocol.mapping(figures.of_tube(self, name)))

    def do_stats_job(self, client, number):
        job = self.store.find(number)
        if job is None:
            return protocol.NOT_FOUND
        ends = (other.held[number].until for other in self.clients if number in other.held)
        facts = self.store.job_facts(job, next(ends, None))
        return protocol.chunk(protocol.mapping(facts.items()))

    def do_quit(self, client):
        client.ends = True
        client.commands.clear()


def _without(names, name):
    """A dict without one of its keys; as in beanstalkd the last one takes the place of that."""
    keys = list(names)
    place, last = keys.index(name), keys.pop()
    if place < len(keys):
        keys[place] = last
    return {key: names[key] for key in keys}
