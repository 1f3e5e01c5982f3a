"""The way to a node on this machine: where it listens, requests in HTTP, and one stream of frames for all else.

docs/protocol.md, "Client and node", has the requests and the frames.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple, Union
from urllib.parse import quote

from meshnode._errors import MeshError, NodeError, NoNodeError

Bytes = Union[bytes, bytearray, memoryview]

# Types of frames.
OPEN, ADD, CLOSE, WATCH, CANCEL, ADD_BLOBS, GROUP = 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26
OK, ERROR, RESULTS, END = 0xA0, 0xA1, 0xA2, 0xA3

WATCH_NOW = 2  # a flag of WATCH: only what is there now
WHOLE_JOB = 0xFFFFFFFF  # an index of CANCEL

MAX_FRAME = 18 << 20
HEADER = struct.Struct("<IBQ")  # length of what follows it, type, id

PATIENCE = 60.0
"""Seconds that a lost node has to come back."""

_RECEIVE = 256 << 10
_CALL_TIMEOUT = 30.0


def frame(kind: int, ident: int, body: Bytes) -> bytes:
    """One frame."""
    return HEADER.pack(9 + len(body), kind, ident) + bytes(body)


def default_data_dir() -> Path:
    """Where the node of this user keeps its state: MESHNODE_DATA_DIR, or the system's usual place."""
    given = os.environ.get("MESHNODE_DATA_DIR")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = str(Path.home() / ".local" / "share")
    return Path(os.environ.get("XDG_DATA_HOME") or base) / "meshnode"


class Address(NamedTuple):
    """control.json: where a node listens."""

    socket: str
    address: str
    token: str
    pid: int


class Lost(Exception):
    """There is no node now, or it is going down. Inside this package only: users see NoNodeError or BrokenMesh."""


def read_address(data_dir: Path) -> Address:
    """Reads control.json, anew each time: a node that was started again may listen elsewhere. Raises Lost."""
    path = data_dir / "control.json"
    try:
        info = json.loads(path.read_bytes())
        return Address(
            str(info.get("socket", "")), str(info.get("address", "")), str(info.get("token", "")), int(info.get("pid", 0))
        )
    except FileNotFoundError:
        raise Lost("no node runs in %s" % data_dir) from None
    except OSError as e:
        raise Lost("%s cannot be read: %s" % (path, e.strerror or e)) from None
    except (ValueError, AttributeError, TypeError) as e:
        raise Lost("%s is damaged: %s" % (path, e)) from None


def connect(data_dir: Path, timeout: float) -> Tuple[socket.socket, Address]:
    """Opens a connection to the node of data_dir. Raises Lost."""
    at = read_address(data_dir)
    family = getattr(socket, "AF_UNIX", None)
    if at.socket and family is None:
        raise Lost(
            "the node in %s listens on a Unix socket, which this Python cannot open (start it with --control tcp)" % data_dir
        )
    host, _, port = at.address.rpartition(":")
    s = socket.socket(family or socket.AF_INET) if at.socket else socket.socket()
    try:
        s.settimeout(timeout)
        if at.socket:
            s.connect(at.socket)
        else:
            s.connect((host, int(port)))
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, ValueError) as e:
        s.close()
        raise Lost("no node answers in %s: %s" % (data_dir, e)) from None
    return s, at


