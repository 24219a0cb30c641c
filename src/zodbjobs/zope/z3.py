"""Jobs that run in their site with the principals of the interaction in which they were put.

For applications that use zope.security and zope.authentication without the user
folders of Zope.  ``from zodbjobs.zope.z3 import Job``; register it with
``<jobs:jobFactory factory="zodbjobs.zope.z3.Job" />`` to make it what every
function becomes that is put.

The interaction lasts until after the job's commit, so what hooks into that
meets the same principals.  `ParticipantsHost.remember` runs in the thread of
whoever makes the job, the rest in a worker's.
"""

import threading

import zope.component
from zope.component.hooks import getSite, setSite
from zope.interface import implementer
from zope.security.interfaces import IParticipation
from zope.security.management import (
    endInteraction,
    newInteraction,
    queryInteraction,
)

from zodbjobs.model.hosted import ParticipantsJob as Job

__all__ = ['Job', 'Participation']

_thread = threading.local()


@implementer(IParticipation)
class Participation:
    """The part that a principal takes in the interaction of a job."""

    interaction = None

    def __init__(self, principal):
        self.principal = principal


class ParticipantsHost:
    """See `zodbjobs.model.hosted`."""

    def remember(self):
        interaction = queryInteraction()
        parts = () if interaction is None else interaction.participations
        return {
            'site': getSite(),
            'participants': tuple(part.principal.id for part in parts),
        }

    def stored(self, value):
        return value

    found = result = stored

    def is_entered(self):
        return getattr(_thread, 'entered', False)

    def enter(self, job, scene):
        try:
            _thread.entered = True
            setSite(scene['site'])
            if scene['participants']:
                # Here: an application without participants needs no authentication
                from zope.authentication.interfaces import IAuthentication

                authentication = zope.component.getUtility(IAuthentication)
                newInteraction(
                    *(
                        Participation(authentication.getPrincipal(id))
                        for id in scene['participants']
                    )
                )
        except BaseException:
            self.leave(None)
            raise

    def pause(self):
        interaction = queryInteraction()
        parts = () if interaction is None else interaction.participations
        held = getSite(), [part.principal for part in parts]
        self.leave(None)
        return held

    def proceed(self, held):
        site, principals = held
        _thread.entered = True
        setSite(site)
        if principals:
            newInteraction(*map(Participation, principals))

    def leave(self, entered):
        _thread.entered = False
        if queryInteraction() is not None:
            endInteraction()
        setSite(None)


host = ParticipantsHost()
