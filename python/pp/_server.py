"""Server: Parallel Python's execution server, which here is the mesh."""

from __future__ import annotations

import atexit
import ipaddress
import linecache
import os
import pickle
import re
import sys
import threading
import time
import types
import weakref
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from meshnode._client import Client, _clients
from meshnode._connection import Lost
from meshnode._errors import MeshError, NodeError
from meshnode._jobs import Options, Program
from meshnode._ship import Bundle, ship
from meshnode._values import Encoder

from ._callbacks import Callbacks
from ._processors import detect
from ._stats import Statistics, table
from ._task import DestroyedServerError, Task, TaskFeed

version = "1.7.9"
"""Of Parallel Python's interface: what programs ask for that work with some versions only."""

_CONNECT_SECONDS = 3.0
"""A node of ppservers that does not answer for so long is not waited for."""

_FEEDS = 512
"""So many functions are remembered. One that is forgotten is shipped again with its next task."""


class Server:
    """Runs functions on this machine's processors and on the other nodes of the mesh.

    With a node of meshnode running here, that is its mesh. With none, a private node is started, which ends with the
    program.

    Args:
        ncpus: how many of this server's tasks run on this machine at once; 0: none; "autodetect": as many as this process
            may use processors.
        ppservers: other nodes to work with: "host", "host:port", or members of the mesh by name; "*" or "10.0.*.*" stand for
            those that are found in the local network. What is not there is said on standard error.
        secret: admits to the nodes of ppservers that have the same (ppserver -s, meshnode up --secret-file): 16 characters or
            more, unless they are on this machine. It is proven to them, and not sent. None: they are members of the mesh already.
        restart, proto, socket_timeout: taken for the sake of old programs. proto is the pickle protocol of raw results.
        raise_errors: calling a task raises what the task raised, instead of printing it and returning None.
    Raises:
        TypeError, ValueError: an argument is not what it should be.
        ConnectionError: ncpus is 0, and none of ppservers is there.
        meshnode.NoNodeError: there is no node, and none can be started.
    """

    default_port = 60000
    default_secret = None  # there is none: it would be public

    def __init__(
        self,
        ncpus: Union[int, str] = "autodetect",
        ppservers: Tuple[str, ...] = (),
        secret: Optional[str] = None,
        restart: bool = False,
        proto: int = 2,
        socket_timeout: float = 3600,
        *,
        raise_errors: bool = False,
    ) -> None:
        count = _processors(ncpus)
        if not isinstance(ppservers, tuple):
            raise TypeError("ppservers must be a tuple of strings, not %s" % type(ppservers).__name__)
        places = [_place(p) for p in ppservers]
        if secret is not None and not isinstance(secret, str):
            raise TypeError("secret must be a string, not %s" % type(secret).__name__)
        self.ppservers = ppservers
        self.raise_errors = raise_errors
        self._proto = proto if isinstance(proto, int) and 0 <= proto <= pickle.HIGHEST_PROTOCOL else 2
        self._ncpus = count
        self._begun = time.time()
        self._lock = threading.Lock()  # guards what follows, down to the statistics
        self._tid = 0
        self._active: Dict[Any, int] = {}  # how many tasks of each group have not ended
        self._stats: Dict[str, Statistics] = {"local": Statistics(count)}
        self._labels: Dict[str, str] = {}  # of other nodes in the statistics, by peer id
        self._named: Dict[str, str] = {}  # addresses by which the program named nodes, by peer id
        self._inserted = 0
        self._self = ""  # peer id of the node here
        self._private = True
        self._ended = threading.Condition(self._lock)  # told when the last task of a group ended
        self._waiting = 0  # threads in wait()
        self._destroyed = False
        self._callbacks = Callbacks()
        self._feeds: Dict[int, Tuple[Bundle, TaskFeed]] = (
            {}
        )  # by the id of the bundle, which is kept for that
        self._feed_of: Dict[Any, TaskFeed] = {}  # by work
        self._resize = threading.Lock()  # one set_ncpus after another
        self._secret = secret
        self._client = Client(slots=max(1, count), print_logs=False)
        if secret is not None and places:  # should a private node be needed
            self._client._secret = secret
            self._client._places = _peers(places)
        _clients.discard(
            self._client
        )  # as with pp, what has not ended when the program does is not waited for
        self._finalizer = weakref.finalize(self, _collected, self._client)
        self._finalizer.atexit = False
        _servers.add(self)
        try:
            self._client._ready()
            self._private = self._client._node is not None and secret is None  # nobody else will be there
            status = self._client._jobs.connection.persist("GET", "/v1/status")
            self._self = str(status["id"])
            self._limit(count)
            self._connect(places)
        except BaseException:
            self.destroy()
            raise

    # Tasks.

    def submit(
        self,
        func: Callable[..., Any],
        args: Tuple[Any, ...] = (),
        depfuncs: Tuple[Any, ...] = (),
        modules: Tuple[str, ...] = (),
        callback: Optional[Callable[..., Any]] = None,
        callbackargs: Tuple[Any, ...] = (),
        group: Any = "default",
        globals: Optional[Dict[str, Any]] = None,
    ) -> Task:
        """Lets func(*args) run somewhere on the mesh, and returns its task at once.

        Args:
            func: a function, method, class or other callable. Its source travels, with what it uses.
            args: its arguments; instances of the program's classes and functions may be among them.
            depfuncs: functions and classes that it uses. Those that it names are found without.
            modules: modules to import for it: "math", "os.path", "numpy as np", "from a import b as c". The same.
            callback: is called with callbackargs and the result in a thread of this program, before the task counts as
                finished.
            group: a name for wait().
            globals: names that func is to have: of these, modules are imported for it, and functions shipped.
        Raises:
            DestroyedServerError: the server was destroyed.
            TypeError: an argument is not of the type above, or cannot travel; the message names it.
        """
        self._check()
        if not isinstance(args, tuple):
            raise TypeError("args must be a tuple, not %s" % type(args).__name__)
        if not isinstance(depfuncs, tuple):
            raise TypeError("depfuncs must be a tuple, not %s" % type(depfuncs).__name__)
        if not isinstance(modules, tuple):
            raise TypeError("modules must be a tuple of strings, not %s" % type(modules).__name__)
        if not isinstance(callbackargs, tuple):
            raise TypeError("callbackargs must be a tuple, not %s" % type(callbackargs).__name__)
        for module in modules:
            if not isinstance(module, str):
                raise TypeError("modules must be strings, and %r is not" % (module,))
        if globals is not None and not isinstance(globals, dict):
            raise TypeError("globals must be a dict, not %s" % type(globals).__name__)
        if not callable(func):
            raise TypeError("func must be callable, and %r is not" % (func,))
        for depfunc in depfuncs:
            if not callable(depfunc):
                raise TypeError("depfuncs must be functions and classes, and %r is not" % (depfunc,))
        func, args, depfuncs = _unbound(func, args, depfuncs)
        bundle = ship(func, depfuncs, modules, globals)
        while True:
            feed = self._feed(bundle)
            with feed.lock:
                payload, blobs = feed.encoder.call(args, {})
                if feed.encoder.bundle.lacks():
                    bundle = feed.encoder.bundle.grown()  # it has what these arguments need
                    continue
                task = self._task(callback, callbackargs, group)
                feed.tasks.append(task)
                self._client._jobs.add(feed, ((payload, blobs),), 1, len(payload))
            return task

    def _task(self, callback: Optional[Callable[..., Any]], callbackargs: Tuple[Any, ...], group: Any) -> Task:
        """The next task."""
        with self._lock:
            self._check()
            task = Task(self, self._tid, callback, callbackargs, group)
            self._tid += 1
            self._active[group] = self._active.get(group, 0) + 1
        return task

    def _check(self) -> None:
        if self._destroyed:
            raise DestroyedServerError("the server was destroyed: make a new one to submit tasks")

    def _feed(self, bundle: Bundle) -> TaskFeed:
        """Where the calls of a function wait. Its bundle is at the node when this returns."""
        with self._lock:
            known = self._feeds.get(id(bundle))
        if known is not None:
            return known[1]
        client = self._client
        work = client._jobs.work(
            client._lane.group, Program(bundle.data, bundle.runtime, bundle.name), Options()
        )
        with self._lock:
            feed = self._feed_of.get(work)
            if feed is None:
                while len(self._feed_of) >= _FEEDS:
                    self._feed_of.pop(next(iter(self._feed_of)))
                feed = self._feed_of[work] = TaskFeed(self, work, Encoder(bundle, client._jobs.put))
            while len(self._feeds) >= _FEEDS:
                self._feeds.pop(next(iter(self._feeds)))
            self._feeds[id(bundle)] = (bundle, feed)
        return feed

    def insert(self, sfunc: bytes, sargs: bytes) -> Task:
        """submit() of a function that is pickled as Parallel Python does it.

        Args:
            sfunc: the pickle of (name, sources, modules): the function's name, the source texts of it and of what it calls, and
                the modules that they need.
            sargs: the pickle of the tuple of its arguments.
        """
        self._check()
        name, sources, modules = pickle.loads(sfunc)
        text = "\n".join(sources)
        with self._lock:
            self._inserted += 1
            file = "<inserted %d>" % self._inserted
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # where sources are looked for
        namespace: Dict[str, Any] = {"__name__": "__main__"}
        exec(compile(text, file, "exec"), namespace)
        others = tuple(
            v for k, v in namespace.items() if k != name and isinstance(v, (types.FunctionType, type))
        )
        return self.submit(namespace[name], tuple(pickle.loads(sargs)), others, tuple(modules))

    def wait(self, group: Any = None) -> None:
        """Waits until all tasks of the group have ended, and their callbacks; None: of all groups."""
        with self._ended:
            self._waiting += 1
            try:
                while self._active if group is None else self._active.get(group):
                    # Not without end: on some systems Ctrl-C is heard only between two waits.
                    self._ended.wait(1.0)
            finally:
                self._waiting -= 1

    def _count(self, node: str, name: str, seconds: float) -> None:
        """A task ended at a node after so many seconds."""
        local = self._private or not node or node == self._self
        with self._lock:
            label = "local" if local else self._labels.get(node)
            if label is None:
                # Two nodes may have one name.
                label = name if name and name not in self._stats else "%s %s" % (name, node[-8:])
                self._labels[node] = label
                self._stats[label] = Statistics()
            stats = self._stats[label]
            stats.njobs += 1
            stats.time += seconds

    def _finished(self, task: Task) -> None:
        """A task has ended, and its callback."""
        with self._lock:
            left = self._active[task.group] - 1
            if left:
                self._active[task.group] = left
            else:
                del self._active[task.group]
            if not left and self._waiting:
                self._ended.notify_all()

    # Processors and nodes.

    def get_ncpus(self) -> int:
        """How many tasks run on this machine at once, at most."""
        return self._ncpus

    def set_ncpus(self, ncpus: Union[int, str] = "autodetect") -> None:
        """Changes how many tasks run on this machine at once, as of now. What runs goes on. Raises as Server()."""
        count = _processors(ncpus)
        with self._resize:
            self._ncpus = count
            if not self._destroyed:
                self._limit(count)

    def _limit(self, count: int) -> None:
        """Of a private node its slots; of one that is there for others, too, what it runs of this program."""
        jobs = self._client._jobs
        node = self._client._node
        if node is None:
            self._client.set_local_limit(count)
        else:
            node.slots = max(1, count)  # should it have to be started again
            jobs.connection.persist("POST", "/v1/slots", {"slots": count})
        try:
            jobs.look()
        except Lost:
            pass  # it looks again when the node is back

    def get_active_nodes(self) -> Dict[str, int]:
        """How many tasks each node may run at once: {"local": n, "host:port": n, …}."""
        active = {"local": self._ncpus}
        for peer in self._peers():
            active[self._named.get(peer["id"]) or _address(peer)] = int(peer["slots"])
        return active

    def _peers(self) -> List[Dict[str, Any]]:
        """The other nodes that are connected and run Python."""
        if self._private or self._destroyed:
            return []
        try:
            peers = self._client._jobs.connection.call("GET", "/v1/peers")
        except (Lost, MeshError):
            return []  # the node is away: then so are the others
        return [
            p
            for p in peers
            if p["state"] == "connected" and any(r.startswith("python") for r in p["runtimes"])
        ]

    def connect1(self, host: str, port: int, persistent: bool = True) -> None:
        """Works with the node at that address, too, as with those in ppservers. persistent is taken for old programs."""
        self._check()
        self._connect([_place("%s:%s" % (host, port))])

    def _connect(self, places: List[str]) -> None:
        """Connects to nodes that were named, and says which of them are not there. Patterns name those that the mesh finds by
        itself. Raises ConnectionError if there is nowhere to run."""
        named = [p for p in places if "*" not in p]
        if self._secret is not None and len(named) < len(places) and self._client._node is None:
            print(
                "pp: the node of this machine finds others in the local network by their mesh; to find them by a secret, start it "
                "with meshnode up --secret-file FILE, or name them",
                file=sys.stderr,
            )
        wrong: Dict[str, str] = {}

        def connect(place: str) -> None:
            # A name without a port is a member's, or a computer's on which a node listens at the default port.
            for addr in [place] if _has_port(place) else [place, "%s:%d" % (place, self.default_port)]:
                body = {"addr": addr}
                if self._secret is not None and _has_port(addr):
                    body["secret"] = self._secret
                try:
                    answer = connection.call("POST", "/v1/connect", body, _CONNECT_SECONDS + 0.5)
                except NodeError as e:
                    wrong[place] = str(e)
                    if e.code == "bad_request":
                        continue
                except (Lost, MeshError):
                    pass
                else:
                    wrong.pop(place)
                    if addr != answer.get("name"):
                        self._named[str(answer["peer"])] = addr
                return

        connection = self._client._jobs.connection
        if named and not self._private:
            self._client._jobs.alone = False
        for place in named:
            wrong[place] = "it does not answer within %g s" % _CONNECT_SECONDS
        if self._private:
            for place in named:
                wrong[place] = (
                    "it cannot be asked: no node runs on this machine, and the private one of this program is admitted nowhere "
                    "(give pp.Server the secret with which the others were started, ppserver -s SECRET; or start a node with "
                    "meshnode up -d, and join the mesh of the others with meshnode join)"
                )
        else:
            threads = [
                threading.Thread(target=connect, args=(p,), name="pp-connect", daemon=True) for p in named
            ]
            end = time.monotonic() + _CONNECT_SECONDS + 0.5
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        missing = dict(wrong)
        if missing and len(missing) == len(set(named)) and self._ncpus == 0 and not self._peers():
            place, why = next(iter(missing.items()))
            raise ConnectionError(
                "nothing can run: ncpus is 0, and of ppservers none is there. %s: %s" % (place, why)
            )
        for place, why in missing.items():
            print("pp: %s of ppservers is not there: %s" % (place, why), file=sys.stderr)

    # What was done.

    def get_stats(self) -> Dict[str, Statistics]:
        """What each node did so far: {"local": Statistics, name: Statistics, …}."""
        slots = {p["id"]: int(p["slots"]) for p in self._peers()} if self._labels else {}
        with self._lock:
            node_of = {label: node for node, label in self._labels.items()}
            found = {}
            for label, stats in self._stats.items():
                found[label] = Statistics(self._ncpus if label == "local" else slots.get(node_of[label], 0))
                found[label].njobs, found[label].time = stats.njobs, stats.time
            return found

    def print_stats(self) -> None:
        """Prints what each node did so far: how many tasks, what part of all, how long they ran."""
        stats = self.get_stats()
        with self._lock:
            active = sum(self._active.values())
        print(table(stats, time.time() - self._begun, active, self._ncpus))

    # The end.

    def destroy(self) -> None:
        """Ends the server: what has not ended is dropped, and the private node ends. May be called twice."""
        with self._lock:
            if self._destroyed:
                return
            self._destroyed = True
        self._finalizer.detach()
        self._client.close(wait=False)
        self._feeds.clear()
        self._feed_of.clear()

    def _forget(self) -> None:
        """In a child that was forked: the parent's tasks are not the child's."""
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        self._resize = threading.Lock()
        self._callbacks = Callbacks()
        self._active = {}
        self._feeds.clear()
        self._feed_of.clear()
        self._client._forget()


