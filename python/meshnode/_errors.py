"""What can go wrong, as exceptions."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import Optional


class MeshError(RuntimeError):
    """Something of the mesh, not of the function that was called, went wrong. All of meshnode's own errors are one."""


class NoNodeError(MeshError):
    """No node runs where one was looked for, and none could be started. The message says what to do."""


class NodeError(MeshError):
    """The node refused a request.

    Attributes:
        code: for programs: "no_job", "bad_request", "bad_program", "refused", "unavailable" and others.
        fix: what to do about it, a sentence; may be empty.
    """

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message + (" (" + fix + ")" if fix else ""))
        self.code, self.message, self.fix = code, message, fix


class BrokenMesh(MeshError, BrokenExecutor):
    """The node went away and did not come back in time: what was not answered by then has no result."""


class TaskError(MeshError):
    """A call could not be run to its end, through no exception of its own.

    Attributes:
        node: name of the node where it was, if known.
    """

    def __init__(self, message: str, node: Optional[str] = None) -> None:
        super().__init__(message)
        self.node = node


class WorkerLost(TaskError, BrokenExecutor):
    """The process that ran the call died, every time it was tried: a crash, or something ended it."""


class TaskTimeout(TaskError, TimeoutError):
    """The call ran longer than the option timeout allows, and was ended."""


class MemoryLimit(TaskError, MemoryError):
    """The call wanted more memory than it may have, and was ended."""


class OutputLimit(TaskError):
    """The call's result, or what it printed, is larger than a task's may be."""


class RemoteTraceback(Exception):
    """The traceback of an exception as it was where it came up. It is the cause (__cause__) of that exception here.

    Attributes:
        tb: the text.
        node: name of the node, "" if not known.
    """

    def __init__(self, tb: str, node: str = "") -> None:
        super().__init__(tb, node)
        self.tb, self.node = tb, node

    def __str__(self) -> str:
        where = " on node %s" % self.node if self.node else ""
        return '\n"""%s\n%s"""' % (where, self.tb if self.tb.endswith("\n") else self.tb + "\n")
