"""Executor: concurrent.futures on the mesh."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import weakref
from typing import Any, Callable, Iterable, Iterator, Literal, Optional, TypeVar, Union

from meshnode import _client
from meshnode._client import Client, Lane, shared_client
from meshnode._errors import BrokenMesh
from meshnode._future import Future
from meshnode._jobs import Group, Jobs, Options

T = TypeVar("T")


class Executor(concurrent.futures.Executor):
    """A concurrent.futures.Executor whose calls run on the mesh: on this machine and on the others.

        with Executor() as ex:
            print(sum(ex.map(f, range(100000))))

    With no node running here, a private one is started, and ended with the program.

    Args:
        max_workers: at most so many calls run at once. None: as many as the mesh has slots.
        client: the client to use. None: one that all executors of this program share.
        data_dir: of the node to use, as of Client; not together with client.
        print_logs: what calls print is printed here when they end. It is in Future.log in any case.
        options: how calls are to run, fields of Options: timeout, retries, priority, on, not_, local_only, remote_only,
            name, spare, memory.

    Futures are those of concurrent.futures: wait() and as_completed() take them, and asyncio's run_in_executor() takes the
    executor. An exception that a call raised is raised by result() as it was, with the traceback of where it was as its
    cause, and the node's name in its attribute node. When the node is gone for good, everything that has no result fails
    with BrokenMesh, a BrokenExecutor, and the executor takes no more calls.
    """

    def __init__(
        self,
        max_workers: Optional[int] = None,
        *,
        client: Optional[Client] = None,
        data_dir: Union[None, str, "os.PathLike[str]"] = None,
        print_logs: bool = True,
        **options: Any
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if client is not None and data_dir is not None:
            raise ValueError("client and data_dir: give one of them")
        self._max_workers = max_workers
        self._client = client if client is not None else shared_client(data_dir)
        self._lane = Lane(self._client, max_workers, Options(**options).check(), print_logs)
        self._shutdown_lock = threading.Lock()
        self._shut_down = False
        self._broken: Optional[BaseException] = None
        self._breaks = self._lane.jobs.breaks
        # What it submitted goes on without it.
        self._finalizer = weakref.finalize(self, _retire, self._lane.jobs, self._lane.group)
        self._finalizer.atexit = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Calls fn(*args, **kwargs) somewhere on the mesh, and returns its future at once.

        Raises:
            ShipError: the function or an argument cannot travel; the message names it.
            NoNodeError: there is no node, and none could be started.
            BrokenMesh: the node is gone for good.
            RuntimeError: the executor was shut down.
        """
        self._check()
        return self._lane.call(fn, args, kwargs)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        ordered: bool = True,
        lazy: bool = False,
        **more: Any
    ) -> Iterator[T]:
        """Calls fn with the items of the iterables, and yields what the calls return. It makes no future for each.

        Args:
            timeout: seconds from now in which all results are to be there; then concurrent.futures.TimeoutError.
            chunksize: at least so many calls travel together, up to 512. They do so by themselves where they are short.
            ordered: False: results as they come.
            lazy: True: inputs are read as results are taken, some ahead; they may be without end.
        Raises:
            what a call raised, in its place; the calls that have not begun are dropped then.
        """
        if more.pop("buffersize", None) is not None:  # of Python 3.14
            lazy = True
        if more:
            raise TypeError("map() got an unexpected keyword argument %r" % next(iter(more)))
        self._check()
        return self._lane.function(fn).map(*iterables, timeout=timeout, chunksize=chunksize, ordered=ordered, lazy=lazy)

    def _check(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _client._exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._broken is None and self._lane.jobs.breaks != self._breaks:
            self._broken = self._lane.jobs.broken or BrokenMesh("the node went away and did not come back in time")
        if self._broken is not None:
            raise BrokenMesh(str(self._broken))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls.

        Args:
            wait: return when all calls have ended. Else they go on, and the program waits for them at its end.
            cancel_futures: cancel the calls that have not been sent to the mesh.
        """
        with self._shutdown_lock:
            self._shut_down = True
        jobs, group = self._lane.jobs, self._lane.group
        if cancel_futures:
            packets = jobs.drop_waiting(group)
            for p in packets:
                p.fail(concurrent.futures.CancelledError("the executor was shut down"))
            jobs.done(packets)
        if wait:
            jobs.wait(group)
        self._finalizer()

    def __exit__(self, kind: Any, value: Any, tb: Any) -> Literal[False]:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._lane.jobs.abandon(self._lane.group)
            self.shutdown(wait=True, cancel_futures=True)
        else:
            self.shutdown(wait=True)
        return False


def _retire(jobs: Jobs, group: Group) -> None:
    """The executor is gone; its jobs are closed when their calls have ended. May be called by the garbage collector."""
    group.retired = True
    jobs.errand(lambda: jobs.leave(group) if group.unended == 0 else None)
