"""A worker process of a node: it runs Python functions for one submitter.

The node starts it, sends frames on its standard input and reads answers on its standard output (docs/protocol.md lists
them). What the frames' bodies mean is load.py's affair; here is only the process: frames in and out, what tasks write on
file descriptors 1 and 2, limits, and an end when the node ends. It runs on Python 3.6 and later.

Tasks see: descriptor 0 at its end, 1 and 2 a file that is the task's log, and none of the node's descriptors.
"""

import collections
import faulthandler
import gc
import io
import json
import os
import stat
import struct
import sys
import time

if os.name == "posix":
    import fcntl
    import resource
    import select
    import signal

# Frames: u32 length of what follows, u8 type, u64 id, body. Little-endian.
HEADER = struct.Struct("<IBQ")
RUN = struct.Struct("<IBQQI")  # a WorkerRun up to its input
DONE = struct.Struct("<IBQBiQIII")  # a WorkerDone up to its output
PATHS = struct.Struct("<BH")
LENGTH = struct.Struct("<H")

LOAD, RUN_ITEM, UNLOAD, RUN_FILE, SKIP, REST, RUN_FILES = 1, 2, 3, 4, 5, 6, 7
LOADED, LOAD_FAILED, ITEM_DONE, SKIPPED, ITEM_DONE_FILE = 0x81, 0x82, 0x83, 0x84, 0x85

OK, FAILED, OUTPUT_LIMIT, MEMORY_LIMIT, INVALID = 1, 2, 4, 5, 8

# A larger output does not go into a frame: it is left in a file. (Smaller ones are faster through the pipe.)
MAX_FRAME_OUTPUT = 16 << 20
# An error is one line of at most so many bytes.
MAX_ERROR = 4 << 10
# An item that took so long, in seconds, is worth a look at what the node has said meanwhile.
LONG = 0.001


def size(n):
    """A number of bytes for people, as the node writes it: "512 MiB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= unit:
            return "%d %s" % (n // unit, name) if n % unit == 0 else "%.1f %s" % (n / unit, name)
    return "%d B" % n


def one_line(error):
    """The last line of an exception's traceback: "ValueError: x"."""
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"
    name = type(error).__name__
    lines = text.strip().splitlines()
    return "%s: %s" % (name, lines[0]) if lines else name


class Log:
    """What tasks write on descriptors 1 and 2: a file that is emptied between tasks, so that nobody who writes ever waits."""

    def __init__(self, fd):
        self.fd = fd
        self.out = self._stream(1)
        self.err = self._stream(2)
        self.mine()

    @staticmethod
    def _stream(fd):
        raw = io.FileIO(fd, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(raw, 8192), "utf-8", "backslashreplace", line_buffering=True)

    def mine(self):
        """Have Python's own streams be these again: a task may have replaced or closed them."""
        os.dup2(self.fd, 1)
        os.dup2(self.fd, 2)
        if self.out.closed:
            self.out = self._stream(1)
        if self.err.closed:
            self.err = self._stream(2)
        sys.stdout = sys.__stdout__ = self.out
        sys.stderr = sys.__stderr__ = self.err

    def size(self):
        """How many bytes were written since the last take()."""
        try:
            self.out.flush()
            self.err.flush()
        except (ValueError, OSError):
            self.mine()
        return os.lseek(self.fd, 0, 2)

    def take(self, limit):
        """What was written since the last call, at most limit bytes of it and a word about the rest."""
        n = self.size()
        if sys.stdout is not self.out or sys.stderr is not self.err:
            self.mine()
        else:  # they may be closed, or be something else
            os.dup2(self.fd, 1)
            os.dup2(self.fd, 2)
        if not n:
            return b""
        os.lseek(self.fd, 0, 0)
        data = b""
        while len(data) < min(n, limit):
            more = os.read(self.fd, min(n, limit) - len(data))
            if not more:
                break
            data += more
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, 0)  # where files are not appended to, what comes next belongs there
        if n > limit:
            data += b"\n[the log is cut here: it has more than %s]\n" % size(limit).encode()
        return data


