"""Jobs at the node, one for each function with its options, and the packets in which calls go there and come back.

A packet is one task of a job and holds one or more calls. How many is found out: enough for about two milliseconds of work, one
where calls take long, and never so many that a slot could stand idle meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import struct
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Callable, Deque, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

from meshnode import _connection as wire
from meshnode._connection import Connection, Lost
from meshnode._errors import (
    BrokenMesh,
    MemoryLimit,
    MeshError,
    NodeError,
    OutputLimit,
    TaskError,
    TaskTimeout,
    WorkerLost,
)
from meshnode._future import Future
from meshnode._values import Decoder

# Statuses of a task.
OK, FAILED, TIMED_OUT, OUTPUT_LIMIT, MEMORY_LIMIT, WORKER_LOST, CANCELLED, INVALID = range(1, 9)

PACKET_MICROSECONDS = 2000
"""The work of one packet that is aimed at. What a packet costs outside of its calls is 50 to 100 µs."""
PACKET_CALLS = 512
"""At most so many calls in a packet: beyond, nothing is saved."""
PACKET_BYTES = 48 << 10
"""At most so many bytes of arguments, or of results, in a packet of several calls: over 64 KiB they would go as files."""
WINDOW_TASKS = 64 << 10
"""At most so many packets of a client at the node."""
WINDOW_BYTES = 64 << 20
"""At most so many bytes of them; one that is larger goes alone."""
WINDOW_SECONDS = 0.25
"""The node gets so much work in advance for each slot, 4 packets at least, 128 at most."""
JOB_TASKS = 500_000
"""After so many tasks a new job is made: the node remembers each task of a job until the job ends."""
BLOB_SECONDS = 180.0
"""A blob that was at the node is taken to be there for so long; the node keeps it for 600."""
JOB_IDLE = 30.0
"""Seconds after which a job that has nothing to do is closed."""
JOBS_OPEN = 128
"""With more jobs than this, idle ones are closed at once."""
SLOTS_EVERY = 2.0
"""Seconds between two looks at how many slots there are, while there is work."""

_COUNT = struct.Struct("<I")
_CALL = struct.Struct("<BII")  # of an output: kind, lengths of value and log
_ADD = struct.Struct("<IBQ16sII")
_RESULT = struct.Struct("<IIBBHiIQQIIII")
_NONE = 0xFFFF
_OUTPUT_LEFT_OUT = 2
_WATCH_BLOBS = 4  # a flag of WATCH: large outputs are fetched as blobs

# The last three bits of a frame's id; the rest is the number of the job.
_ID_QUIET = 1 << 63  # is answered only if it fails
_ID_OPEN, _ID_ADD, _ID_CLOSE, _ID_CANCEL, _ID_WATCH, _ID_GROUP = range(6)


class Options(NamedTuple):
    """How calls are to run. Equal ones share a job.

    Attributes:
        timeout: seconds a call may take, from its start; 0: no limit.
        retries: how often a call that raised is tried again, 0 to 1000.
        priority: -100 to 100; what is higher goes first.
        on: an expression over what nodes say of themselves, as of `meshnode submit --on`; "": any node.
        not_: peer IDs of nodes that may not run it.
        local_only: only the node on this machine may.
        remote_only: only other nodes may.
        name: what `meshnode jobs` shows; "": the function's name.
        spare: whether a straggler gets a second copy: "auto", "off" or "on".
        memory: bytes that a call may have; 0: what the node gives.
    """

    timeout: float = 0.0
    retries: int = 0
    priority: int = 0
    on: str = ""
    not_: Tuple[str, ...] = ()
    local_only: bool = False
    remote_only: bool = False
    name: str = ""
    spare: str = "auto"
    memory: int = 0

    def check(self) -> "Options":
        """Raises ValueError or TypeError for what no job may ask for."""
        if not 0 <= self.timeout < 1e9:
            raise ValueError("timeout %r: want seconds, 0 for no limit" % (self.timeout,))
        if not 0 <= self.retries <= 1000:
            raise ValueError("retries %r: want 0 to 1000" % (self.retries,))
        if not -100 <= self.priority <= 100:
            raise ValueError("priority %r: want -100 to 100" % (self.priority,))
        if self.local_only and self.remote_only:
            raise ValueError("local_only and remote_only: such a call could run nowhere")
        if self.spare not in ("auto", "off", "on"):
            raise ValueError('spare %r: want "auto", "off" or "on"' % (self.spare,))
        if self.memory < 0:
            raise ValueError("memory %r: want bytes" % (self.memory,))
        if isinstance(self.not_, str):
            raise TypeError("not_ is a tuple of peer IDs")
        return self._replace(not_=tuple(self.not_))


class Program(NamedTuple):
    """What runs for each task of a job: a bundle."""

    data: bytes
    runtime: str
    name: str


class Outcome:
    """How a packet ended. Valid during Packet.end only."""

    __slots__ = ("status", "error", "output", "log", "node", "node_name", "run_us", "attempts", "foreign")

    def __init__(
        self, status: int, error: str, output: bytes, log: bytes, node: str, node_name: str, run_us: int, attempts: int
    ) -> None:
        self.status, self.error, self.output, self.log = status, error, output, log
        self.node, self.node_name, self.run_us, self.attempts = node, node_name, run_us, attempts
        self.foreign = False  # the node is another person's


Call = Tuple[bytes, Tuple[bytes, ...]]
"""The pickle of a call's arguments, and the ids of the blobs in it."""