class Template:
    """A function with all that it needs, named once; its tasks are given arguments alone.

    Args: as of Server.submit().
    """

    def __init__(
        self,
        job_server: Server,
        func: Callable[..., Any],
        depfuncs: Tuple[Any, ...] = (),
        modules: Tuple[str, ...] = (),
        callback: Optional[Callable[..., Any]] = None,
        callbackargs: Tuple[Any, ...] = (),
        group: Any = "default",
        globals: Optional[Dict[str, Any]] = None,
    ) -> None:
        self.job_server = job_server
        self.func = func
        self.depfuncs = depfuncs
        self.modules = modules
        self.callback = callback
        self.callbackargs = callbackargs
        self.group = group
        self.globals = globals

    def submit(self, *args: Any) -> Task:
        """Lets func(*args) run, as Server.submit() does."""
        return self.job_server.submit(
            self.func,
            args,
            self.depfuncs,
            self.modules,
            self.callback,
            self.callbackargs,
            self.group,
            self.globals,
        )


# What arguments mean.


def _processors(ncpus: Union[int, str]) -> int:
    if ncpus == "autodetect":
        return detect()
    if not isinstance(ncpus, int):
        raise TypeError('ncpus must be an int or "autodetect", not %r' % (ncpus,))
    if ncpus < 0:
        raise ValueError("ncpus must be 0 or more, not %d" % ncpus)
    return int(ncpus)