def log_file():
    """A file without a name, in memory where the system has that. Everybody who writes to it appends."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("log")
    else:
        import tempfile

        fd = os.dup(tempfile.TemporaryFile(buffering=0).fileno())
    if os.name == "posix":
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def data_size():
    """How much private memory this process has, as RLIMIT_DATA counts it; None where that limit does not hold."""
    try:
        with open("/proc/self/status", "rb") as f:
            for line in f:
                if line.startswith(b"VmData:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Limits:
    """The memory that a task may have beside what the interpreter has at the start."""

    def __init__(self):
        self.own = data_size()
        self.now = None

    def set(self, memory):
        if self.own is None or memory == self.now:
            return
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = self.own + memory
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        self.now = memory


class Program:
    """A loaded program and what the node said about it."""

    def __init__(self, spec, program):
        self.run = program.run
        program.words = spec.get("args") or []
        self.memory = spec["memory_bytes"]
        self.output = spec["output_bytes"]
        self.log = spec["log_bytes"]
        self.scratch = spec.get("scratch", "")


no_alarm = signal.setitimer if os.name == "posix" else None


class Worker:
    """Serves the frames that come on one descriptor and answers on another."""

    def __init__(self, node_in, node_out, log, load):
        self.node_in, self.node_out, self.log, self.load = node_in, node_out, log, load
        self.pid = os.getpid()
        self.path = list(sys.path)
        self.limits = Limits()
        self.programs = {}
        self.frames = collections.deque()  # that are complete: (type, id, body's bytes, where it begins, where it ends)
        self.rest = b""  # of a frame that is not
        self.withdrawn = set()
        self.files = 0

    def serve(self):
        """Run what comes, for as long as the node lives."""
        frames = self.frames
        while True:
            while not frames:
                self.read()
            kind, ident, data, begin, end = frames.popleft()
            if kind in (RUN_ITEM, RUN_FILE, RUN_FILES):
                if ident in self.withdrawn:
                    self.write(HEADER.pack(9, SKIPPED, ident))
                elif self.item(kind, ident, data, begin, end) > LONG and frames:
                    self.look()
                if self.withdrawn:
                    self.withdrawn = {i for i in self.withdrawn if i > ident}  # they come in the order of their ids
            elif kind == LOAD:
                self.loading(ident, json.loads(data[begin:end].decode()))
            elif kind == UNLOAD:
                self.programs.pop(ident, None)
            elif kind != REST:  # nothing is kept between jobs that the next one sees
                raise SystemExit("frame of type %#x from the node" % kind)

    def read(self):
        """Wait for bytes from the node, and put the frames in them in line. At the end of its input the process ends."""
        data = os.read(self.node_in, 1 << 16)
        if not data:
            os._exit(0)
        if self.rest:
            data = self.rest + data
        at, end = 0, len(data)
        while end - at >= 13:
            length, kind, ident = HEADER.unpack_from(data, at)
            after = at + 4 + length
            if after > end:
                if length > 1 << 16:
                    data, at = self.long(data[at:], 4 + length), 0
                    end = after = len(data)
                else:
                    break
            if kind == SKIP:
                self.withdrawn.add(ident)
            else:
                self.frames.append((kind, ident, data, at + 13, after))
            at = after
        self.rest = data[at:]

    def long(self, begun, length):
        """The whole of a frame that is longer than what is read at once."""
        parts, missing = [begun], length - len(begun)
        while missing:
            part = os.read(self.node_in, min(missing, 1 << 20))
            if not part:
                os._exit(0)
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def look(self):
        """Read what the node has sent, if it has: it may have withdrawn what is in line."""
        if os.name == "posix":
            poll = select.poll()
            poll.register(self.node_in, select.POLLIN)
            if poll.poll(0):
                self.read()

    def write(self, data):
        """Send bytes to the node, whole."""
        try:
            n = os.write(self.node_out, data)
            while n < len(data):
                data = data[n:]
                n = os.write(self.node_out, data)
        except OSError:  # the node is gone
            os._exit(0)

    def loading(self, ident, spec):
        """Load a program, and say whether that went well."""
        path = spec.get("path_entries") or []
        sys.path[:] = path + [p for p in self.path if p not in path]
        failure = None
        try:
            os.chdir(spec.get("dir") or spec.get("scratch") or "/")
            self.limits.set(spec["memory_bytes"])
            with open(spec["path"], "rb") as f:
                data = f.read()
            self.programs[ident] = Program(spec, self.load.load(data))
        except self.load.Invalid as e:
            failure = {"invalid": str(e)}
        except self.load.Unable as e:
            failure = {"unable": str(e)}
        except BaseException as e:
            failure = {"unable": one_line(e)}
        if os.getpid() != self.pid:
            os._exit(0)
        self.log.take(0)  # what was written so far is no task's
        if failure is None:
            body, kind = b"{}", LOADED
        else:
            body, kind = json.dumps(failure).encode(), LOAD_FAILED
        self.write(HEADER.pack(9 + len(body), kind, ident) + body)

    def item(self, kind, ident, data, begin, end):
        """Run an item and answer it. Returns for how long it ran, in seconds."""
        handle, index = struct.unpack_from("<QI", data, begin)
        program = self.programs[handle]
        begin += 12
        files = ()
        began = time.perf_counter()
        if kind == RUN_ITEM:
            given = data[begin:end]
        elif kind == RUN_FILE:
            given = self.read_file(data[begin:end].decode())
        else:
            given, files = self.input_and_files(data, begin, end)
        self.limits.set(program.memory)
        status, code, output, error = self.call(program, given, files, index + 1)
        if os.getpid() != self.pid:  # a process that the task forked, and that came back from it
            os._exit(0)
        if no_alarm is not None:
            no_alarm(signal.ITIMER_REAL, 0)  # one that the task has set would end another task
        log = self.log.take(program.log)
        parts = output if type(output) is list else (output,)
        length = sum(map(len, parts))
        if length > program.output:
            text = "output_limit: more than %s of output" % size(program.output)
            status, code, parts, length, error = OUTPUT_LIMIT, 1, (), 0, text
        ran = time.perf_counter() - began
        error = error.encode("utf-8", "replace")[:MAX_ERROR] if error else b""
        kind = ITEM_DONE
        if length > MAX_FRAME_OUTPUT and program.scratch:
            kind, parts = ITEM_DONE_FILE, (self.left(program, parts),)
            length = len(parts[0])
        size_of_frame = DONE.size - 4 + length + len(log) + len(error)
        head = DONE.pack(size_of_frame, kind, ident, status, code, int(ran * 1e6), length, len(log), len(error))
        self.write(b"".join((head,) + tuple(parts) + (log, error)))
        return ran

    def call(self, program, given, files, number):
        """Run a program's function: status, exit code, output, error."""
        try:
            failed, output, error = program.run(given, files, self.log.size, number)
            return (FAILED, 1, output, error) if failed else (OK, 0, output, "")
        except MemoryError:
            pass
        except SystemExit as e:
            if e.code is None or e.code == 0:
                return OK, 0, b"", ""
            if isinstance(e.code, int):
                code = e.code & 0x7FFFFFFF or 1
                return FAILED, code, b"", "exit code %d" % code
            print(e.code, file=sys.stderr)
            return FAILED, 1, b"", "exit code 1: %s" % one_line(e)
        except BaseException as e:
            return FAILED, 1, b"", one_line(e)
        gc.collect()  # outside of the handler, where the traceback still held what the task had
        return MEMORY_LIMIT, 1, b"", "over the memory limit of %s" % size(program.memory)

    @staticmethod
    def read_file(path):
        with open(path, "rb") as f:
            return f.read()

    def input_and_files(self, data, begin, end):
        """What a WorkerRunFiles has behind the index."""
        flags, count = PATHS.unpack_from(data, begin)
        begin += PATHS.size
        files = []
        for _ in range(count):
            (n,) = LENGTH.unpack_from(data, begin)
            begin += 2
            files.append(data[begin : begin + n].decode())
            begin += n
        if flags & 1:
            return self.read_file(files.pop()), files
        return data[begin:end], files

    def left(self, program, parts):
        """Leave an output in a file for the node. Returns the file's name."""
        self.files += 1
        name = "python-%d-%d" % (self.pid, self.files)
        with open(os.path.join(program.scratch, name), "xb") as f:
            for part in parts:
                f.write(part)
        return name.encode()


