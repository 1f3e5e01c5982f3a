"""Parallel Python's interface, on a mesh of nodes: programs written for pp or ppft run as they are.

    import pp

    def cube(x):
        return x**3

    job_server = pp.Server()
    jobs = [job_server.submit(cube, (x,)) for x in range(10)]
    print([job() for job in jobs])
    job_server.print_stats()

With a meshnode running here, that is the node which runs the tasks, together with the others of its mesh. With none, a
private node is started, and ended with the program. New programs are better off with meshnode.Executor.
"""

from __future__ import annotations

import sys

from ._server import Server, Template, version
from ._stats import Statistics
from ._task import DestroyedServerError, Task

__version__ = version
default_port = Server.default_port
pp = sys.modules[__name__]  # some programs say "from pp import pp"

__all__ = [
    "DestroyedServerError",
    "Server",
    "Statistics",
    "Task",
    "Template",
    "default_port",
    "pp",
    "version",
]
