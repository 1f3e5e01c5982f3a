"""Tasks, and how they go to the mesh in packets and come back."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, List, Optional, Tuple

from meshnode._errors import RemoteTraceback
from meshnode._jobs import Feed, Outcome, Packet, Work
from meshnode._values import Decoder, Encoder

if TYPE_CHECKING:
    from ._server import Server


class DestroyedServerError(RuntimeError):
    """The server was destroyed: it takes no tasks, and those that had not ended have no result."""


_FAILED = "An error has occured during the function execution"  # so spelled: programs look for it


class Task:
    """What submit returns: calling it waits for the result and returns it.

    Attributes:
        tid: its number in its server: 0, 1, 2, …
        group: as given to submit.
        callback, callbackargs: as given to submit.
        finished: whether it has ended, and its callback, too.
    """

    def __init__(
        self,
        server: "Server",
        tid: int,
        callback: Optional[Callable[..., Any]] = None,
        callbackargs: Tuple[Any, ...] = (),
        group: Any = "default",
    ) -> None:
        self.server = server
        self.tid = tid
        self.group = group
        self.callback = callback
        self.callbackargs = callbackargs
        self.finished = False
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._log = b""
        self._unshown = threading.Lock()  # taken for good by who prints what the task printed
        self._unfinished = threading.Lock()
        self._unfinished.acquire()

    def __repr__(self) -> str:
        return "<Task %s, group %r, %s>" % (
            self.tid,
            self.group,
            "finished" if self.finished else "not finished",
        )

    def __call__(self, raw_result: bool = False) -> Any:
        """Waits for the task and returns what its function returned.

        What the task printed is printed, the first time. If it raised: an error with its traceback is printed, the first
        time, and None is returned; with Server(raise_errors=True) the exception is raised instead.

        raw_result: the pickle of (result, what the task printed) is returned, and nothing printed.
        """
        self.wait()
        if raw_result:
            return pickle.dumps((self._value, self._text()), self.server._proto)
        self._show()
        if self._error is not None and self.server.raise_errors:
            raise self._error
        return self._value

    def wait(self) -> None:
        """Waits until the task has ended, and its callback, too."""
        while not self.finished:
            # Not without end: on some systems Ctrl-C is heard only between two waits.
            if self._unfinished.acquire(timeout=1.0):
                self._unfinished.release()

    def exception(self) -> Optional[BaseException]:
        """Waits for the task and returns the exception that it raised, or that kept it from ending; None: it returned."""
        self.wait()
        return self._error

    def _text(self) -> str:
        """What is printed for the task."""
        text = self._log.decode("utf-8", "replace")
        if self._error is not None and not self.server.raise_errors:
            cause = self._error.__cause__
            if isinstance(cause, RemoteTraceback) and cause.tb:
                why = cause.tb if cause.tb.endswith("\n") else cause.tb + "\n"
            else:
                why = "".join(traceback.format_exception_only(type(self._error), self._error))
            if text and not text.endswith("\n"):
                text += "\n"
            text += _FAILED + "\n" + why
        return text

    def _show(self) -> None:
        if self._unshown.acquire(False):
            text = self._text()
            if text and sys.stdout is not None:
                sys.stdout.write(text)
                sys.stdout.flush()

    def _end(self, value: Any, error: Optional[BaseException], log: bytes) -> None:
        """The task has ended. Called once, by the thread that reads results, which must not wait."""
        if error is not None and self.server._destroyed:
            error = DestroyedServerError("the server was destroyed before the task ended")
        self._value, self._error, self._log = value, error, log
        if self.callback is None or self.server._destroyed:
            self._finish()
        else:
            self.server._callbacks.run(self._call_back)

    def _call_back(self) -> None:
        try:
            self._show()
            assert self.callback is not None
            self.callback(*self.callbackargs + (self._value,))
        except BaseException:  # whatever it is, nobody else can be told
            traceback.print_exc()
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._unfinished.release()
        self.server._finished(self)


class TaskFeed(Feed):
    """The tasks of one function that wait to be sent."""

    def __init__(self, server: "Server", work: Work, encoder: Encoder) -> None:
        super().__init__(work)
        self.server = server
        self.encoder = encoder
        self.decoder = Decoder(encoder.bundle)
        self.tasks: Deque[Task] = deque()  # one for each call
        self.lock = (
            threading.Lock()
        )  # held from a task's place in tasks to its call's in calls, so that they agree

    def take(self, most: int) -> Optional[Packet]:
        payloads, blobs = self._pop(most)
        return TaskPacket(self, payloads, blobs, [self.tasks.popleft() for _ in payloads])


class TaskPacket(Packet):
    """Tasks that run one after another at one node."""

    __slots__ = ("feed", "tasks")

    def __init__(
        self, feed: TaskFeed, payloads: List[bytes], blobs: Tuple[bytes, ...], tasks: List[Task]
    ) -> None:
        super().__init__(feed.work, payloads, blobs)
        self.feed = feed
        self.tasks = tasks

    def end(self, outcome: Outcome) -> None:
        tasks = iter(self.tasks)
        server = self.feed.server
        seconds = outcome.run_us / 1e6 / len(self.tasks)
        results = self.feed.decoder.results(
            outcome.output, outcome.log, outcome.node_name, outcome.foreign
        )
        for value, error, log in results:
            server._count(outcome.node, outcome.node_name, seconds)
            next(tasks)._end(value, error, log)
        for task in tasks:
            raise ValueError("it has fewer results than calls")

    def fail(self, error: BaseException) -> None:
        for task in self.tasks:
            if not task.finished:
                task._end(None, error, b"")

    def singly(self) -> List[Packet]:
        return [TaskPacket(self.feed, [p], self.blobs, [t]) for p, t in zip(self.payloads, self.tasks)]
