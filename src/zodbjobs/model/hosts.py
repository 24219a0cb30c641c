"""What jobs need around them that not every process has, and what this process has.

A job of Zope can only be run where a Zope was started, with its products and its
configuration.  So what a job needs is a bit of its group, beside which jobs
without needs cost nothing, and whoever claims passes by at the groups that need
what his process has not: those jobs wait for a worker that can run them.

Asked in any thread; imports nothing and touches no database.
"""

import sys

#: Bits of a group's kind, beside those of `ready`.  They are stored: their meaning stays.
NEEDS_ZOPE, NEEDS_SITE = 4, 8

#: All bits that mean a need, those of later releases as well: they are never here.
NEEDS = ~0b11

#: For who takes jobs and does not run them by their functions: a consumer of claims.
ALL = -1


def _has_zope():
    return getattr(sys.modules.get('Zope2'), 'DB', None) is not None


def _has_site():
    return 'zodbjobs.zope.z3' in sys.modules  # with it, the application's configuration


#: (bit, whether it is here, what is needed, what to do where nobody has it)
HOSTS = (
    (
        NEEDS_ZOPE,
        _has_zope,
        'a Zope',
        'start a worker with "zodbjobs run --zope CONF", or an instance that runs jobs itself',
    ),
    (
        NEEDS_SITE,
        _has_site,
        'zodbjobs.zope.z3 and what configures it',
        'start a worker with "zodbjobs run --zcml FILE" or "--path MODULE" that imports it',
    ),
)


def here():
    """The bits of what this process has."""
    found = 0
    for bit, is_here, *_ in HOSTS:
        if is_here():
            found |= bit
    return found


def missing(needs, there):
    """The bits of `needs` (or of a group's kind) that are not among those that are `there`."""
    return needs & NEEDS & ~there


def in_words(needs):
    """(what, what to do) for bits of what is needed."""
    for bit, _, what, advice in HOSTS:
        if needs & bit:
            return what, advice
    return 'what a later release of zodbjobs has', 'start a worker of that release'