class Packet:
    """Calls that are one task."""

    __slots__ = ("work", "job", "index", "payloads", "blobs", "size")

    def __init__(self, work: "Work", payloads: Sequence[bytes], blobs: Tuple[bytes, ...]) -> None:
        self.work = work
        self.job: Optional[Job] = None
        self.index = -1
        self.payloads = payloads
        self.blobs = blobs
        self.size = sum(map(len, payloads))

    def end(self, outcome: Outcome) -> None:
        """Gives its calls their results."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """Gives all its calls an error."""
        raise NotImplementedError

    def singly(self) -> List["Packet"]:
        """The same calls, those that are still wanted, each in a packet of its own."""
        raise NotImplementedError

    def wanted(self) -> bool:
        """Whether anybody still waits for one of its calls."""
        return True


class Feed:
    """Calls that wait to be sent. All of it under the lock of Jobs."""

    def __init__(self, work: "Work") -> None:
        self.work = work
        self.queued = False  # is in its group's list
        self.calls: Deque[Call] = deque()
        self.bytes = 0

    def take(self, most: int) -> Optional[Packet]:
        """Makes a packet of the first calls, at most so many: those that read the same blobs, and PACKET_BYTES of them.

        Calls that were cancelled are passed over; None: all were.
        """
        raise NotImplementedError

    def rest(self) -> List[Packet]:
        """All of it, taken away."""
        packets: List[Packet] = []
        while self.calls:
            packet = self.take(PACKET_CALLS)
            if packet is not None:
                packets.append(packet)
        return packets

    def _pop(self, most: int) -> Tuple[List[bytes], Tuple[bytes, ...]]:
        calls = self.calls
        payload, blobs = calls.popleft()
        payloads = [payload]
        size = len(payload)
        for _ in range(min(most - 1, len(calls))):
            payload, others = calls[0]
            if others != blobs or size + len(payload) > PACKET_BYTES:
                break
            calls.popleft()
            payloads.append(payload)
            size += len(payload)
        self.bytes -= size
        return payloads, blobs


class Again(Feed):
    """Packets that are sent again, call by call."""

    def __init__(self, work: "Work") -> None:
        super().__init__(work)
        self.packets: Deque[Packet] = deque()

    def take(self, most: int) -> Optional[Packet]:
        self.calls.popleft()
        return self.packets.popleft()


class Group:
    """Works that share a limit on how much of them is under way.

    Attributes:
        limit: at most so many packets at once; None: as many as the mesh can use.
        ident: 16 bytes, by which the node knows the group.
    """

    def __init__(self, limit: Optional[int] = None) -> None:
        self.limit = limit
        self.local_limit: Optional[int] = None
        self.ident = os.urandom(16)
        self.number = 0
        self.feeds: Deque[Feed] = deque()
        self.works: Dict[Tuple[bytes, Options], Work] = {}
        self.outstanding = 0  # packets
        self.retired = False  # whose it was is gone: it goes, too, when all has ended
        self.idle = threading.Condition(threading.Lock())  # told when the last call ended
        self.unended = 0  # packets and feeds' calls that have no result; guarded by the lock of Jobs


class Work:
    """One program with its options, in a group: it has a job at the node while there is something to do."""

    def __init__(self, group: Group, program: Program, options: Options, blob: str) -> None:
        self.group = group
        self.program = program
        self.options = options
        self.blob = blob  # the id of the bundle at the node
        self.job: Optional[Job] = None
        self.again = Again(self)
        self.single = options.timeout > 0 or options.retries > 0  # these count for tasks: so each call is one
        self.size = 1  # calls in a packet
        self.call_us = -1.0  # what a call takes, about; negative: not known
        self.call_out = 0.0  # bytes that a call returns, about
        self.used = time.monotonic()

    def measured(self, calls: int, run_us: int, output: int) -> None:
        """Learns from a packet. What gets slower counts at once, what gets quicker by and by."""
        each = run_us / calls
        self.call_us = each if each > self.call_us else 0.7 * self.call_us + 0.3 * each
        self.call_out = max(output / calls, 0.7 * self.call_out + 0.3 * output / calls)
        if not self.single:
            self.size = max(1, min(PACKET_CALLS, int(PACKET_MICROSECONDS / (self.call_us + 1)), int(PACKET_BYTES / (self.call_out + 1))))


class Job:
    """A job at the node."""

    __slots__ = ("work", "number", "ident", "next", "packets", "opened", "closed", "error")

    def __init__(self, work: Work, number: int) -> None:
        self.work = work
        self.number = number
        self.ident = os.urandom(16)
        self.next = 0  # the index of its next task
        self.packets: Dict[int, Packet] = {}  # sent and not answered
        self.opened = False
        self.closed = False
        self.error: Optional[BaseException] = None  # why it was given up

    def frame_id(self, kind: int) -> int:
        return self.number << 3 | kind


class Jobs:
    """All jobs of a client. Its lock guards what is in the classes above; it is never held while waiting."""

    def __init__(self, data_dir: Path, patience: float = wire.PATIENCE, revive: Optional[Callable[[], None]] = None) -> None:
        self.connection = Connection(data_dir, self, patience, revive)
        self._lock = threading.Lock()
        self._numbers: Dict[int, Job] = {}
        self._groups: Dict[int, Group] = {}
        self._last_number = 0
        self._up = False
        self._bytes = 0  # of all packets that are sent and not answered
        self._slots = 0
        self._frames: List[bytes] = []  # to be sent at the end of a dispatch
        self._mine: Dict[str, bool] = {}  # whether a node is this person's
        self._keeper: Optional[threading.Thread] = None
        self._errands: "queue.SimpleQueue[Optional[Callable[[], None]]]" = queue.SimpleQueue()
        self._closing = False
        self.broken: Optional[BaseException] = None  # the node is gone
        self.alone = False  # the node is private: no other will ever be there
        self._oldest: Dict[int, int] = {}  # of each job that has something under way, the first task without a result
        self._told: "weakref.WeakSet[Work]" = weakref.WeakSet()  # of which it was said that no node can run them
        self.breaks = 0  # how often it went
        self._blobs: Dict[bytes, Tuple[bytes, float]] = {}  # SHA-256 → id at the node, and when it was there

    # Making works.

    def start(self) -> None:
        """Connects to the node. Raises NoNodeError, MeshError."""
        if self._closing:
            raise RuntimeError("this client was closed")
        if self._up:
            return
        try:
            self.connection.start()
            self.look()
        except Lost as e:
            from meshnode._errors import NoNodeError

            raise NoNodeError(str(e)) from None
        with self._lock:
            self._up = True
            self.broken = None
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="meshnode-keeper", daemon=True)
                self._keeper.start()

    def work(self, group: Group, program: Program, options: Options) -> Work:
        """The work for a program; its bundle is at the node when this returns. Raises NoNodeError, MeshError."""
        digest = hashlib.sha256(program.data).digest()
        key = (digest + program.runtime.encode(), options)
        work = group.works.get(key)
        if work is not None:
            return work
        self.start()
        blob = self.connection.persist("PUT", "/v1/blobs", program.data)["id"]
        with self._lock:
            if not group.number:
                self._last_number += 1
                group.number = self._last_number
                self._groups[group.number] = group
            return group.works.setdefault(key, Work(group, program, options, blob))

    def put(self, data: Union[wire.Bytes, List[wire.Bytes]]) -> bytes:
        """Has bytes, or a list of their parts, at the node, as a blob, and returns its id. The same bytes are sent once.

        Raises NoNodeError, MeshError.
        """
        summing = hashlib.sha256()
        for part in data if isinstance(data, list) else [data]:
            summing.update(part)
        digest = summing.digest()
        now = time.monotonic()
        known = self._blobs.get(digest)
        if known is not None and now - known[1] < BLOB_SECONDS:
            return known[0]
        self.start()
        name = digest.hex()
        ident: bytes = self.connection.persist("HEAD", "/v1/blobs/sha256:" + name)
        if not ident:
            answer = self.connection.persist("PUT", "/v1/blobs", data, None, "Meshnode-Sha256: %s\r\n" % name)
            ident = bytes.fromhex(answer["id"])
        self._blobs[digest] = (ident, now)
        return ident

    # Sending.

    def add(self, feed: Feed, calls: Iterable[Call], count: int, size: int) -> None:
        """Lets calls be sent: so many, with so many bytes."""
        with self._lock:
            feed.calls.extend(calls)
            feed.bytes += size
            group = feed.work.group
            group.unended += count
            if not feed.queued:
                feed.queued = True
                group.feeds.append(feed)
            if self._up:
                self._dispatch(group)

    def submit(self, feed: "Calls", payload: bytes, blobs: Tuple[bytes, ...], future: Future[Any]) -> None:
        """add() of one call with its future: the same, but quicker."""
        with self._lock:
            feed.calls.append((payload, blobs))
            feed.futures.append(future)
            group = feed.work.group
            group.unended += 1
            if not feed.queued:
                feed.queued = True
                group.feeds.append(feed)
            if self._up and (group.outstanding < self._spread(group) or len(feed.calls) >= feed.work.size):
                self._dispatch(group)

    def _spread(self, group: Group) -> int:
        """So many packets keep all slots busy, those included whose next packet waits beside them."""
        return group.limit if group.limit is not None else 2 * self._slots

    def _dispatch(self, group: Group) -> None:
        """Sends what is to be sent now."""
        feeds = group.feeds
        spread = self._spread(group)
        passed = 0  # feeds in a row that have less than a packet
        while passed < len(feeds):
            feed = feeds[0]
            n = len(feed.calls)
            if n == 0:
                feed.queued = False
                feeds.popleft()
                continue
            work = feed.work
            free = spread - group.outstanding
            if free > 0:
                size = min(max(1, n // free), work.size)
            elif group.limit is None and n >= work.size and group.outstanding < self._window(work) and self._bytes < WINDOW_BYTES:
                size = work.size
            else:
                passed += 1
                feeds.rotate(-1)
                continue
            passed = 0
            packet = feed.take(size)
            if packet is not None:
                self._send(packet)
            if len(feeds) > 1:
                feeds.rotate(-1)
        if self._frames:
            frames, self._frames = self._frames, []
            self.connection.send(b"".join(frames))

    def _window(self, work: Work) -> int:
        each = max(work.call_us, 1.0) * work.size / 1e6
        return min(WINDOW_TASKS, int(self._slots * min(128.0, max(4.0, WINDOW_SECONDS / each))))

    def _send(self, packet: Packet) -> None:
        """Makes a packet a task, and its frame."""
        work = packet.work
        job = work.job
        if job is None or job.next >= JOB_TASKS:
            if job is not None:
                self._close_job(job)
            job = self._open(work)
        packet.job = job
        packet.index = job.next
        job.next += 1
        job.packets[packet.index] = packet
        work.group.outstanding += 1
        self._bytes += packet.size
        self._frames.append(self.add_frame(job, packet.index, packet))

    def _open(self, work: Work) -> Job:
        self._last_number += 1
        job = Job(work, self._last_number)
        self._numbers[job.number] = job
        work.job = job
        work.used = time.monotonic()
        self._frames.append(self.open_frame(job))
        self._frames.append(self._watch_frame(job))
        return job

    def _close_job(self, job: Job) -> None:
        """Tells the node that there will be no more tasks. What is under way still ends."""
        job.closed = True
        if job.work.job is job:
            job.work.job = None
        self._frames.append(
            wire.frame(wire.CLOSE, job.frame_id(_ID_CLOSE), job.ident + _COUNT.pack(job.next))
        )

    # Frames.

    def open_frame(self, job: Job, detached: bool = False) -> bytes:
        work = job.work
        o = work.options
        body: Dict[str, Any] = {
            "job": job.ident.hex(),
            "name": (o.name or work.program.name)[:200],
            "runtime": work.program.runtime,
            "code": work.blob,
            "args": [],
            "timeout_us": int(o.timeout * 1e6),
            "memory": o.memory,
            "max_parallel": 0,
            "detached": detached,
            "retries": o.retries,
            "priority": o.priority,
            "on": o.on,
            "not": list(o.not_),
            "local_only": o.local_only,
            "remote_only": o.remote_only,
            "spare": {"auto": 0, "off": 1, "on": 2}[o.spare],
            "group": work.group.ident.hex(),
            "local": local(),
        }
        return wire.frame(wire.OPEN, job.frame_id(_ID_OPEN), json.dumps(body).encode())

    @staticmethod
    def _watch_frame(job: Job) -> bytes:
        return wire.frame(wire.WATCH, job.frame_id(_ID_WATCH), job.ident + struct.pack("<QB", 0, _WATCH_BLOBS))

    @staticmethod
    def add_frame(job: Job, index: int, packet: Optional[Packet]) -> bytes:
        """ControlAdd of one task. Of no packet: one that is answered already, and has no calls."""
        payloads: Sequence[bytes] = packet.payloads if packet is not None else ()
        pack = _COUNT.pack
        parts = [b"C", pack(len(payloads))]
        for p in payloads:
            parts.append(pack(len(p)))
            parts.append(p)
        body = b"".join(parts)
        kind, before = wire.ADD, b""
        if packet is not None and packet.blobs:
            kind, before = wire.ADD_BLOBS, struct.pack("<H", len(packet.blobs)) + b"".join(packet.blobs)
        length = 9 + 24 + len(before) + 4 + len(body)
        return b"".join(
            (_ADD.pack(length, kind, _ID_QUIET | job.frame_id(_ID_ADD), job.ident, index, 1), before, pack(len(body)), body)
        )

    # Receiving: called by the connection, in its thread.

    def frame(self, kind: int, ident: int, body: memoryview) -> None:
        """Handles a frame of the node."""
        if kind == wire.OK:
            return
        with self._lock:
            job = self._numbers.get((ident & ~_ID_QUIET) >> 3)
        if kind == wire.RESULTS:
            if job is not None:
                self._results(job, body)
        elif kind == wire.END:
            if job is not None:
                self._ended(job, json.loads(bytes(body)))
        elif kind == wire.ERROR:
            error = wire.node_error(body)
            if ident == 0:
                raise MeshError("the node did not understand this client: %s" % error)
            if job is not None:
                self._refused(job, ident & 7, error)
        else:
            raise MeshError("the node sent a frame of the unknown type %#x" % kind)

    def _results(self, job: Job, body: memoryview) -> None:
        ended: List[Tuple[Packet, Outcome]] = []
        later: List[Tuple[Packet, Outcome]] = []
        work = job.work
        group = work.group
        came = read_results(body)
        with self._lock:
            for index, left_out, outcome in came:
                packet = job.packets.pop(index, None)
                if packet is not None:  # else a repeat
                    group.outstanding -= 1
                    self._bytes -= packet.size
                    if outcome.status <= FAILED:
                        work.measured(len(packet.payloads), outcome.run_us, len(outcome.output))
                    (later if left_out else ended).append((packet, outcome))
            if group.feeds:
                self._dispatch(group)
        for packet, outcome in later:
            self._fetch(packet, outcome)
        for packet, outcome in ended:
            self._deliver(packet, outcome)

    def _deliver(self, packet: Packet, outcome: Outcome) -> None:
        if outcome.status == FAILED and not outcome.output:
            outcome.status = WORKER_LOST  # the node gave up on it
        if outcome.status in _GUILTY and len(packet.payloads) > 1:
            # One of its calls is to blame: each goes alone now, and that one finds its own end.
            again = packet.singly()
            with self._lock:
                feed = packet.work.again
                feed.packets.extend(again)
                feed.calls.extend([(b"", ())] * len(again))
                group = packet.work.group
                group.unended += len(again)
                if again and not feed.queued:
                    feed.queued = True
                    group.feeds.append(feed)
                if self._up:
                    self._dispatch(group)
            self._done(packet)
            return
        outcome.foreign = not self.mine(outcome.node)
        try:
            if outcome.status <= FAILED and outcome.output:
                packet.end(outcome)
            elif outcome.status == CANCELLED and self._closing:
                packet.fail(BrokenMesh(_CLOSED))
            else:
                packet.fail(error_of(outcome))
        except (struct.error, IndexError, ValueError) as e:
            packet.fail(TaskError("the node %s answered what cannot be read: %s" % (outcome.node_name, e), outcome.node_name))
        finally:
            self._done(packet)

    def _done(self, packet: Packet) -> None:
        """Counts a packet as ended. A call that was cancelled counts with its packet."""
        group = packet.work.group
        with self._lock:
            group.unended -= len(packet.payloads)
            last = group.unended == 0
            if last:
                packet.work.used = time.monotonic()
        if last:
            with group.idle:
                group.idle.notify_all()

    def _fetch(self, packet: Packet, outcome: Outcome) -> None:
        """Gets an output that was too large to come with its result, in a thread of its own."""

        def get() -> None:
            name, size = outcome.output[:32].hex(), struct.unpack_from("<Q", outcome.output, 32)[0]
            try:
                outcome.output = self.connection.download("/v1/blobs/" + name, size)
            except (MeshError, Lost) as e:
                packet.fail(TaskError("the result of %d bytes cannot be fetched: %s" % (size, e), outcome.node_name))
                self._done(packet)
                return
            self._deliver(packet, outcome)

        threading.Thread(target=get, name="meshnode-fetch", daemon=True).start()

    def mine(self, node: str) -> bool:
        """Whether a node is this person's. "": no node has answered."""
        known = self._mine.get(node)
        if known is not None or not node:
            return known is not False
        try:
            for p in self.connection.call("GET", "/v1/peers"):
                self._mine[p["id"]] = p["owner"] == "mine"
        except (Lost, MeshError):
            return False
        return self._mine.setdefault(node, False)

    # What can happen to a job.

    def _give_up(self, job: Job, error: BaseException) -> List[Packet]:
        """Forgets a job; what it had has to fail. The lock is held."""
        if job.work.job is job:
            job.work.job = None
        self._numbers.pop(job.number, None)
        packets = list(job.packets.values())
        job.packets.clear()
        job.work.group.outstanding -= len(packets)
        self._bytes -= sum(p.size for p in packets)
        return packets

    def _fail(self, packets: Iterable[Packet], error: BaseException) -> None:
        for p in packets:
            p.fail(error)
            self._done(p)

    def _ended(self, job: Job, info: Dict[str, Any]) -> None:
        """The node says that a job has ended: usually because we closed it."""
        reason = str(info.get("reason") or "")
        error = job.error
        if self._closing:
            error = BrokenMesh(_CLOSED)
        elif error is None or isinstance(error, NodeError) and error.code == "bad_request":
            error = CancelledError("job %s has ended: %s" % (job.ident.hex()[:8], reason or info.get("state")))
        with self._lock:
            if job.packets and job.error is None and reason == "its client is gone":
                self._renew(job)
                packets = []
            else:
                packets = self._give_up(job, error)
            if self._up:
                self._dispatch(job.work.group)
        self._fail(packets, error)

    def _refused(self, job: Job, kind: int, error: MeshError) -> None:
        """The node did not do what it was asked."""
        if kind in (_ID_CANCEL, _ID_CLOSE, _ID_GROUP):
            return  # the job has ended meanwhile; the watch tells
        if kind == _ID_ADD:
            # It has ended, or the disk is full: the first error counts, and the end of the watch tells the rest.
            if job.error is None:
                job.error = error
                self.connection.send(self._cancel_frame(job, wire.WHOLE_JOB))
            return
        with self._lock:
            packets = self._give_up(job, error)
            waiting: List[Packet] = []
            if kind == _ID_OPEN:
                # What waits of the same work would be refused as well.
                for feed in list(job.work.group.feeds):
                    if feed.work is job.work:
                        waiting += feed.rest()
            if self._up:
                self._dispatch(job.work.group)
        self._fail(packets + waiting, error)

    @staticmethod
    def _cancel_frame(job: Job, index: int) -> bytes:
        return wire.frame(wire.CANCEL, job.frame_id(_ID_CANCEL), job.ident + _COUNT.pack(index))

    def _renew(self, job: Job) -> None:
        """Makes a new job for the packets of one that the node has ended. The lock is held."""
        packets = [job.packets[i] for i in sorted(job.packets)]
        self._give_up(job, BrokenMesh(""))
        for p in packets:
            self._send(p)

    def cancelled(self, future: Future[Any], group: Group) -> None:
        """A future was cancelled: its packet is not wanted if nobody waits for another call of it."""
        with self._lock:
            packet = future._packet
            if packet is None:  # it waits here, and is passed over
                group.unended -= 1
                last = group.unended == 0
        if packet is None:
            if last:
                with group.idle:
                    group.idle.notify_all()
            return
        job = packet.job
        if job is not None and job.packets.get(packet.index) is packet and not packet.wanted():
            self.connection.send(self._cancel_frame(job, packet.index))

    # The connection comes and goes.

    def lost(self, why: BaseException) -> None:
        """Called by the connection."""
        with self._lock:
            self._up = False

    def back(self) -> None:
        """Called by the connection: sends again what the node may not have. Raises Lost, MeshError."""
        with self._lock:
            jobs = list(self._numbers.values())
            groups = list(self._groups.values())
        for job in jobs:
            with self._lock:
                if not job.packets:
                    self._give_up(job, BrokenMesh(""))  # a new one is made when there is something to do
                    continue
            path = wire.job_path(job.ident.hex())
            state, has, reason = "", 0, ""
            try:
                info = self.connection.call("GET", path)
                state, has, reason = info["state"], int(info["tasks"]), str(info.get("reason") or "")
            except NodeError as e:
                if e.code != "no_job":
                    raise
            self._put_again(job.work)
            with self._lock:
                if reason == "its client is gone" or job.next - has > 2 * len(job.packets) + 1000:
                    self._renew(job)  # it has ended, or the node knows little of it
                    continue
                # The node forgets what it accepted in the last moment before a crash. What of that is answered goes as a
                # task without calls.
                self._frames.append(self.open_frame(job))
                for i in range(has, job.next):
                    self._frames.append(self.add_frame(job, i, job.packets.get(i)))
                self._frames.append(self._watch_frame(job))
                if job.closed:
                    self._frames.append(wire.frame(wire.CLOSE, job.frame_id(_ID_CLOSE), job.ident + _COUNT.pack(job.next)))
        self.look()
        with self._lock:
            # First of all, and for those without a limit, too: a node that was started anew waits to hear of each.
            self._frames[:0] = [self._group_frame(group) for group in groups]
            self._up = True
            frames, self._frames = self._frames, []
        if frames:
            self.connection.send(b"".join(frames))
        with self._lock:
            for group in groups:
                self._dispatch(group)

    def _put_again(self, work: Work) -> None:
        """Gives the node a bundle that it may have lost with its disk."""
        self.connection.call("PUT", "/v1/blobs", work.program.data)

    def gone(self, why: BaseException) -> None:
        """Called by the connection: the node did not come back."""
        self.broken = BrokenMesh("the node in %s went away and did not come back: %s" % (self.connection.data_dir, why))
        self.breaks += 1
        self.break_off(self.broken)

    def break_off(self, error: BaseException) -> None:
        """Everything that has no result fails."""
        packets: List[Packet] = []
        with self._lock:
            self._up = False
            for job in list(self._numbers.values()):
                packets += self._give_up(job, error)
            for group in self._groups.values():
                for feed in group.feeds:
                    feed.queued = False
                    packets += feed.rest()
                group.feeds.clear()
        self._fail(packets, error)

    # Limits and slots.

    def look(self) -> None:
        """Counts the slots that can run Python. Raises Lost, MeshError."""
        slots = 0
        for p in self.connection.call("GET", "/v1/peers"):
            self._mine[p["id"]] = p["owner"] == "mine"
            if p["state"] in ("self", "connected") and any(r.startswith("python") for r in p["runtimes"]):
                slots += int(p["slots"])
        self._slots = max(1, slots)

    @property
    def slots(self) -> int:
        """How many slots can run Python, as of the last look."""
        return self._slots

    def set_limit(self, group: Group, limit: Optional[int]) -> None:
        """At most so many packets of the group are under way at once, from now on."""
        with self._lock:
            group.limit = limit
            if self._up:
                self._dispatch(group)

    def set_local_limit(self, group: Group, limit: Optional[int]) -> None:
        """At most so many tasks of the group run at the node here at once; None: no limit of its own."""
        with self._lock:
            group.local_limit = wire.WHOLE_JOB if limit is None else limit
            if not group.number:
                self._last_number += 1
                group.number = self._last_number
                self._groups[group.number] = group
            frame = self._group_frame(group)
        self.connection.send(frame)

    @staticmethod
    def _group_frame(group: Group) -> bytes:
        limit = wire.WHOLE_JOB if group.local_limit is None else group.local_limit
        return wire.frame(wire.GROUP, group.number << 3 | _ID_GROUP, group.ident + _COUNT.pack(limit))

    # The end of groups, jobs, and all.

    def wait(self, group: Group, timeout: Optional[float] = None) -> bool:
        """Waits until all calls of a group have ended; False after timeout seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        with group.idle:
            while group.unended > 0:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                # Not without end: on some systems Ctrl-C is heard only between two waits.
                group.idle.wait(1.0 if left is None else min(left, 1.0))
        return True

    def drop_waiting(self, group: Group) -> List[Packet]:
        """Takes away the calls that were not sent. The caller ends them; call done() then."""
        packets: List[Packet] = []
        with self._lock:
            for feed in group.feeds:
                packets += feed.rest()
        return packets

    def drop(self, feed: Feed) -> None:
        """Nobody wants the results of a feed any more."""
        with self._lock:
            waiting = feed.rest()
            for job in self._numbers.values():
                if job.work is feed.work:
                    for index, packet in job.packets.items():
                        if not packet.wanted():
                            self._frames.append(self._cancel_frame(job, index))
            frames, self._frames = self._frames, []
        if frames:
            self.connection.send(b"".join(frames))
        self.done(waiting)

    def done(self, packets: Iterable[Packet]) -> None:
        """Counts packets that drop_waiting took away as ended."""
        for p in packets:
            self._done(p)

    def groups(self) -> List[Group]:
        """Those that there are."""
        with self._lock:
            return list(self._groups.values())

    def leave(self, group: Group) -> None:
        """Closes the jobs of a group that has nothing under way, and forgets it."""
        with self._lock:
            for work in group.works.values():
                if work.job is not None:
                    self._close_job(work.job)
            group.works.clear()
            self._groups.pop(group.number, None)
            frames, self._frames = self._frames, []
        if frames:
            self.connection.send(b"".join(frames))

    def abandon(self, group: Group) -> None:
        """Cancels the jobs of a group: nobody wants what is under way."""
        with self._lock:
            for job in self._numbers.values():
                if job.work.group is group and job.packets:
                    self._frames.append(self._cancel_frame(job, wire.WHOLE_JOB))
            frames, self._frames = self._frames, []
        if frames:
            self.connection.send(b"".join(frames))

    def errand(self, do: Callable[[], None]) -> None:
        """Has something done soon by a thread of ours. May be called from anywhere, a finalizer too."""
        self._errands.put(do)

    def close(self, cancel: bool) -> None:
        """Ends the connection, when what was written is sent. Calls without a result fail.

        cancel: tell the node that nobody wants them.
        """
        self._closing = True
        for group in self.groups() if cancel else ():
            self.abandon(group)
        self._errands.put(None)
        for group in list(self._groups.values()):
            self.leave(group)
        self.connection.flush(2.0)
        self.connection.close()
        self.break_off(BrokenMesh(_CLOSED))

    def forget(self) -> None:
        """In a child that was forked: the parent's calls are not the child's."""
        self._lock = threading.Lock()
        self.connection.forget()
        self._up = False
        for job in self._numbers.values():
            job.work.job = None
        self._numbers.clear()
        self._groups.clear()
        self._frames = []
        self._bytes = 0
        self._keeper = None
        self._errands = queue.SimpleQueue()

    def _keep(self) -> None:
        """The thread for what is to be done now and then."""
        looked = time.monotonic()
        while True:
            try:
                do = self._errands.get(timeout=1.0)
                if do is None:
                    return
                do()
                continue
            except queue.Empty:
                pass
            now = time.monotonic()
            for group in list(self._groups.values()):
                if group.retired and group.unended == 0:
                    self.leave(group)
            with self._lock:
                busy = any(g.outstanding for g in self._groups.values())
                idle = [
                    w
                    for g in self._groups.values()
                    for w in g.works.values()
                    if w.job is not None and not w.job.packets
                ]
                few = len(self._numbers) <= JOBS_OPEN
                for w in idle:
                    if w.job is not None and (now - w.used > JOB_IDLE or not few):
                        self._close_job(w.job)
                frames, self._frames = self._frames, []
            if frames:
                self.connection.send(b"".join(frames))
            if busy and self._up:
                try:
                    self._ask_why()
                except (Lost, MeshError):
                    pass
            if busy and self._up and now - looked > SLOTS_EVERY:
                looked = now
                try:
                    before = self._slots
                    self.look()
                    if self._slots > before:
                        with self._lock:
                            for g in self._groups.values():
                                self._dispatch(g)
                except (Lost, MeshError):
                    pass  # the reader sees it, too

    def _ask_why(self) -> None:
        """Looks at jobs of which nothing has come back since the last time: if no node can run one, somebody is told. Raises
        Lost, MeshError."""
        with self._lock:
            open_jobs = [job for job in self._numbers.values() if job.packets]
            first = {job.number: next(iter(job.packets)) for job in open_jobs}
            stuck = [job for job in open_jobs if self._oldest.get(job.number) == first[job.number]]
            self._oldest = first
        for job in stuck[:_ASKED_AT_ONCE]:
            ident = job.ident.hex()
            if job.work in self._told:
                continue
            try:
                if self.connection.call("GET", wire.job_path(ident)).get("waits_for") != "no_node":
                    continue
                why = self.connection.call("GET", "/v1/why?subject=" + ident)["reasons"]
            except NodeError:
                continue  # it has ended meanwhile
            reasons = [str(r["text"]) for r in why if r["code"] == "refused"]
            if self.alone and not reasons:
                continue  # it has no slots now
            text = "; ".join(reasons[:1] or [str(r["text"]) for r in why if r["code"] == "no_node"])
            if not self.alone:
                self._told.add(job.work)
                _log.warning("meshnode: %s waits for a node that can run it: %s (meshnode why %s)", job.work.program.name, text, ident[:8])
                continue
            error = TaskError("it cannot run here: " + text)
            with self._lock:
                packets = self._give_up(job, error)
                self._frames.append(self._cancel_frame(job, wire.WHOLE_JOB))
                for feed in list(job.work.group.feeds):
                    if feed.work is job.work:
                        packets += feed.rest()
                frames, self._frames = self._frames, []
            self.connection.send(b"".join(frames))
            self._fail(packets, error)


_ASKED_AT_ONCE = 8  # jobs
_log = logging.getLogger("meshnode")

_CLOSED = "the client was closed before the call had ended"
_GUILTY = (TIMED_OUT, OUTPUT_LIMIT, MEMORY_LIMIT, WORKER_LOST)


def read_results(body: memoryview) -> List[Tuple[int, bool, Outcome]]:
    """The body of a RESULTS frame: for each result its index, whether its output was left out, and what came of it."""
    count, workers = struct.unpack_from("<IH", body)
    off = 6
    names: List[Tuple[str, str]] = []
    for _ in range(workers):
        pair = []
        for _ in (0, 1):
            (n,) = struct.unpack_from("<H", body, off)
            pair.append(str(body[off + 2 : off + 2 + n], "utf-8", "replace"))
            off += 2 + n
        names.append((pair[0], pair[1]))
    came = []
    for _ in range(count):
        _, index, status, flags, w, _, attempts, _, run_us, ne, no, nl, ni = _RESULT.unpack_from(body, off)
        off += 52
        o = off + ne
        error = str(body[off:o], "utf-8", "replace") if ne else ""
        output, log = bytes(body[o : o + no]), bytes(body[o + no : o + no + nl]) if nl else b""
        node, name = names[w] if w != _NONE else ("", "")
        came.append((index, bool(flags & _OUTPUT_LEFT_OUT), Outcome(status, error, output, log, node, name, run_us, attempts)))
        off = o + no + nl + ni
    return came


def error_of(outcome: Outcome) -> BaseException:
    """What a call gets that has no result."""
    s, where = outcome.status, outcome.node_name
    text = outcome.error
    at = " on node %s" % where if where else ""
    if s == TIMED_OUT:
        return TaskTimeout("the call took longer than it may, and was ended%s" % at, where)
    if s == OUTPUT_LIMIT:
        return OutputLimit(text or "the call's result is too large%s" % at, where)
    if s == MEMORY_LIMIT:
        return MemoryLimit("the call wanted more memory than it may have%s%s" % (at, ": " + text if text else ""), where)
    if s == WORKER_LOST:
        return WorkerLost("%s%s" % (text or "the process that ran the call died", at), where)
    if s == CANCELLED:
        return CancelledError(text or "the call was cancelled")
    return TaskError("%s%s" % (text or "the call has no result", at), where)


def local() -> Dict[str, Any]:
    """How calls run on this machine: with the interpreter, the modules and the folder of this program."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    return {
        "interpreter": sys.executable or "",
        "version": "%d.%d" % sys.version_info[:2],
        "path": [os.path.join(here, p) if here else p for p in sys.path if isinstance(p, str)],
        "dir": here,
    }


