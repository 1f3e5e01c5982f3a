"""Arguments and results, as they travel: the pickles of calls, and what comes back for them."""

from __future__ import annotations

import pickle
import struct
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

from ._errors import RemoteTraceback
from ._ship import Bundle

# Larger parts of arguments go apart from the pickle, as blobs: each is sent once to a node, however often it is used.
LARGE = 64 << 10

_U32 = struct.Struct("<I")
_RESULT = struct.Struct("<BII")


class Encoder:
    """Makes the payloads of the calls of one bundle.

    Args:
        bundle: what is called.
        put: stores a large part of an argument as a blob, and returns its id.

    May be used from one thread at a time.
    """

    def __init__(self, bundle: Bundle, put: Callable[[Any], bytes]) -> None:
        self.bundle = bundle
        self.put = put

    def call(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[bytes, Tuple[bytes, ...]]:
        """The payload of a call, and the ids of the blobs that its task must name, in this order.

        Raises:
            ShipError: an argument cannot travel.
        """
        return pickle.dumps((args, kwargs), 4), ()


def packet(payloads: Sequence[bytes]) -> bytes:
    """The input of a task that makes these calls."""
    parts = [b"C", _U32.pack(len(payloads))]
    for p in payloads:
        parts.append(_U32.pack(len(p)))
        parts.append(p)
    return b"".join(parts)


class Result(NamedTuple):
    """What came of one call."""

    value: Any  # None if it raised
    error: Optional[BaseException]  # what it raised
    log: bytes  # what it printed


def results(output: bytes, log: bytes = b"", node: str = "", foreign: bool = False) -> Iterator[Result]:
    """The results of a packet's calls, in order.

    Args:
        output: of the task.
        log: of the task.
        node: name of the node where it ran.
        foreign: whether that node belongs to somebody else; then nothing is unpickled that could run code.

    Raises:
        ValueError: the output is not one of calls.
    """
    try:
        (count,) = _U32.unpack_from(output, 0)
        at, logged = 4, 0
        for _ in range(count):
            kind, size, length = _RESULT.unpack_from(output, at)
            at += 9
            if at + size > len(output):
                raise ValueError("a result is cut off")
            data = output[at : at + size]
            at += size
            text = log[logged : logged + length]
            logged += length
            if kind == 0:
                yield Result(pickle.loads(data), None, text)
            else:
                yield Result(None, exception(pickle.loads(data), node), text)
    except struct.error:
        raise ValueError("a result is cut off") from None


class RemoteError(RuntimeError):
    """A call raised an exception that cannot be made again here.

    Attributes:
        type: its name, with its module.
        message: what str() of it was.
        node: name of the node, "" if not known.
    """

    def __init__(self, type: str, message: str, node: str = "") -> None:
        super().__init__(type, message, node)
        self.type, self.message, self.node = type, message, node

    def __str__(self) -> str:
        return self.type + (": " + self.message if self.message else "")


def exception(said: Dict[str, Any], node: str = "") -> BaseException:
    """The exception that a call raised, with the traceback of where it was as its cause."""
    e: Any = None
    if said.get("pickle") is not None:
        try:
            e = pickle.loads(said["pickle"])
        except Exception:
            e = None
    if not isinstance(e, BaseException):
        name = said.get("type", "")
        if said.get("module", "builtins") not in ("builtins", "__main__"):
            name = "%s.%s" % (said["module"], name)
        e = RemoteError(name, said.get("message", ""), node)
    e.__cause__ = RemoteTraceback(said.get("traceback", ""), node)
    try:
        e.node = node
    except Exception:
        pass
    return e  # type: ignore[no-any-return]
