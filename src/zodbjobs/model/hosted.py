"""Jobs that remember where they were made, and run as if they were there.

A host such as Zope has things around a call that are no arguments: the site,
the user, the language.  A hosted job keeps them as its `scene`, plain data, and
its host puts them up again around the call.  The host is known by its dotted
name, as functions are, and looked up when it is needed: so this module imports
none.

A host has, as functions of an object of that name::

    remember() -> scene                   what is around the caller now; plain data
    stored(value) -> value                what to keep in place of an argument
    found(value) -> value                 the argument, when it is used
    enter(job, scene) -> anything         put the scene up, in a worker's thread
    leave(entered)                        take it down; also what `enter` left half done
    pause() -> held                       take it down for a while, between two steps of a coroutine
    proceed(held)                         put up again what `pause` took down
    is_entered() -> bool                  whether this thread is in a scene

Runs where the job does: `remember` and `stored` in the application's thread,
the others in the worker's.  A class says by `needs` what a process must have (see `hosts`).
"""

import inspect

from zodbjobs.model.call import call_name, custom_repr, refuse_broken, resolved
from zodbjobs.model.hosts import NEEDS_SITE, NEEDS_ZOPE
from zodbjobs.model.job import Job


class Wrapped:
    """Stands for an object that is reached through others: itself, then what it lies in.

    `chain` is a tuple of persistent objects, the object first and the root
    last; `placed` says of each but the root whether it was found in the next
    one under its own id when this was made.
    """

    def __init__(self, chain, placed):
        self.chain = tuple(chain)
        self.placed = tuple(placed)

    def __repr__(self):
        return custom_repr(self.chain[0])


def _innermost(value):
    return value.chain[0] if isinstance(value, Wrapped) else value


class HostedJob(Job):
    """A job that is run in the scene in which it was made; see the module's text."""

    #: The dotted name, 'module:name', of the host.
    host_name: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._scene = self.host.remember()
        self._keep_storable()

    @property
    def host(self):
        """What puts the scene up.  Vanished (a LookupError) if it cannot be imported here."""
        return resolved(self.host_name)

    @property
    def scene(self):
        """What was remembered, a dict of plain values; to be replaced, not changed."""
        return self._scene

    @scene.setter
    def scene(self, scene):
        self._scene = dict(scene)

    def _keep_storable(self):
        """Keep the stored form of the call and the arguments."""
        host = self.host
        if isinstance(self._call, tuple):
            owner, name = self._call
            self._call = host.stored(owner), name
        elif not isinstance(self._call, str):
            self._call = host.stored(self._call)
        for number, arg in enumerate(self.args):
            kept = host.stored(arg)
            if kept is not arg:
                self.args[number] = kept
        for name, arg in list(self.kwargs.items()):
            kept = host.stored(arg)
            if kept is not arg:
                self.kwargs[name] = kept

    def check_args(self, jar):
        self._keep_storable()
        super().check_args(jar)

    @property
    def callable(self):
        return resolved(self._found_call(self.host.found))

    @callable.setter
    def callable(self, call):
        Job.callable.fset(self, call)
        self._keep_storable()

    def _found_call(self, found):
        call = self._call
        if isinstance(call, tuple):
            return found(call[0]), call[1]
        return call if isinstance(call, str) else found(call)

    @property
    def call_name(self):
        return call_name(self.bare_call())

    def bare_call(self):
        return self._found_call(_innermost)

    def run(self, args=(), kwargs=None):
        found = self.host.found
        call = resolved(self._found_call(found))
        given = [found(arg) for arg in self.args]
        named = {name: found(arg) for name, arg in self.kwargs.items()}
        refuse_broken(*given, *named.values(), self._retry_policy_factory)
        return self.host.result(call(*given, *args, **{**named, **(kwargs or {})}))

    def is_staged_later(self):
        call = resolved(self._found_call(self.host.found))
        return inspect.iscoroutinefunction(call)

    def setUp(self):
        return self.host.enter(self, self._scene)

    def tearDown(self, setup_info):
        # Not by way of `self`: its record may be out of reach, and the thread has to be cleared.
        resolved(type(self).host_name).leave(setup_info)


class ZopeJob(HostedJob):
    """A job of a Zope application: run as its user, in its site.  See `zodbjobs.zope`."""

    host_name = 'zodbjobs.zope.host:host'
    needs = NEEDS_ZOPE

    def run_as(self, user_id, folder=None):
        """Have it run as another user; returns the job.

        `user_id` is the id of a user of the user folder `folder` (default: the
        one of the site).  Raises Unauthorized unless the current user has the
        permission 'zodbjobs: Run as another user' there, and LookupError for a
        user who is not there.
        """
        self.scene = self.host.scene_of_user(self, user_id, folder)
        return self


class ParticipantsJob(HostedJob):
    """A job that is run in its site with the principals of its interaction, by zope.security.

    See `zodbjobs.zope.z3`.
    """

    host_name = 'zodbjobs.zope.z3:host'
    needs = NEEDS_SITE

    @property
    def site(self):
        """The site it runs in (a persistent object), or None."""
        return self._scene['site']

    @site.setter
    def site(self, site):
        self._scene = {**self._scene, 'site': site}

    @property
    def participants(self):
        """The ids of the principals it runs with, a tuple."""
        return self._scene['participants']

    @participants.setter
    def participants(self, ids):
        self._scene = {**self._scene, 'participants': tuple(ids)}
