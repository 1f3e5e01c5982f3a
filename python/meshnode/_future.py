"""Futures that cost little: a program makes tens of thousands of them in a second."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, Callable, List, Optional, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from meshnode._jobs import Calls, Packet

    _Base = concurrent.futures.Future
elif hasattr(concurrent.futures.Future, "__class_getitem__"):
    _Base = concurrent.futures.Future
else:

    class _Base(concurrent.futures.Future):
        """concurrent.futures.Future, which cannot be subscripted before Python 3.9."""

        def __class_getitem__(cls, item):
            return cls


class Future(_Base[T]):
    """The result of a call that may not have ended yet: a concurrent.futures.Future, good for wait() and as_completed().

    Its condition, the costly part, is made when somebody first waits. What ends it takes `_open` out of its
    dictionary, which only one can. It writes the state before it looks whether there is a condition; who waits makes the
    condition before looking at the state: so one of them sees the other.

    Attributes:
        node: name of the node that ran the call, "" before it has ended or if none did.
        log: what the call wrote to its standard output and standard error, as text.
    """

    node: str = ""
    _log: bytes = b""

    def __init__(self, feed: Optional["Calls"] = None) -> None:
        # In place of super().__init__: the same attributes.
        self._state = PENDING
        self._result: Any = None
        self._exception: Optional[BaseException] = None
        self._waiters: List[Any] = []
        self._done_callbacks: List[Callable[[Any], object]] = []
        self._open = True
        self._feed = feed
        self._packet: Optional["Packet"] = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        try:
            return self.__dict__["_made"]  # type: ignore[no-any-return]
        except KeyError:
            return self.__dict__.setdefault("_made", threading.Condition())  # type: ignore[no-any-return]

    @property
    def log(self) -> str:
        """What the call wrote to its standard output and standard error; "" before it has ended."""
        return self._log.decode("utf-8", "replace")

    def result(self, timeout: Optional[float] = None) -> T:
        """Waits for the call and returns what it returned, or raises what it raised.

        Args:
            timeout: seconds to wait, None: without end. Then concurrent.futures.TimeoutError is raised.
        Raises:
            CancelledError: the call was cancelled.
            TaskError: it could not be run to its end. BrokenMesh: the node is gone.
        """
        if self._state == FINISHED and self._exception is None:
            return self._result  # type: ignore[no-any-return]
        return super().result(timeout)

    def cancel(self) -> bool:
        """Cancels the call, unless it has ended. Returns whether it is cancelled.

        A call that runs already is ended where it runs, if no other calls share its process at that moment; else its
        result is dropped.
        """
        if self.__dict__.pop("_open", None) is None:
            return self._state == CANCELLED_AND_NOTIFIED
        self._state = CANCELLED_AND_NOTIFIED
        self._ended()
        feed = self._feed
        if feed is not None:
            feed.jobs.cancelled(self, feed.work.group)
        self._feed = self._packet = None
        return True

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._state == CANCELLED_AND_NOTIFIED

    def done(self) -> bool:
        """Whether the call has ended, or was cancelled."""
        return self._state in (FINISHED, CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether the call was handed to the mesh and has not ended."""
        return self._state == RUNNING or self._state == PENDING and self._packet is not None

    def set_running_or_notify_cancel(self) -> bool:
        """As concurrent.futures has it, for executors and tests."""
        if self._state == PENDING:
            self._state = RUNNING
            return True
        return super().set_running_or_notify_cancel()

    def set_result(self, result: Any) -> None:
        """As concurrent.futures has it, for executors and tests."""
        if not self.finish(result, None):
            raise concurrent.futures.InvalidStateError("%s: %r" % (self._state, self))

    def set_exception(self, exception: Optional[BaseException]) -> None:
        """As concurrent.futures has it, for executors and tests."""
        if not self.finish(None, exception):
            raise concurrent.futures.InvalidStateError("%s: %r" % (self._state, self))

    def finish(self, result: Any, exception: Optional[BaseException]) -> bool:
        """Ends the future, if nothing has yet. Says whether this did."""
        d = self.__dict__
        if d.pop("_open", None) is None:
            return False
        self._packet = self._feed = None
        self._result = result
        self._exception = exception
        self._state = FINISHED
        if "_made" in d:
            self._ended()
        return True

    def _ended(self) -> None:
        """Tells those who wait that the state is final."""
        if "_made" not in self.__dict__:
            return
        with self._condition:
            for w in self._waiters:
                if self._state == CANCELLED_AND_NOTIFIED:
                    w.add_cancelled(self)
                elif self._exception is not None:
                    w.add_exception(self)
                else:
                    w.add_result(self)
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]