def take_descriptors():
    """Move the node's descriptors away from where tasks would find them, and give the tasks their own."""
    node_in, node_out = os.dup(0), os.dup(1)  # not inherited by what the tasks start
    if os.name == "nt":
        import msvcrt

        msvcrt.setmode(node_in, os.O_BINARY)
        msvcrt.setmode(node_out, os.O_BINARY)
    log = os.dup(2) if stat.S_ISREG(os.fstat(2).st_mode) else log_file()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.FileIO(0, "r", closefd=False), "utf-8")
    return node_in, node_out, Log(log)


def prefer_this():
    """Have the system end this process first, if it has to end one for want of memory."""
    try:
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("1000")
    except OSError:
        pass  # there is no such thing here


class ForkServer:
    """Makes worker processes of itself. It has all loaded that they need, and never runs anything of a task.

    The node's end of the socket is described in tasks/executor/fork_unix.go. What a request brings is four descriptors: standard input,
    output and error of the new process, and a pipe that ends when the node does.
    """

    REQUEST = struct.Struct("<Q")
    REPLY = struct.Struct("<QIi")
    STARTED, NOT_STARTED, ENDED = 0, 1, 2

    def __init__(self, fd):
        import _socket

        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        self.rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        self.room = _socket.CMSG_SPACE(4 * 4)
        self.children = {}  # process ID: number of its request
        # A signal for each that ended writes a byte into a pipe, for poll to see.
        self.bell, ring = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(ring, False)
        self.ring = ring
        signal.set_wakeup_fd(ring)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self):
        """Serve the node until it is gone. Returns in each new process."""
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        poll.register(self.bell, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.bell in ready:
                try:
                    os.read(self.bell, 4096)
                except BlockingIOError:
                    pass
                self.reap()
            if self.socket.fileno() in ready and self.request():
                return

    def request(self):
        """Take a request. True in the process that it makes."""
        data, ancillary, _, _ = self.socket.recvmsg(self.REQUEST.size, self.room)
        if len(data) < self.REQUEST.size:
            self.end()
        (ident,) = self.REQUEST.unpack(data)
        fds = []
        for level, kind, body in ancillary:
            if (level, kind) == self.rights:
                fds.extend(struct.unpack("%di" % (len(body) // 4), body[: len(body) // 4 * 4]))
        try:
            pid = os.fork()
        except OSError as e:
            self.reply(ident, self.NOT_STARTED, e.errno)
        else:
            if pid == 0:
                self.become(fds)
                return True
            try:
                os.setpgid(pid, pid)  # both do it: it is so for the one who comes first
            except OSError:
                pass
            self.children[pid] = ident
            self.reply(ident, self.STARTED, pid)
        for fd in fds:
            os.close(fd)
        return False

    def become(self, fds):
        """Be a worker process with these descriptors."""
        try:
            os.setpgid(0, 0)
        except OSError:
            pass
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if "random" in sys.modules:  # what site has imported; each process has numbers of its own
            sys.modules["random"].seed()
        self.socket.close()
        os.close(self.bell)
        os.close(self.ring)
        for fd, to in zip(fds, range(3)):
            os.dup2(fd, to)
            os.close(fd)
        die_with(fds[3])

    def reply(self, ident, kind, value):
        try:
            self.socket.sendall(self.REPLY.pack(ident, kind, value))
        except OSError:
            self.end()

    def reap(self):
        """Tell of those that ended, after killing what they have left behind."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self.kill(pid)
            ident = self.children.pop(pid, None)
            if ident is not None:
                self.reply(ident, self.ENDED, status)

    def kill(self, pid):
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass  # nobody is left

    def end(self):
        """The node is gone: so is all that it started."""
        for pid in self.children:
            self.kill(pid)
        os._exit(0)


def die_with(fd):
    """Have the system kill this process and what it starts when nobody can write to this pipe any more, also while it is in a loop that
    no signal handler and no thread of Python's would interrupt. Where the system cannot, the fork server does it."""
    os.set_inheritable(fd, False)
    if not hasattr(fcntl, "F_SETOWN") or not hasattr(os, "O_ASYNC") or not sys.platform.startswith("linux"):
        return
    F_SETSIG = 10
    fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpid())  # the group
    fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # it was too late for the signal
        os._exit(0)


def main(load):
    """Be a worker process, or with the word "fork" a fork server, until the node is gone. load is the module load."""
    here = os.path.realpath(os.path.dirname(os.path.abspath(__file__)))
    # Of ours, tasks import nothing by accident, but their modules may well import meshnode or pp: last of all, it is here.
    sys.path[:] = [p for p in sys.path if p and os.path.realpath(p) != here] + [os.path.dirname(os.path.dirname(here))]
    if sys.argv[1:] == ["fork"]:
        __import__("ast")  # load wants it for the first function that it makes
        gc.collect()
        if hasattr(gc, "freeze"):
            gc.freeze()  # what is here stays, and its pages are shared
        ForkServer(3).serve()
    prefer_this()
    node_in, node_out, log = take_descriptors()
    faulthandler.enable(2)  # a crash in C code leaves the Python lines that led to it in the log
    sys.argv = ["meshnode"]
    Worker(node_in, node_out, log, load).serve()
