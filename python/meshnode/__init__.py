"""meshnode: Python functions on a mesh of one's own machines.

    from meshnode import Executor

    with Executor() as ex:
        print(sum(ex.map(f, range(100000))))

Executor is a concurrent.futures.Executor. Client has more: values that are sent once, jobs that go on when the program has
ended, the nodes of the mesh. Both use the node that runs on this machine, or start a private one for this program.
"""

from meshnode._client import Client, Function
from meshnode._detached import DetachedJob
from meshnode._errors import (
    BrokenMesh,
    MemoryLimit,
    MeshError,
    NodeError,
    NoNodeError,
    OutputLimit,
    RemoteTraceback,
    TaskError,
    TaskTimeout,
    WorkerLost,
)
from meshnode._executor import Executor
from meshnode._future import Future
from meshnode._jobs import Options
from meshnode._ship import ShipError
from meshnode._values import Ref, RemoteError

__all__ = [
    "BrokenMesh",
    "Client",
    "DetachedJob",
    "Executor",
    "Function",
    "Future",
    "MemoryLimit",
    "MeshError",
    "NoNodeError",
    "NodeError",
    "Options",
    "OutputLimit",
    "Ref",
    "RemoteError",
    "RemoteTraceback",
    "ShipError",
    "TaskError",
    "TaskTimeout",
    "WorkerLost",
]
