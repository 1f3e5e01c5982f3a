"""Client: calls, values and jobs on the mesh of this machine's node."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
import types
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, TypeVar, Union

from meshnode import _connection as wire
from meshnode._connection import Lost, default_data_dir, read_address
from meshnode._detached import DetachedJob, submit
from meshnode._errors import MeshError, NoNodeError
from meshnode._future import Future
from meshnode._jobs import (
    PACKET_CALLS,
    Call,
    Calls,
    Group,
    Jobs,
    Options,
    Program,
)
from meshnode._map import Map
from meshnode._private import PrivateNode
from meshnode._ship import Bundle, Caller, ShipError, ship
from meshnode._values import Decoder, Encoder, Ref, store

T = TypeVar("T")

_ATOMS = frozenset((int, float, bool, type(None), complex))
_SMALL = 1 << 10
_ALIKE = 2
_FUNCTIONS = 256
"""So many functions are remembered with their jobs; a program that makes more of them ships them again."""


class Function:
    """A function that is to run on the mesh, with how it is to run. Client.function() makes it; it may be used by several threads."""

    def __init__(self, lane: "Lane", bundle: Bundle, options: Options) -> None:
        jobs = lane.jobs
        self._lane = lane
        self._jobs = jobs
        self.options = options
        self._lock = threading.Lock()  # guards the encoder, and that what follows belongs together
        self._use(bundle)

    def _use(self, bundle: Bundle) -> None:
        jobs, lane = self._jobs, self._lane
        self._work = jobs.work(lane.group, Program(bundle.data, bundle.runtime, bundle.name), self.options)
        self._encoder = Encoder(bundle, jobs.put)
        self._decoder = Decoder(bundle, lane.client.allow)
        self._feed = Calls(jobs, self._work, self._decoder, lane.print_log)
        self.bundle = bundle

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Calls it with these arguments somewhere on the mesh.

        Raises:
            ShipError: an argument cannot travel.
            NoNodeError, BrokenMesh: there is no node.
        """
        return self.call(args, kwargs)

    def call(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Future[Any]:
        """submit(*args, **kwargs)."""
        with self._lock:
            payload, blobs = self._encoder.call(args, kwargs)
            while self.bundle.lacks():  # another job, whose program has what these arguments need
                self._use(self.bundle.grown())
                payload, blobs = self._encoder.call(args, kwargs)
            feed = self._feed
        future: Future[Any] = Future(feed)
        self._jobs.submit(feed, payload, blobs, future)
        return future

    def _grow_for(self, args: Tuple[Any, ...]) -> None:
        """Has the program grow with what calls like this one need."""
        with self._lock:
            while True:
                try:
                    Encoder(self.bundle, lambda part: bytes(32)).call(args, {})
                except ShipError:
                    return  # it is told of in its place
                if not self.bundle.lacks():
                    return
                self._use(self.bundle.grown())

    def map(
        self,
        *iterables: Iterable[Any],
        timeout: Optional[float] = None,
        chunksize: int = 1,
        ordered: bool = True,
        lazy: bool = False
    ) -> Iterator[Any]:
        """As Client.map, of this function."""
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        began = time.monotonic()
        inputs: Iterator[Tuple[Any, ...]] = zip(*iterables)
        try:
            first = next(inputs, None)
        except Exception as e:
            inputs = _raising(e)
        else:
            if first is not None:
                self._grow_for(first)
                inputs = itertools.chain((first,), inputs)
                del first
        run = Map(
            self._jobs,
            self._work,
            inputs,
            Encoder(self.bundle, self._jobs.put),  # of its own: it may be used for long, and by one thread
            self._decoder,
            self._lane.print_log,
            ordered,
            min(chunksize, PACKET_CALLS),
        )
        if not lazy:
            run.feed()
            if run.input_error is not None:
                run.stop()
                raise run.input_error
            return run.results(timeout, began, None)
        run.feed(self._window())
        return run.results(timeout, began, self._window)

    def _window(self) -> int:
        """How many inputs a lazy map() reads ahead: enough for all slots, and little to lose."""
        return max(64, min(64 << 10, 8 * self._jobs.slots * self._work.size))


def _raising(error: Exception) -> Iterator[Tuple[Any, ...]]:
    """Inputs that raise at once."""
    raise error
    yield ()


class Lane:
    """The calls of a client or of an executor, which end together."""

    def __init__(self, client: "Client", limit: Optional[int], options: Options, print_logs: bool) -> None:
        self.client = client
        self.jobs: Jobs = client._jobs
        self.group = Group(limit)
        self.options = options
        self.print_logs = print_logs
        self._functions: Dict[Any, Function] = {}
        self._alike: Dict[types.CodeType, int] = {}  # how many functions there were with the same code
        self._callers: Dict[str, Function] = {}  # for those of which there were more, by name

    def function(self, fn: Callable[..., Any]) -> Function:
        """The function with the usual options."""
        known = self._functions.get(fn) if type(fn) in _REMEMBERED else None
        if known is not None and self.jobs.broken is None and known.bundle.current():
            return known
        self.client._ready()
        made = Function(self, ship(fn), self.options)
        if type(fn) in _REMEMBERED:
            while len(self._functions) >= _FUNCTIONS:
                self._functions.pop(next(iter(self._functions)), None)
            self._functions[fn] = made
        return made

    def call(self, fn: Callable[..., Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Future[Any]:
        """Calls fn with the usual options."""
        if type(fn) is types.FunctionType and fn not in self._functions:
            # A loop that makes a function at each turn: from the third on they travel as arguments of one job.
            seen = self._alike.get(fn.__code__, 0)
            if seen >= _ALIKE:
                made = self._callers.get(fn.__qualname__)
                if made is None or self.jobs.broken is not None:
                    self.client._ready()
                    made = self._callers[fn.__qualname__] = Function(self, ship(Caller(fn.__qualname__)), self.options)
                return made.call((fn, *args), kwargs)
            while len(self._alike) >= _FUNCTIONS:
                self._alike.pop(next(iter(self._alike)), None)
            self._alike[fn.__code__] = seen + 1
        return self.function(fn).call(args, kwargs)

    def print_log(self, log: bytes) -> None:
        """Writes what calls printed where this program prints."""
        out = sys.stdout
        if self.print_logs and out is not None:
            try:
                out.write(log.decode("utf-8", "replace"))
                out.flush()
            except (OSError, ValueError):
                pass  # closed: nobody wants to see it


_REMEMBERED = (types.FunctionType, types.BuiltinFunctionType, type)


class Client:
    """A connection to the node of this machine, and through it to the mesh.

    With no node running here, a private one is started with the first call, and ended with this program.

    Args:
        data_dir: the data directory of the node to use. None: MESHNODE_DATA_DIR, or the usual place. If one is given here,
            no private node is started.
        private: True: always a private node; False: never.
        slots: of a private node: how many calls run at once. None: one for each processor.
        patience: seconds that a node which went away has to come back, before what is not answered fails with BrokenMesh.
        print_logs: what calls print is printed here when they end. It is in Future.log in any case.
        allow: names of modules whose classes may be in results that come from other people's nodes, besides those that are
            known to be harmless; "mypackage" means also what is below it.

    All methods may be called from several threads. It is a context manager: leaving it waits for all calls, and closes it.
    After os.fork() the child has a client of its own, with none of the parent's calls.
    """

    def __init__(
        self,
        data_dir: Union[None, str, "os.PathLike[str]"] = None,
        *,
        private: Optional[bool] = None,
        slots: Optional[int] = None,
        patience: float = wire.PATIENCE,
        print_logs: bool = True,
        allow: Iterable[str] = ()
    ) -> None:
        if data_dir is not None and private:
            raise ValueError("data_dir and private: a private node has a directory of its own")
        if data_dir is not None:
            private = False
        self._given_private = private
        self.allow = tuple(allow)
        self._slots = slots
        self._node: Optional[PrivateNode] = None
        self._secret: Optional[str] = None  # that admits a private node at these places
        self._places: Tuple[str, ...] = ()
        self._ready_lock = threading.Lock()
        self._started = False
        self._closed = False
        self._jobs = Jobs(Path(data_dir) if data_dir is not None else default_data_dir(), patience, self._revive)
        self._lane = Lane(self, None, Options(), print_logs)
        _clients.add(self)

    # Finding the node.

    def _ready(self) -> None:
        """Has a node, and a connection to it. Raises NoNodeError, RuntimeError."""
        jobs = self._jobs
        if self._started and jobs.broken is None:
            return
        if _exiting:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._closed:
            raise RuntimeError("this client was closed")
        with self._ready_lock:
            if self._node is None and self._given_private is not False and not (self._given_private is None and self._found()):
                self._node = PrivateNode(self._slots, self._secret, self._places)
                jobs.connection.data_dir = self._node.data_dir
                jobs.alone = not self._places
            jobs.start()
            self._started = True

    def _found(self) -> bool:
        """Whether a node runs in the data directory."""
        try:
            s, _ = wire.connect(self._jobs.connection.data_dir, 5.0)
        except Lost:
            return False
        s.close()
        return True

    def _revive(self) -> None:
        node = self._node
        if node is not None and node.revive():
            self._jobs.connection.data_dir = node.data_dir

    @property
    def data_dir(self) -> Path:
        """The data directory of the node that is used."""
        return self._jobs.connection.data_dir

    # Calls.

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Calls fn(*args, **kwargs) somewhere on the mesh, and returns its future at once.

        Raises:
            ShipError: the function or an argument cannot travel; the message names it.
            NoNodeError: there is no node.
            RuntimeError: the client was closed.
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
        lazy: bool = True
    ) -> Iterator[T]:
        """Calls fn with the items of the iterables, and yields what the calls return.

        Args:
            timeout: seconds from now in which all results are to be there; then concurrent.futures.TimeoutError.
            chunksize: at least so many calls travel together, up to 512. They do so by themselves where they are short.
            ordered: False: results as they come.
            lazy: inputs are read as results are taken, some ahead; they may be without end. False: all are read now.
        Raises:
            what a call raised, in its place; the calls that have not begun are dropped then.
        """
        self._check()
        return self._lane.function(fn).map(*iterables, timeout=timeout, chunksize=chunksize, ordered=ordered, lazy=lazy)

    def function(
        self,
        fn: Callable[..., Any],
        *,
        depfuncs: Iterable[Any] = (),
        modules: Iterable[str] = (),
        globals: Optional[Mapping[str, Any]] = None,
        **options: Any
    ) -> Function:
        """The function, shipped, for many calls or for calls with options.

        Args:
            depfuncs: functions and classes to take along besides those that are found.
            modules: names of modules to import for it: "math", "numpy as np".
            globals: names that it is to have besides.
            options: fields of Options: timeout, retries, priority, on, not_, local_only, remote_only, name, spare, memory.
        Raises:
            ShipError, NoNodeError; TypeError and ValueError for options.
        """
        self._check()
        made = Options(**options).check()
        bundle = ship(fn, depfuncs, modules, globals)
        self._ready()
        return Function(self._lane, bundle, made)

    def put(self, obj: Any) -> Ref:
        """Sends a value to the mesh once, and returns what to give to calls in its place: they get the value.

        Large arguments go only once by themselves; what this saves is to look at them again for each call.

        Raises ShipError, NoNodeError.
        """
        self._check()
        self._ready()
        parts, needs = store(obj)
        return Ref(self._jobs.put(parts), sum(memoryview(p).nbytes for p in parts), needs)

    # The mesh.

    def nodes(self) -> List[Dict[str, Any]]:
        """The nodes of the mesh, this machine's first, as `meshnode peers --json` has them: id, name, state, slots, runtimes, …"""
        self._check()
        self._ready()
        nodes: List[Dict[str, Any]] = self._jobs.connection.persist("GET", "/v1/peers")
        return nodes

    def wait_for_nodes(self, n: int, timeout: Optional[float] = None) -> List[Dict[str, Any]]:
        """Waits until n nodes, this machine's counted, are connected and can run Python; returns them.

        Args:
            timeout: seconds; then TimeoutError. None: without end.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            there = [
                p
                for p in self.nodes()
                if p["state"] in ("self", "connected") and any(r.startswith("python") for r in p["runtimes"])
            ]
            if len(there) >= n:
                self._jobs.look()
                return there
            if end is not None and time.monotonic() > end:
                raise TimeoutError("%d of %d nodes after %g s" % (len(there), n, timeout or 0))
            time.sleep(0.05)

    def jobs(self) -> List[Dict[str, Any]]:
        """The jobs of the node, newest first, as `meshnode jobs --json` has them: id, name, state, tasks, done, failed, …"""
        self._check()
        self._ready()
        jobs: List[Dict[str, Any]] = self._jobs.connection.persist("GET", "/v1/jobs")
        return jobs

    def set_local_limit(self, n: Optional[int]) -> None:
        """At most n calls of this client run on this machine at once, from now on; None: no limit but the node's."""
        self._check()
        self._ready()
        self._jobs.set_local_limit(self._lane.group, n)

    def submit_detached(
        self, fn: Callable[..., Any], *iterables: Iterable[Any], chunksize: int = 1, **options: Any
    ) -> DetachedJob:
        """Calls fn with the items of the iterables, as a job that goes on when this program ends.

        It returns when all of it is on the node's disk. A private node has no detached jobs: it ends with the program.

        Args:
            chunksize: so many calls are a task.
            options: as of function().
        Raises:
            ShipError, NoNodeError, NodeError.
        """
        self._check()
        made = Options(**options).check()
        bundle = ship(fn)
        self._ready()
        if self._node is not None:
            raise MeshError("a private node ends with this program, and so do its jobs: start one with meshnode up -d")
        encoder = Encoder(bundle, self._jobs.put)
        calls = [encoder.call(args, {}) for args in zip(*iterables)]
        work = self._jobs.work(self._lane.group, Program(bundle.data, bundle.runtime, bundle.name), made)
        return submit(self._jobs, work, calls, max(1, chunksize), Decoder(bundle, self.allow))

    def job(self, ident: str) -> DetachedJob:
        """A job by its id, the first digits of one, or "@last"; also one that another run of a program submitted.

        Raises NodeError if there is none.
        """
        self._check()
        self._ready()
        info = self._jobs.connection.persist("GET", wire.job_path(ident))
        return DetachedJob(self._jobs, info["id"], Decoder(None, self.allow))

    # The end.

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError("this client was closed")

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Waits until all calls that were submitted have ended; False if they have not after timeout seconds."""
        return self._jobs.wait(self._lane.group, timeout)

    def close(self, wait: bool = True) -> None:
        """Ends the client: waits for its calls, closes its jobs, and ends its private node.

        wait: False: calls that have not ended fail with BrokenMesh.
        """
        if self._closed:
            return
        if wait and self._started:
            self._jobs.wait(self._lane.group)
        self._closed = True
        _clients.discard(self)
        self._jobs.close(cancel=not wait)
        if self._node is not None:
            self._node.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: Any, value: Any, tb: Any) -> None:
        self.close(wait=kind is None or not issubclass(kind, KeyboardInterrupt))

    def _forget(self) -> None:
        """In a child that was forked."""
        self._ready_lock = threading.Lock()
        self._jobs.forget()
        self._lane.group = Group(self._lane.group.limit)
        self._lane._functions.clear()
        if self._node is not None:
            # It lives as long as the parent, and serves its children as well.
            self._node.forget()
            self._node = None
            self._given_private = False
        self._started = False


_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()
_shared: Dict[str, Client] = {}
_shared_lock = threading.Lock()
_exiting = False


def shared_client(data_dir: Union[None, str, "os.PathLike[str]"] = None) -> Client:
    """The client that all executors of this program use."""
    key = str(data_dir) if data_dir is not None else ""
    with _shared_lock:
        client = _shared.get(key)
        if client is None or client._closed:
            client = _shared[key] = Client(data_dir)
        return client


def _interrupted() -> bool:
    """Whether the program ends because of Ctrl-C."""
    kind = getattr(sys, "last_type", None)
    return isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _exit() -> None:
    """At the end of the program: what was submitted is finished, as concurrent.futures does it; after Ctrl-C it is dropped."""
    global _exiting
    _exiting = True
    drop = _interrupted()
    for client in list(_clients):
        try:
            if client._started and not drop:
                for group in client._jobs.groups():
                    client._jobs.wait(group)
        except KeyboardInterrupt:
            drop = True
        client.close(wait=False)


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for client in list(_clients):
        client._forget()


if hasattr(threading, "_register_atexit"):
    threading._register_atexit(_exit)  # before threads are waited for, as concurrent.futures does
else:
    atexit.register(_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
