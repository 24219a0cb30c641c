"""What each command of the protocol does.

A method of `Commands` runs one command of a client; it returns the answer, or
None where there is none (yet).  The gateway calls them, in the thread and the
transaction of a batch.
"""

from zodbjobs import clock
from zodbjobs.beanstalk import figures, protocol
from zodbjobs.beanstalk.store import Refused


class Commands:
    """The commands, for a `Gateway`, which has all that they use."""

    def run(self, client, command):
        """The answer to a command, which is counted."""
        verb, args = command
        if verb not in (protocol.ANSWER, protocol.MALFORMED_PUT):
            self.count(self.counts, figures.COUNTED_AS.get(verb, verb))
        return getattr(self, _METHODS[verb])(client, *args)

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
        client.held[number] = held._replace(until=until, keys=keys)
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
            client.watch = {**client.watch, name: None}
            self.uses.update([name])
        self.tube(name)
        return b'WATCHING %d\r\n' % len(client.watch)

    def do_ignore(self, client, name):
        if name in client.watch and len(client.watch) == 1:
            return protocol.NOT_IGNORED
        if name in client.watch:
            client.watch = without(client.watch, name)
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


def without(names, name):
    """A dict without one of its keys; as in beanstalkd the last one takes the place of that."""
    keys = list(names)
    place, last = keys.index(name), keys.pop()
    if place < len(keys):
        keys[place] = last
    return {key: names[key] for key in keys}


_METHODS = {
    name[3:].replace('_', mark): name
    for name in vars(Commands)
    if name.startswith('do_')
    for mark in '- '
}
