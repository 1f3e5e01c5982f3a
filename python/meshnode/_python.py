"""meshnode-python: runs a Python program with the interpreter for which this package is installed.

    meshnode-python [SCRIPT|-c CODE|-m MODULE] [ARG...]

What follows is Python's own command line. pp, ppft and meshnode are importable in it, whatever else is on its path.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import List, Optional


def main(arguments: Optional[List[str]] = None) -> int:
    """Becomes the program, or runs it where processes cannot become others, and returns its exit code."""
    command = [sys.executable] + (sys.argv[1:] if arguments is None else arguments)
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = dict(os.environ)
    if here not in sys.path or env.get("PYTHONPATH"):
        env["PYTHONPATH"] = os.pathsep.join(p for p in (here, env.get("PYTHONPATH")) if p)
    if os.name == "posix":
        os.execve(command[0], command, env)
    return subprocess.call(command, env=env)


if __name__ == "__main__":
    sys.exit(main())
