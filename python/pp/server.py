"""ppserver: a node on this machine, started with the options of Parallel Python's ppserver.

    ppserver [-hdar] [-f FORMAT] [-n PROTO] [-c FILE] [-i INTERFACE] [-b BROADCAST] [-p PORT] [-w WORKERS]
             [-s SECRET] [-t SECONDS] [-k SECONDS] [-P FILE]

The same as `python -m pp.server`. It is `meshnode up` in the foreground, and ends with it; what has no counterpart is
said in one line and changes nothing.
"""

from __future__ import annotations

import configparser
import getopt
import ipaddress
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import List, NoReturn, Optional

from meshnode._connection import Connection, Lost, default_data_dir
from meshnode._errors import MeshError
from meshnode._private import find_binary

from ._processors import detect
from ._server import Server

USAGE = """\
usage: ppserver [-hdar] [-f FORMAT] [-n PROTO] [-c FILE] [-i INTERFACE] [-b BROADCAST] [-p PORT] [-w WORKERS]
                [-s SECRET] [-t SECONDS] [-k SECONDS] [-P FILE]

Starts a node on this machine, which works for the programs of its mesh. Ctrl-C or SIGTERM stops it; SIGUSR1 prints
what it is doing.

  -h            this text
  -d            a detailed log
  -a            find, and be found by, members of the mesh in the local network (without -a: by address alone)
  -i INTERFACE  the address to listen at (default: 0.0.0.0, all of this machine)
  -p PORT       the port to listen at (default: 60000)
  -w WORKERS    how many tasks run at once (default: as many as this process may use processors)
  -t SECONDS    stop when no other node has been connected, and no job here has run, for so long (default: never)
  -P FILE       write the process id there
  -s SECRET     admits programs and nodes that have the same: they run Python functions here, and nothing else. 16 characters or
                more, unless -i is an address of this machine alone. What stands on a command line others on this machine can
                read: -c keeps it in a file
  -c FILE       read these settings from there: secret, debug, workers, pid_file below [general]; autodiscovery,
                interface, port, timeout below [network]. Options that come after -c win

Taken, and without effect here; one line says why:
  -b BROADCAST  -a finds nodes by multicast DNS
  -f FORMAT, -n PROTO, -k SECONDS, -r

Where the node keeps its state: MESHNODE_DATA_DIR, or this user's usual place.
"""


class Usage(Exception):
    """What was typed is wrong."""


class Settings:
    """What ppserver was told."""

    def __init__(self) -> None:
        self.help = False
        self.debug = False
        self.discovery = False
        self.interface = "0.0.0.0"
        self.port = Server.default_port
        self.workers: Optional[int] = None
        self.timeout: Optional[float] = None
        self.pid_file: Optional[str] = None
        self.secret: Optional[str] = None
        self.notes: List[str] = []  # one line for each setting without effect

    def node_arguments(self, data_dir: str) -> List[str]:
        """The arguments of meshnode that start the node."""
        version = ipaddress.ip_address(self.interface).version
        arguments = ["up", "--with-parent", "--data-dir", data_dir]
        arguments += ["--listen", "/ip%d/%s/tcp/%d" % (version, self.interface, self.port)]
        workers = detect() if self.workers is None else self.workers
        arguments += ["--slots", str(workers)] if workers else ["--no-work"]
        if not self.discovery:
            arguments.append("--no-mdns")
        if self.secret is not None:
            arguments += ["--secret-file", "-"]
        if self.debug:
            arguments += ["--log-level", "debug"]
        return arguments


