"""The pages are tests: README.rst and every page of docs/ run as doctests.

Each page has a namespace of its own, made ready by `zodbjobs.testing.setUp`
and cleared by `tearDown`.  Both get the page as an object with `name` and
`globs` (the namespace), as the hooks of a doctest do.  While a page runs, what
it defines can be imported as ``page_<name>``, so its functions and classes can
be stored with a job.
"""

import sys
import types
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

from sybil import Document, Sybil
from sybil.parsers.rest import DocTestParser, SkipParser


class Page(types.ModuleType):
    """A page while it runs: a module whose names are those of the page."""

    def __init__(self, path, namespace):
        super().__init__(f'page_{Path(path).stem}')
        self.name = Path(path).name
        self.globs = namespace

    def __getattr__(self, name):
        try:
            return self.globs[name]
        except KeyError:
            raise AttributeError(f'the page {self.name} defines no {name!r}') from None


class NamedDocument(Document):
    """A document that tells its namespace where it comes from."""

    def __init__(self, text, path):
        super().__init__(text, path)
        self.namespace['__file__'] = path


def _set_up(namespace):
    from zodbjobs import testing  # here: the other tests can do without it

    page = Page(namespace['__file__'], namespace)
    namespace['__name__'] = page.__name__
    sys.modules[page.__name__] = page
    testing.setUp(page)


def _tear_down(namespace):
    from zodbjobs import testing

    page = sys.modules[namespace['__name__']]
    try:
        testing.tearDown(page)
    finally:
        del sys.modules[page.__name__]


pytest_collect_file = Sybil(
    parsers=[DocTestParser(optionflags=ELLIPSIS | NORMALIZE_WHITESPACE), SkipParser()],
    patterns=['docs/*.rst', 'README.rst'],
    document_types={'.rst': NamedDocument},
    setup=_set_up,
    teardown=_tear_down,
).pytest()