def _read_head(s: socket.socket) -> Tuple[int, bytes, bytes]:
    """The status of an answer, what was read after its headers, and these."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = s.recv(4096)
        if not part:
            raise Lost("the node went away during a request")
        data += part
        if len(data) > 64 << 10:
            raise MeshError("what listens at the node's address is no node")
    head, _, rest = data.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise MeshError("what listens at the node's address is no node")
    return int(words[1]), rest, head


def _error(body: Bytes, inner: bool) -> MeshError:
    """What an answer with an error says. Raises Lost if it is that the node stops."""
    try:
        e = json.loads(bytes(body))
        e = e["error"] if inner else e
        code, message, fix = str(e["code"]), str(e["message"]), str(e.get("fix") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return MeshError("the node answered what cannot be read: %.200r" % bytes(body))
    if code == "stopping":
        raise Lost(message)
    return NodeError(code, message, fix)


def node_error(body: Bytes) -> MeshError:
    """The error in the body of an ERROR frame. Raises Lost if it is that the node stops."""
    return _error(body, False)


class Connection:
    """Talks to the node of one data directory. All methods may be called from several threads.

    The stream is opened by start(). From then on handler is told what comes, in the one thread that reads:

    - frame(kind, id, body): body is valid during the call only
    - lost(why): the stream broke; send() does nothing from now on
    - back(): it is there again; what is to be sent again is to be sent now. May raise Lost.
    - gone(why): it did not come back within patience seconds; start() may be tried again.
    """

    def __init__(self, data_dir: Path, handler: Any, patience: float = PATIENCE, revive: Optional[Callable[[], None]] = None):
        self.data_dir = data_dir
        self._handler = handler
        self.patience = patience
        self._revive = revive  # called where the node is gone: a private node is started again by it
        self._lock = threading.Lock()  # guards what follows; held while sending, never while waiting
        self._socket: Optional[socket.socket] = None
        self._out: List[bytes] = []  # not sent, because the node takes its time
        self._draining = False  # a thread is sending what is in _out
        self._closed = False
        self._reader: Optional[threading.Thread] = None

    # Requests.

    def call(
        self, method: str, path: str, body: Any = None, timeout: Optional[float] = _CALL_TIMEOUT, headers: str = ""
    ) -> Any:
        """One request; body and answer are JSON, a body of bytes goes as it is.

        Args:
            timeout: seconds for each step of it; None: no limit.
            headers: more of them, each ended by CRLF.
        Raises:
            Lost, NodeError, MeshError.
        """
        status, answer, _ = self._request(method, path, body, timeout, headers)
        if status != 200:
            raise _error(answer, True)
        try:
            return json.loads(answer)
        except ValueError:
            raise Lost("the node went away during an answer") from None

    def blob(self, path: str) -> bytes:
        """Asks by HEAD for a blob: its id, b"" if it is not there. Raises Lost, MeshError."""
        status, _, head = self._request("HEAD", path, None, _CALL_TIMEOUT, "")
        for line in head.split(b"\r\n") if status == 200 else ():
            name, _, value = line.partition(b":")
            if name.lower() == b"meshnode-blob":
                return bytes.fromhex(value.strip().decode("ascii", "replace"))
        return b""

    def download(self, path: str, size: int) -> bytes:
        """Gets size bytes. Raises Lost, NodeError, MeshError."""
        status, answer, _ = self._request("GET", path, None, _CALL_TIMEOUT, "")
        if status != 200:
            raise _error(answer, True)
        if len(answer) != size:
            raise Lost("the node went away during an answer")
        return answer

    def _request(self, method: str, path: str, body: Any, timeout: Optional[float], headers: str) -> Tuple[int, bytes, bytes]:
        """One request: the status, the body of the answer, and its head."""
        if isinstance(body, list):
            raw = [memoryview(b).cast("B") for b in body]
        elif isinstance(body, (bytes, bytearray, memoryview)):
            raw = [memoryview(body).cast("B")]
        else:
            raw = [memoryview(b"" if body is None else json.dumps(body).encode())]
        size = sum(len(b) for b in raw)
        s, at = connect(self.data_dir, 5.0)
        with s:
            try:
                s.settimeout(timeout)
                head = self._head(at, "%s %s HTTP/1.0" % (method, path), "%sContent-Length: %d\r\n" % (headers, size))
                try:
                    if size < _RECEIVE:
                        s.sendall(head + b"".join(raw))
                    else:
                        s.sendall(head)
                        for b in raw:
                            s.sendall(b)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the answer, if there is one, says why
                status, data, head = _read_head(s)
                parts = [data]
                while True:
                    data = s.recv(1 << 20)
                    if not data:
                        break
                    parts.append(data)
            except socket.timeout:
                raise Lost("the node does not answer: %s %s took more than %.0f s" % (method, path, timeout or 0)) from None
            except OSError as e:
                raise Lost("the node went away during a request: %s" % e) from None
        return status, b"".join(parts), head

    def persist(
        self, method: str, path: str, body: Any = None, timeout: Optional[float] = _CALL_TIMEOUT, headers: str = ""
    ) -> Any:
        """call(), waiting for a node that is away; blob() for HEAD. Raises NoNodeError after patience seconds."""
        end = time.monotonic() + self.patience
        wait = 0.02
        while True:
            try:
                return self.blob(path) if method == "HEAD" else self.call(method, path, body, timeout, headers)
            except Lost as e:
                if time.monotonic() + wait > end:
                    raise NoNodeError(str(e)) from None
                if self._revive is not None:
                    self._revive()
            time.sleep(wait)
            wait = min(2 * wait, 0.5)

    @staticmethod
    def _head(at: Address, line: str, more: str) -> bytes:
        token = "Authorization: Bearer %s\r\n" % at.token if at.token else ""
        return ("%s\r\nHost: %s\r\n%s%s\r\n" % (line, at.address or "meshnode", token, more)).encode()

    # The stream.

    def start(self) -> None:
        """Opens the stream, if it is not open. Raises Lost, MeshError."""
        with self._lock:
            if self._reader is not None or self._closed:
                return
            s, rest = self._open()
            self._socket = s
            self._reader = threading.Thread(target=self._read, args=(s, rest), name="meshnode-reader", daemon=True)
            self._reader.start()

    def _open(self) -> Tuple[socket.socket, bytes]:
        s, at = connect(self.data_dir, 5.0)
        try:
            s.settimeout(_CALL_TIMEOUT)
            s.sendall(self._head(at, "POST /v1/stream HTTP/1.1", "Connection: Upgrade\r\nUpgrade: meshnode/1\r\n"))
            status, rest, _ = _read_head(s)
            if status != 101:
                while len(rest) < 64 << 10:
                    try:
                        part = s.recv(4096)
                    except socket.timeout:
                        break
                    if not part:
                        break
                    rest += part
                    try:
                        json.loads(rest)
                        break
                    except ValueError:
                        continue
                raise _error(rest, True)
            s.settimeout(None)
        except socket.timeout:
            s.close()
            raise Lost("the node does not answer: it took more than %.0f s" % _CALL_TIMEOUT) from None
        except OSError as e:
            s.close()
            raise Lost("the node went away: %s" % e) from None
        except BaseException:
            s.close()
            raise
        return s, rest

    def converse(self, frames: List[bytes]) -> Iterator[Tuple[int, int, bytes]]:
        """Sends frames on a stream of its own, and yields what is answered: kind, id, body. Raises Lost, MeshError."""
        s, data = self._open()
        sender = threading.Thread(target=_send_all, args=(s, frames), name="meshnode-sender", daemon=True)
        try:
            sender.start()
            while True:
                while len(data) >= 13:
                    length, kind, ident = HEADER.unpack_from(data)
                    if length < 9 or length > MAX_FRAME:
                        raise MeshError("the node sent a frame of %d bytes" % length)
                    if len(data) < 4 + length:
                        break
                    yield kind, ident, data[13 : 4 + length]
                    data = data[4 + length :]
                part = s.recv(_RECEIVE)
                if not part:
                    raise Lost("the node closed the connection")
                data += part
        except OSError as e:
            raise Lost("the node went away: %s" % e) from None
        finally:
            try:
                s.shutdown(socket.SHUT_RDWR)  # ends the sender, too
            except OSError:
                pass
            sender.join()
            s.close()

    def send(self, data: bytes) -> None:
        """Sends frames, or drops them if the stream is lost: back() sends what matters. It never waits."""
        with self._lock:
            s = self._socket
            if s is None:
                return
            if self._out:
                self._out.append(data)
                return
            if _DONTWAIT:
                try:
                    n = s.send(data, _DONTWAIT)
                except (BlockingIOError, InterruptedError):
                    n = 0
                except OSError:
                    return  # the reader sees it, too
                if n == len(data):
                    return
                data = data[n:]
            self._out.append(data)
            if not self._draining:
                self._draining = True
                threading.Thread(target=self._drain, name="meshnode-sender", daemon=True).start()

    def _drain(self) -> None:
        """Sends what is in _out, waiting for the node. A thread of its own, for as long as that lasts."""
        while True:
            with self._lock:
                s = self._socket
                if s is None or not self._out:
                    self._draining = False
                    return
                data = b"".join(self._out)
            try:
                s.sendall(data)
            except OSError:
                with self._lock:
                    if self._socket is s:
                        self._out.clear()
                        self._out.append(b"")  # nothing can be sent until the reader has seen it
                    self._draining = False
                return
            with self._lock:
                if self._socket is s:
                    rest = b"".join(self._out)[len(data) :]
                    self._out = [rest] if rest else []

    def _read(self, s: socket.socket, rest: bytes) -> None:
        """The thread that reads."""
        handler = self._handler
        while True:
            why: BaseException
            try:
                self._frames(s, rest)
                why = Lost("the node closed the connection")
            except (Lost, OSError, MeshError) as e:
                why = e
            with self._lock:
                self._socket = None
                self._out = []
                closed = self._closed
            _shut(s)
            if closed:
                return
            handler.lost(why)
            again = self._reconnect()
            if again is None:
                return
            s, rest = again

    def _frames(self, s: socket.socket, rest: bytes) -> None:
        """Hands on frames until the connection ends."""
        unpack = HEADER.unpack_from
        handle = self._handler.frame
        buf = bytearray(max(_RECEIVE, 2 * len(rest)))
        buf[: len(rest)] = rest
        begin, end = 0, len(rest)
        view = memoryview(buf)
        while True:
            while end - begin >= 13:
                length, kind, ident = unpack(buf, begin)
                if length < 9 or length > MAX_FRAME:
                    raise MeshError("the node sent a frame of %d bytes" % length)
                after = begin + 4 + length
                if after > end:
                    break
                handle(kind, ident, view[begin + 13 : after])
                begin = after
            need = 4 + unpack(buf, begin)[0] if end - begin >= 13 else 13
            if begin == end:
                begin = end = 0
            elif len(buf) - begin < need or len(buf) - end < 4096:
                left = bytes(view[begin:end])
                if need > len(buf) or len(buf) > _RECEIVE >= need:
                    buf = bytearray(max(_RECEIVE, need))
                    view = memoryview(buf)
                buf[: len(left)] = left
                begin, end = 0, len(left)
            n = s.recv_into(view[end:])
            if n == 0:
                return
            end += n

    def _reconnect(self) -> Optional[Tuple[socket.socket, bytes]]:
        """Opens the stream again; None after patience seconds, or if this connection was closed meanwhile."""
        deadline = time.monotonic() + self.patience
        wait = 0.02
        while True:
            why: Exception
            try:
                with self._lock:
                    if self._closed:
                        return None
                    s, rest = self._open()
                    self._socket = s
                try:
                    self._handler.back()
                    return s, rest
                except BaseException:
                    with self._lock:
                        self._socket = None
                        self._out = []
                    _shut(s)
                    raise
            except (Lost, MeshError) as e:
                why = e
            if time.monotonic() + wait > deadline:
                with self._lock:
                    self._reader = None
                self._handler.gone(why)
                return None
            time.sleep(wait)
            wait = min(2 * wait, 0.5)
            if self._revive is not None:
                try:
                    self._revive()
                except MeshError:
                    pass  # tried again until there is no more patience

    def flush(self, timeout: float) -> bool:
        """Waits until all is sent, at most timeout seconds, and says whether it is."""
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                if not self._out or self._socket is None:
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)

    def close(self) -> None:
        """Ends the stream. What was not answered stays so."""
        with self._lock:
            self._closed = True
            s, self._socket = self._socket, None
            self._out = []
            reader = self._reader
        if s is not None:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if reader is not None and reader is not threading.current_thread():
            reader.join(5.0)

    def forget(self) -> None:
        """In a child that was forked: lets go of the parent's connection without a word on it."""
        s, self._socket = self._socket, None
        if s is not None:
            s.close()
        self._lock = threading.Lock()
        self._out, self._draining, self._closed, self._reader = [], False, False, None


_DONTWAIT: int = getattr(socket, "MSG_DONTWAIT", 0)


def _send_all(s: socket.socket, frames: List[bytes]) -> None:
    try:
        for f in frames:
            s.sendall(f)
    except OSError:
        pass  # who reads sees it, too


def _shut(s: socket.socket) -> None:
    try:
        s.close()
    except OSError:
        pass


def job_path(job: str) -> str:
    """The path of a job's requests."""
    return "/v1/jobs/" + quote(job, safe="@")