def _whole(option: str, value: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
        raise Usage("%s %s: want a whole number from %d to %d" % (option, value, least, most))
    return int(value)


def _seconds(option: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise Usage("%s %s: want seconds, 0 or more" % (option, value))
    return seconds


def _interface(option: str, value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise Usage("%s %s: want an address of this machine, such as 192.168.1.5" % (option, value)) from None


def _secret(option: str, value: str) -> str:
    if not value.strip() or "\n" in value or "\r" in value:
        raise Usage("%s: want one line that is not empty" % option)
    return value


_WITHOUT_EFFECT = {
    "-b": "nodes are found by multicast DNS (-a), which needs no broadcast address",
    "-f": "the log has one format",
    "-n": "programs and nodes agree on how values are written",
    "-k": "a lost connection is noticed within seconds",
    "-r": "what a task leaves behind is not seen by tasks of other programs",
}


def _note(settings: Settings, option: str, name: str) -> None:
    settings.notes.append("%s has no effect: %s" % (name, _WITHOUT_EFFECT[option]))


def parse(arguments: List[str]) -> Settings:
    """Reads the command line. Raises Usage."""
    settings = Settings()
    try:
        options, rest = getopt.getopt(arguments, "hdarf:n:c:i:b:p:w:s:t:k:P:", ["help"])
    except getopt.GetoptError as e:
        raise Usage(str(e)) from None
    if rest:
        raise Usage("%s: ppserver takes options alone" % rest[0])
    for option, value in options:
        if option in ("-h", "--help"):
            settings.help = True
        elif option == "-d":
            settings.debug = True
        elif option == "-a":
            settings.discovery = True
        elif option == "-i":
            settings.interface = _interface(option, value)
        elif option == "-p":
            settings.port = _whole(option, value, 0, 65535)
        elif option == "-w":
            settings.workers = _whole(option, value, 0, 1024)
        elif option == "-t":
            settings.timeout = _seconds(option, value)
        elif option == "-P":
            settings.pid_file = value
        elif option == "-s":
            settings.secret = _secret("-s", value)
        elif option == "-c":
            _read(settings, value)
        else:
            _note(settings, option, option)
    return settings


def _read(settings: Settings, path: str) -> None:
    """Takes the settings of a configuration file."""
    config = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with open(path) as f:
            config.read_file(f)
    except OSError as e:
        raise Usage("-c %s: %s" % (path, e.strerror or e)) from None
    except (configparser.Error, UnicodeDecodeError) as e:
        raise Usage("-c %s: %s" % (path, str(e).splitlines()[0])) from None

    def yes(value: str) -> bool:
        answer = configparser.ConfigParser.BOOLEAN_STATES.get(value.lower())
        if answer is None:
            raise Usage("-c %s: %s = %s: want yes or no" % (path, name, value))
        return answer

    for section in config.sections():
        for name, value in config.items(section):
            where = "-c %s: %s" % (path, name)
            value = value.strip().strip("'\"")
            setting = (section, name)
            if setting == ("general", "debug"):
                settings.debug = yes(value)
            elif setting == ("general", "workers"):
                settings.workers = _whole(where, value, 0, 1024)
            elif setting == ("general", "pid_file"):
                settings.pid_file = value
            elif setting == ("network", "autodiscovery"):
                settings.discovery = yes(value)
            elif setting == ("network", "interface"):
                settings.interface = _interface(where, value)
            elif setting == ("network", "port"):
                settings.port = _whole(where, value, 0, 65535)
            elif setting == ("network", "timeout"):
                settings.timeout = _seconds(where, value)
            elif setting == ("general", "secret"):
                settings.secret = _secret(where, value)
            elif setting == ("network", "broadcast"):
                _note(settings, "-b", where)
            elif setting == ("general", "proto"):
                _note(settings, "-n", where)
            elif setting == ("general", "restart"):
                if yes(value):
                    _note(settings, "-r", where)
            elif setting == ("network", "socket_timeout"):
                _note(settings, "-k", where)
            else:
                settings.notes.append("%s in [%s] is not a setting of ppserver" % (where, section))


class _Idle(threading.Thread):
    """Ends the node when nobody has needed it for a while: option -t."""

    def __init__(self, data_dir: str, seconds: float, node: "subprocess.Popen[bytes]") -> None:
        super().__init__(name="ppserver-idle", daemon=True)
        self._connection = Connection(Path(data_dir), None)
        self._seconds = seconds
        self._node = node

    def run(self) -> None:
        needed = time.monotonic()
        while self._node.poll() is None:
            try:
                status = self._connection.call("GET", "/v1/status")
                if status["peers"] or status["running"] or status["queued"]:
                    needed = time.monotonic()
            except (Lost, MeshError):
                needed = time.monotonic()  # it starts, or ends
            if time.monotonic() - needed >= self._seconds:
                print(
                    "ppserver: no other node and no job for %g s: stopping" % self._seconds, file=sys.stderr
                )
                self._node.terminate()
                return
            time.sleep(min(1.0, max(0.05, self._seconds / 4)))


def _print_status(data_dir: str) -> None:
    """What SIGUSR1 asks for."""
    try:
        connection = Connection(Path(data_dir), None)
        status = connection.call("GET", "/v1/status")
    except (Lost, MeshError) as e:
        print("ppserver: %s" % e, file=sys.stderr)
        return
    print(
        "%s: %d of %d workers busy, %d tasks wait, %d other nodes connected"
        % (status["name"], status["running"], status["slots"], status["queued"], status["peers"]),
        file=sys.stderr,
    )


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs ppserver and returns its exit code: 0 after a clean stop, 2 if the command line is wrong."""
    try:
        settings = parse(sys.argv[1:] if arguments is None else arguments)
    except Usage as e:
        print("ppserver: %s (ppserver -h lists the options)" % e, file=sys.stderr)
        return 2
    if settings.help:
        print(USAGE, end="")
        return 0
    for note in settings.notes:
        print("ppserver: " + note, file=sys.stderr)
    data_dir = str(default_data_dir())
    try:
        binary = find_binary()
    except MeshError as e:
        print("ppserver: %s" % e, file=sys.stderr)
        return 125
    # The node ends with its standard input, and so with this process, however that ends.
    node = subprocess.Popen([binary] + settings.node_arguments(data_dir), stdin=subprocess.PIPE)
    if settings.secret is not None and node.stdin is not None:
        try:
            node.stdin.write(settings.secret.encode("utf-8", "surrogateescape") + b"\n")
            node.stdin.flush()
        except OSError:
            pass  # it has ended, and said why

    def stop(number: int, frame: Optional[FrameType]) -> None:
        if node.poll() is None:
            node.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, lambda number, frame: _print_status(data_dir))
    try:
        if settings.pid_file is not None:
            with open(settings.pid_file, "w") as f:
                f.write("%d\n" % os.getpid())
        if settings.timeout:
            _Idle(data_dir, settings.timeout, node).start()
        return node.wait()
    except OSError as e:
        print("ppserver: -P %s: %s" % (settings.pid_file, e.strerror or e), file=sys.stderr)
        stop(0, None)
        node.wait()
        return 125
    finally:
        if settings.pid_file is not None and os.path.exists(settings.pid_file):
            os.unlink(settings.pid_file)


def _command() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _command()
