"""Messages: jobs whose work is bytes.

What the bytes mean is the business of whoever takes the message: a consumer,
in any language, that claims it, or the function that the queue names as its
`handler`, which agents call with the body.  A queue without a handler leaves its
messages to consumers.  What is on the wire never names code.

Runs in any thread, on objects of that thread's connection, in the caller's
transaction.
"""

from persistent import Persistent

from zodbjobs import status
from zodbjobs.model.call import resolved, stored_form
from zodbjobs.model.job import Job
from zodbjobs.model.wishes import check_factory

#: A job's record is written several times, so a longer body has a record of its own.
INLINE_BYTES = 512


class Body(Persistent):
    """The bytes of a large message.  Its record is written once."""

    def __init__(self, content):
        self.content = content

    def __repr__(self):
        return f'<Body of {len(self.content)} bytes>'


class Message(Job):
    """A job whose work is `body`, bytes."""

    is_message = True

    def __init__(self, body):
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise TypeError(
                f'the body of a message is bytes, not {type(body).__name__}: encode it, or put a'
                f' Job if there is something to call'
            )
        body = bytes(body)
        self._args = (body if len(body) <= INLINE_BYTES else Body(body),)

    @property
    def body(self):
        held = (self.__dict__.get('_v_args') or self._args)[0]
        return held.content if isinstance(held, Body) else held

    @property
    def callable(self):
        """The handler of the queue, or None."""
        queue = self.queue
        return None if queue is None or queue.handler is None else resolved(queue.handler)

    @callable.setter
    def callable(self, call):
        raise AttributeError('a message has no callable of its own: set the handler of its queue')

    @property
    def call_name(self):
        return 'message'

    def run(self, args=(), kwargs=None):
        """Call the handler of the queue with the body: user code."""
        handler = self.callable
        if handler is None:
            raise LookupError(
                f'queue {getattr(self.queue, "name", None)!r} has no handler for {self!r}:'
                f" set queue.handler = 'package.module:function', or claim it with a consumer"
            )
        return handler(self.body)

    def check_args(self, jar):
        if self._status == status.NEW and type(self.body) is not bytes:
            raise TypeError(f'the body of a message is bytes, not {self.body!r}')
        check_factory(self._retry_policy_factory, jar)
        for callback in self._callbacks:
            callback.check_args(jar)


def checked_handler(handler):
    """The handler as text 'package.module:function', from that or from a function; None stays."""
    if handler is None:
        return None
    if callable(handler):
        handler = stored_form(handler)
    if not isinstance(handler, str) or handler.count(':') != 1 or not all(handler.split(':')):
        raise TypeError(
            f"handler is a text like 'package.module:function', or such a function, not {handler!r}"
        )
    return handler
