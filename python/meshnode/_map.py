"""One function over many inputs, without a future for each."""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from concurrent.futures import TimeoutError as FuturesTimeout
from typing import Any, Callable, Deque, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from meshnode._errors import MeshError
from meshnode._jobs import PACKET_CALLS, WINDOW_BYTES, Call, Feed, Jobs, Outcome, Packet, Work
from meshnode._values import Decoder, Encoder

FLUSH_SECONDS = 0.002
"""Inputs that come slowly wait no longer than this for others to go with."""


_COUNT = struct.Struct("<I")
_NOTHING: Dict[str, Any] = {}


class Part(NamedTuple):
    """The results of a packet, as they came."""

    calls: int
    output: bytes
    node: str
    foreign: bool
    error: Optional[BaseException]


class MapPacket(Packet):
    """A packet of calls whose results go to a Map."""

    __slots__ = ("map", "first")

    def __init__(self, of: "Map", payloads: Sequence[bytes], blobs: Tuple[bytes, ...], first: int) -> None:
        super().__init__(of.work, payloads, blobs)
        self.map = of
        self.first = first

    def end(self, outcome: Outcome) -> None:
        if outcome.log:
            self.map.log(outcome.log)
        self.map.put(self, Part(len(self.payloads), outcome.output, outcome.node_name, outcome.foreign, None))

    def fail(self, error: BaseException) -> None:
        self.map.put(self, Part(len(self.payloads), b"", "", False, error))

    def singly(self) -> List[Packet]:
        if self.map.over:
            return []
        return [MapPacket(self.map, [p], self.blobs, self.first + i) for i, p in enumerate(self.payloads)]

    def wanted(self) -> bool:
        return not self.map.over


class Map(Feed):
    """The calls of one map(): they are taken in order, and their results kept until somebody wants them."""

    def __init__(
        self,
        jobs: Jobs,
        work: Work,
        inputs: Iterator[Tuple[Any, ...]],
        encoder: Encoder,
        decoder: Decoder,
        log: Callable[[bytes], None],
        ordered: bool,
        chunk: int,
    ) -> None:
        super().__init__(work)
        self.jobs = jobs
        self.inputs = inputs
        self.encode = encoder.call
        self.decoder = decoder
        self.log = log
        self.ordered = ordered
        self.chunk = chunk
        self.over = False  # nobody wants more results
        self.read = 0  # inputs read
        self.exhausted = False
        self.input_error: Optional[BaseException] = None
        self.taken = 0  # calls that became packets
        self.changed = threading.Condition(threading.Lock())  # guards the rest
        self.parts: Dict[int, Part] = {}
        self.order: Deque[int] = deque()  # of parts, as they came

    # Calls, under the lock of Jobs.

    def take(self, most: int) -> Optional[Packet]:
        payloads, blobs = self._pop(max(most, self.chunk) if not self.work.single else 1)
        first = self.taken
        self.taken += len(payloads)
        return MapPacket(self, payloads, blobs, first)

    # Inputs.

    def feed(self, most: float = float("inf")) -> None:
        """Reads inputs, at most so many, until there are no more. It waits while too many bytes wait to be sent.

        An exception of the inputs, or of what cannot travel, comes after the results of the inputs before it.
        """
        if self.exhausted:
            return
        add, inputs, encode = self.jobs.add, self.inputs, self.encode
        calls: List[Call] = []
        batch = max(1, min(self.work.size, PACKET_CALLS))
        size = 0
        due = time.perf_counter() + FLUSH_SECONDS
        target = self.read + most
        count = self.read
        try:
            for args in inputs:
                call = encode(args, _NOTHING)
                calls.append(call)
                size += len(call[0])
                count += 1
                n = len(calls)
                if n >= batch or size > WINDOW_BYTES // 16 or time.perf_counter() > due or count >= target:
                    self.read = count
                    add(self, calls, n, size)
                    calls = []
                    size = 0
                    batch = min(max(2 * batch, self.work.size), PACKET_CALLS)
                    due = time.perf_counter() + FLUSH_SECONDS
                    if count >= target or self.over:
                        return
                    if self.bytes > WINDOW_BYTES:
                        self._wait_for_room()
            self.exhausted = True
        except Exception as e:
            self.exhausted = True
            self.input_error = e
        finally:
            if calls:
                self.read = count
                add(self, calls, len(calls), size)

    def _wait_for_room(self) -> None:
        while self.bytes > WINDOW_BYTES // 2 and not self.over:
            with self.changed:
                self.changed.wait(0.05)

    # Results.

    def put(self, packet: MapPacket, part: Part) -> None:
        """Keeps the results of a packet."""
        with self.changed:
            self.parts[packet.first] = part
            self.order.append(packet.first)
            self.changed.notify()

    def results(self, timeout: Optional[float], began: float, window: Optional[Callable[[], int]]) -> Iterator[Any]:
        """Yields what the calls returned, and ends with the first exception of one.

        Args:
            timeout: seconds since began in which all results are to be there.
            window: how many inputs may be read ahead of the results that were yielded; None: all are read already.
        """
        end = None if timeout is None else began + timeout
        given = 0
        try:
            while True:
                if window is not None and not self.exhausted:
                    room = given + window() - self.read
                    if room > 0:
                        self.feed(room)
                part = self._next(given, end)
                if part is None:
                    return
                yield from self._values(part)
                given += part.calls
        finally:
            self.stop()

    def _values(self, part: Part) -> Iterator[Any]:
        """What the calls of a packet returned. Raises what the first of them raised."""
        if part.error is not None:
            raise part.error
        if len(part.output) < 4 or _COUNT.unpack_from(part.output) != (part.calls,):
            raise MeshError("the node %s did not answer all of %d calls" % (part.node, part.calls))
        yield from self.decoder.values(part.output, part.node, part.foreign)

    def _next(self, given: int, end: Optional[float]) -> Optional[Part]:
        with self.changed:
            while True:
                if self.ordered:
                    part = self.parts.pop(given, None)
                else:
                    part = self.parts.pop(self.order.popleft(), None) if self.order else None
                if part is not None:
                    return part
                if self.exhausted and given >= self.read:
                    if self.input_error is not None:
                        raise self.input_error
                    return None
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise FuturesTimeout()
                # Not without end: on some systems Ctrl-C is heard only between two waits.
                self.changed.wait(1.0 if left is None else min(left, 1.0))

    def stop(self) -> None:
        """Nobody wants more results: what waits is dropped, what runs is ended."""
        if self.over:
            return
        self.over = True
        self.jobs.drop(self)
