"""A layer for zope.testrunner and plone.testing.

``JobsLayer(bases=(MY_FUNCTIONAL_TESTING,), name='...')`` has for each test, as
``layer['jobs']``, a `zodbjobs.testing.Layer` on the database ``layer['zodbDB']``
that the bases give the test, or on one of its own if they give none.  The bases
must let tests commit: "functional" ones do, "integration" ones do not.
"""

from zodbjobs import testing


class JobsLayer:
    """See the module's text.

    `bases` are layers; `name` is for reports; `database` is the name of the
    resource of the bases that is the ZODB.DB; `size` is how many jobs run at a
    time.
    """

    def __init__(self, bases=(), name='Jobs', module=None, database='zodbDB', size=1):
        self.__bases__ = tuple(bases)
        self.__name__ = name
        self.__module__ = __name__ if module is None else module
        self.database = database
        self.size = size
        self._jobs = None

    def setUp(self):
        """Nothing is shared by tests."""

    tearDown = setUp

    def testSetUp(self):
        self._jobs = testing.Layer(db=self.get(self.database), size=self.size)

    def testTearDown(self):
        jobs, self._jobs = self._jobs, None
        jobs.close()

    def get(self, name, default=None):
        """A resource: 'jobs', or one of the bases'."""
        if name == 'jobs' and self._jobs is not None:
            return self._jobs
        for base in self.__bases__:
            found = base.get(name) if hasattr(base, 'get') else None
            if found is not None:
                return found
        return default

    def __getitem__(self, name):
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        return found
