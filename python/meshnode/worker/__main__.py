"""What a node starts: see process.py. It is short, because Python compiles this file at each start, and keeps the code of others."""

import importlib.util
import os
import sys


def module(name):
    """A module from beside this file, under a name that no module of a task has."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = importlib.util.spec_from_file_location("meshnode.worker." + name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


if __name__ == "__main__":
    module("process").main(module("load"))