_PLACE = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:\[\]]+)(?::([0-9]{1,5}))?")


def _place(text: Any) -> str:
    """Checks an item of ppservers."""
    if not isinstance(text, str):
        raise TypeError("ppservers must be strings, and %r is not" % (text,))
    match = _PLACE.fullmatch(text)
    if match is None or match.group(2) is not None and not 0 < int(match.group(2)) < 65536:
        raise TypeError(
            'ppservers has %r: want "host", "host:port", "*" or a pattern such as "10.0.*.*:60000"' % text
        )
    return text


def _peers(places: List[str]) -> Tuple[str, ...]:
    """What a private node is told of ppservers."""
    found = []
    for place in places:
        if "*" in place:
            peer = "*"
        else:
            peer = place if _has_port(place) else "%s:%d" % (place, Server.default_port)
        if peer not in found:
            found.append(peer)
    return tuple(found)


def _has_port(place: str) -> bool:
    match = _PLACE.fullmatch(place)
    return match is not None and match.group(2) is not None


def _unbound(
    func: Any, args: Tuple[Any, ...], depfuncs: Tuple[Any, ...]
) -> Tuple[Any, Tuple[Any, ...], Tuple[Any, ...]]:
    """A method of an instance, or an instance that can be called, as a function with that instance as its first argument: so
    all instances of a class share one program, which a node gets once."""
    if type(func) is types.MethodType:
        owner: Any = func.__self__
        plain: Any = func.__func__
    else:
        owner, plain = func, getattr(type(func), "__call__", None)
    if isinstance(owner, (type, types.ModuleType)) or type(plain) is not types.FunctionType:
        return func, args, depfuncs
    return plain, (owner,) + args, depfuncs + (type(owner),)


def _address(peer: Dict[str, Any]) -> str:
    """A node's address as pp has it, "host:port"; its name, if none is known."""
    found = []
    for text in peer.get("addrs") or ():
        match = re.match(r"/(ip4|ip6|dns4|dns6|dns)/([^/]+)/tcp/([0-9]+)", text)
        if match:
            host = "[%s]" % match.group(2) if match.group(1) == "ip6" else match.group(2)
            found.append((match.group(1) == "ip6", "%s:%s" % (host, match.group(3))))
    return min(found)[1] if found else str(peer["name"])


# The end of the program, and its children.

_servers: "weakref.WeakSet[Server]" = weakref.WeakSet()


def _collected(client: Client) -> None:
    """Nobody has the server any more. In a thread: this may be any, holding any lock."""
    threading.Thread(target=client.close, args=(False,), name="pp-end", daemon=True).start()


def _exit() -> None:
    for server in list(_servers):
        server.destroy()


def _after_fork() -> None:
    for server in list(_servers):
        server._forget()


atexit.register(_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
