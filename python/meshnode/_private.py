"""A node for this program alone, where none runs: started with the first call, ended with the program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import List, Optional, Sequence

from meshnode._errors import NoNodeError

START_SECONDS = 20.0
"""How long the node may take to be ready; it takes 20 ms on an idle machine."""

_NAME = "meshnode.exe" if os.name == "nt" else "meshnode"


def _runnable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def find_binary() -> str:
    """The path of the meshnode program: MESHNODE_BIN, or beside this package, or on PATH. Raises NoNodeError."""
    named = os.environ.get("MESHNODE_BIN")
    if named:
        if _runnable(named):
            return os.path.abspath(named)
        raise NoNodeError("MESHNODE_BIN is %s, which is no program that can be started: correct it or unset it" % named)
    package = os.path.dirname(os.path.abspath(__file__))
    places: List[str] = [
        os.path.join(package, _NAME),
        os.path.join(sysconfig.get_path("scripts") or package, _NAME),
        os.path.join(os.path.dirname(sys.executable or package), _NAME),
        os.path.join(os.path.dirname(os.path.dirname(package)), "bin", _NAME),  # of a checkout, after make build
    ]
    try:
        places.append(os.path.join(sysconfig.get_path("scripts", os.name + "_user"), _NAME))
    except KeyError:
        pass
    for path in places:
        if _runnable(path):
            return path
    found = shutil.which(_NAME)
    if found:
        return found
    raise NoNodeError(
        "no node runs here, and the program meshnode, to start one, is not found: put it on PATH, or name it in MESHNODE_BIN"
    )


class PrivateNode:
    """A node that belongs to this process. It ends when this process does, however that ends."""

    def __init__(self, slots: Optional[int] = None, secret: Optional[str] = None, peers: Sequence[str] = ()) -> None:
        """Starts it. slots: how many tasks run at once; None: one for each processor. secret: admits it to the mesh of the nodes at
        peers, "host:port" or "*" for those in the local network, if they know it. Raises NoNodeError."""
        self.slots = slots
        self._secret = secret
        self._peers = tuple(peers)
        self._lock = threading.Lock()
        self._process: Optional["subprocess.Popen[bytes]"] = None
        self.data_dir = Path()
        self._pid = os.getpid()
        self._start()

    def _start(self) -> None:
        binary = find_binary()
        command = [binary, "up", "--private"]
        if sys.executable and not hasattr(sys, "frozen"):  # else it looks for one, and a shim on PATH takes its time
            command += ["--python", sys.executable]
        if self.slots is not None:
            command += ["--slots", str(self.slots)]
        if self._secret is not None:
            command += ["--secret-file", "-"]
            for peer in self._peers:
                command += ["--peer", peer]
        try:
            # A program that was started without standard error has no descriptor 2 to hand on.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as e:
            raise NoNodeError("%s cannot be started: %s" % (binary, e.strerror or e)) from None
        assert process.stdout is not None
        guard = threading.Timer(START_SECONDS, process.kill)
        guard.daemon = True
        guard.start()
        try:
            if self._secret is not None and process.stdin is not None:
                try:
                    process.stdin.write(self._secret.encode("utf-8", "surrogateescape") + b"\n")
                    process.stdin.flush()
                except OSError:
                    pass  # it has ended: what it says tells why
            line = process.stdout.readline()
        finally:
            guard.cancel()
        try:
            ready = json.loads(line)
            error = ready.get("error")
            if error:
                raise NoNodeError("no node runs here, and a private one cannot start: %s" % error.get("message", error))
            self.data_dir = Path(ready["data_dir"])
        except (ValueError, KeyError, TypeError, AttributeError):
            code = self._end(process)
            raise NoNodeError(
                "no node runs here, and a private one cannot start: %s said %r and ended with code %s"
                % (binary, line[:200], code)
            ) from None
        except NoNodeError:
            self._end(process)
            raise
        self._process = process

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> int:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass
        try:
            return process.wait(6.0)  # a clean stop takes 5 s at most
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def revive(self) -> bool:
        """Starts it again if it has ended, in another directory; says whether it did. Raises NoNodeError."""
        with self._lock:
            process = self._process
            if process is None or self._pid != os.getpid() or process.poll() is None:
                return False
            self._end(process)
            self._start()
            return True

    @property
    def pid(self) -> int:
        """The node's process id, 0 after close."""
        return self._process.pid if self._process is not None else 0

    def close(self) -> None:
        """Ends it, and waits until it has ended. May be called twice."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None and self._pid == os.getpid():
            self._end(process)

    def forget(self) -> None:
        """In a child that was forked: the node is the parent's, and must not live on for the sake of a child."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()  # nothing is buffered in it
            process.returncode = 0  # not ours to wait for
