"""Getting an object whose class is known by reading its record once, and not twice.

``connection.get(oid)`` reads the record to learn the class, and the first use of
the object reads it again.  A reference from another object names the class, so
what is reached by one is read once; whoever has an oid and a class may do alike.

Runs in the thread of the connection.
"""


def ghost_of(connection, oid, cls):
    """The object of that oid in `connection`; nothing is read if its class is given as `cls`.

    Whether there is such an object shows when it is used: then a POSKeyError is
    raised.  Without a class (None) it is raised here.
    """
    if cls is None:
        return connection.get(oid)
    # The connection has no public way, and its reader's is what loads references.
    return connection._reader.load_persistent(oid, cls)
