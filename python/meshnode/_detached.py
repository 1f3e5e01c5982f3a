"""Jobs that go on when the program that submitted them has ended."""

from __future__ import annotations

import struct
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from meshnode import _connection as wire
from meshnode._connection import Connection, Lost
from meshnode._errors import MeshError, NoNodeError, TaskError
from meshnode._jobs import FAILED, Call, Job, Jobs, Outcome, Packet, Work, error_of, read_results
from meshnode._values import Decoder

_ADD_BYTES = 256 << 10


class DetachedJob:
    """A job at the node, by its id. Client.submit_detached() and Client.job() make it.

    Attributes:
        id: 32 hex digits.
    """

    def __init__(self, jobs: Jobs, ident: str, decoder: Decoder) -> None:
        self._jobs = jobs
        self._decoder = decoder
        self.id = ident

    def __repr__(self) -> str:
        return "<DetachedJob %s>" % self.id

    def status(self) -> Dict[str, Any]:
        """The job as `meshnode job ID --json` has it: state, tasks, done, failed, running, pending, …"""
        info: Dict[str, Any] = self._jobs.connection.persist("GET", wire.job_path(self.id))
        return info

    def wait(self, timeout: Optional[float] = None) -> Dict[str, Any]:
        """Waits until the job has ended, and returns its status.

        timeout: seconds; then TimeoutError. None: without end.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.01
        while True:
            info = self.status()
            if info["state"] in ("done", "failed", "cancelled"):
                return info
            if end is not None and time.monotonic() > end:
                raise TimeoutError("job %s goes on after %g s: %d of %d tasks done" % (self.id[:8], timeout or 0, info["done"], info["tasks"]))
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def cancel(self) -> None:
        """Ends the job."""
        self._jobs.connection.persist("POST", wire.job_path(self.id) + "/cancel")

    def results(self, ordered: bool = True, return_exceptions: bool = False) -> Iterator[Any]:
        """Yields what the calls returned, waiting for those that have not ended. It may be called again.

        Args:
            ordered: False: as they ended.
            return_exceptions: yield the exceptions of calls that raised, and of those that could not run, in their places.
        Raises:
            what the first such call raised, if not return_exceptions. NoNodeError if the node stays away.
        """
        early: Dict[int, List[Tuple[Any, Optional[BaseException]]]] = {}
        nextone = 0
        for index, outcomes in self._outcomes():
            early[index] = outcomes
            while early:
                if ordered:
                    if nextone not in early:
                        break
                    index = nextone
                    nextone += 1
                else:
                    index = next(iter(early))
                for value, error in early.pop(index):
                    if error is not None and not return_exceptions:
                        raise error
                    yield error if error is not None else value
        # Tasks that ended with their job have no result.
        for index in sorted(early):
            for value, error in early.pop(index):
                if error is not None and not return_exceptions:
                    raise error
                yield error if error is not None else value

    def _outcomes(self) -> Iterator[Tuple[int, List[Tuple[Any, Optional[BaseException]]]]]:
        """The tasks as they ended, each once."""
        connection = self._jobs.connection
        seen: Set[int] = set()
        ident = bytes.fromhex(self.id)
        watch = wire.frame(wire.WATCH, 1, ident + struct.pack("<QB", 0, 0))
        for kind, _, body in _talk(connection, lambda: [watch]):
            if kind == wire.ERROR:
                raise wire.node_error(body)
            if kind == wire.END:
                return
            if kind != wire.RESULTS:
                continue
            for index, left_out, outcome in read_results(memoryview(body)):
                if index in seen:
                    continue
                seen.add(index)
                yield index, self._values(outcome, left_out)

    def _values(self, outcome: Outcome, left_out: bool) -> List[Tuple[Any, Optional[BaseException]]]:
        if left_out:
            size = struct.unpack_from("<Q", outcome.output, 32)[0]
            try:
                outcome.output = self._jobs.connection.download("/v1/blobs/" + outcome.output[:32].hex(), size)
            except (Lost, MeshError) as e:
                return [(None, TaskError("a result of %d bytes cannot be fetched: %s" % (size, e), outcome.node_name))]
        if outcome.status > FAILED or not outcome.output:
            return [(None, error_of(outcome))]
        foreign = not self._jobs.mine(outcome.node)
        try:
            results = self._decoder.results(outcome.output, outcome.log, outcome.node_name, foreign)
            return [(value, error) for value, error, _ in results]
        except ValueError as e:
            return [(None, TaskError("the result cannot be read: %s" % e, outcome.node_name))]


def _talk(connection: Connection, frames: Callable[[], List[bytes]]) -> Iterator[Tuple[int, int, bytes]]:
    """Has a conversation with the node on a connection of its own: sends the frames, yields the answers. If the node goes
    away it begins again, for as long as the connection has patience."""
    lost_at: Optional[float] = None
    pause = 0.02
    while True:
        try:
            for answer in connection.converse(frames()):
                lost_at, pause = None, 0.02
                yield answer
            return
        except Lost as e:
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
            if now - lost_at > connection.patience:
                raise NoNodeError("the node went away and did not come back: %s" % e) from None
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def submit(jobs: Jobs, work: Work, calls: Sequence[Call], chunk: int, decoder: Decoder) -> DetachedJob:
    """Makes a detached job of calls, chunk of them a task; returns when it is on disk."""
    job = Job(work, 1)
    packets: List[Packet] = []
    for i in range(0, len(calls), chunk):
        part = calls[i : i + chunk]
        for blobs in {b: None for _, b in part}:
            packets.append(Packet(work, [p for p, b in part if b == blobs], blobs))
    opening = jobs.open_frame(job, True)
    adds = [jobs.add_frame(job, i, p) for i, p in enumerate(packets)]
    closed = job.frame_id(0) + 7
    closing = wire.frame(wire.CLOSE, closed, job.ident + struct.pack("<I", len(packets)))

    def frames() -> List[bytes]:
        return [opening] + adds + [closing]

    for kind, ident, body in _talk(jobs.connection, frames):
        if kind == wire.ERROR:
            raise wire.node_error(body)
        if ident == closed:
            break
    return DetachedJob(jobs, job.ident.hex(), decoder)