class Calls(Feed):
    """Calls with a future each."""

    def __init__(self, jobs: Jobs, work: Work, decoder: Decoder, log: Callable[[bytes], None]) -> None:
        super().__init__(work)
        self.jobs = jobs
        self.futures: Deque[Future[Any]] = deque()
        self.decoder = decoder
        self.log = log  # is given what calls printed

    def take(self, most: int) -> Optional[Packet]:
        payloads, blobs = self._pop(most)
        pop = self.futures.popleft
        futures = [pop() for _ in payloads]
        if any(f._state != "PENDING" for f in futures):
            kept = [(p, f) for p, f in zip(payloads, futures) if f._state == "PENDING"]
            if not kept:
                return None
            payloads, futures = [p for p, _ in kept], [f for _, f in kept]
        packet = CallsPacket(self, payloads, blobs, futures)
        for f in futures:
            f._packet = packet
        return packet


class CallsPacket(Packet):
    """A packet of calls with a future each."""

    __slots__ = ("feed", "futures")

    def __init__(
        self, feed: Calls, payloads: Sequence[bytes], blobs: Tuple[bytes, ...], futures: List[Future[Any]]
    ) -> None:
        super().__init__(feed.work, payloads, blobs)
        self.feed = feed
        self.futures = futures

    def end(self, outcome: Outcome) -> None:
        node, log = outcome.node_name, outcome.log
        if log:
            self.feed.log(log)
        futures = iter(self.futures)
        for value, error, text in self.feed.decoder.results(outcome.output, log, node, outcome.foreign):
            f = next(futures, None)
            if f is None:
                raise ValueError("it has more results than calls")
            f.node = node
            if text:
                f._log = text
            f.finish(value, error)
        if next(futures, None) is not None:
            raise ValueError("it has fewer results than calls")

    def fail(self, error: BaseException) -> None:
        for f in self.futures:
            if isinstance(error, CancelledError):
                f._feed = None
                f.cancel()
            else:
                f.finish(None, error)

    def singly(self) -> List[Packet]:
        again: List[Packet] = []
        for p, f in zip(self.payloads, self.futures):
            if not f.done():
                packet = CallsPacket(self.feed, [p], self.blobs, [f])
                f._packet = packet
                again.append(packet)
        return again

    def wanted(self) -> bool:
        return any(not f.done() for f in self.futures)
