"""What `meshnode submit file.py:function` runs once, where it is typed: it makes the bundle that travels.

Called as a script: `_submit.py FILE FUNCTION`. It loads FILE without running its main code, takes FUNCTION from it, and writes to standard output one line of JSON and then the bundle. What FILE prints as
it is loaded goes to standard error. The line is

    {"runtime", "name", "size", "path", "dir", "interpreter", "version", "contents"}    the bundle's size bytes follow, or
    {"error": {"message", "fix"}}                                                       each one sentence for a person
"""

import inspect
import json
import os
import sys
import traceback
from types import FunctionType, ModuleType
from typing import Any, BinaryIO, Callable, Dict, List, NoReturn, Tuple


# The name of a program that is loaded and not run, as multiprocessing has it.
_LOADING = "__mp_main__"


class Refusal(Exception):
    """What was typed cannot be submitted. Fix says what to do about it."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message, self.fix = message, fix


def _line_of(error: BaseException, path: str) -> str:
    """Where in the file at path the error came up: ", line 7", or "" if not in it."""
    line = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if os.path.abspath(frame.filename) == path:
            line = ", line %d" % (frame.lineno or 0)
    return line


def load(name: str) -> ModuleType:
    """The program in the file, as if it were run as a script, but for what it does only if its name is "__main__".

    So its functions travel as those of a program do, with what they use, and not the whole file: it may import what other
    machines do not have, or do things that are to be done once.
    """
    path = os.path.abspath(name)
    if os.path.isdir(path):
        raise Refusal("%s is a folder" % name, "name the file in it: folder/file.py:function")
    try:
        with open(path, "rb") as f:
            source = f.read()
    except OSError as e:
        raise Refusal("%s: %s" % (name, (e.strerror or str(e)).lower()), "give the path of a Python file: file.py:function")
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as e:
        line = ", line %d" % e.lineno if isinstance(e, SyntaxError) and e.lineno else ""
        why = e.msg if isinstance(e, SyntaxError) else str(e)
        version = "%d.%d" % sys.version_info[:2]
        raise Refusal("%s%s: %s" % (name, line, why), "correct it there; this is Python %s at %s" % (version, sys.executable))
    sys.path.insert(0, os.path.dirname(path))
    module = ModuleType(_LOADING)
    module.__file__ = path
    sys.modules[_LOADING] = module
    try:
        exec(code, module.__dict__)
    except SystemExit as e:
        raise Refusal(
            "%s%s: it ends the program (%r) as it is loaded" % (name, _line_of(e, path), e.code),
            'put what is not to run on other machines under if __name__ == "__main__":',
        )
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        last = traceback.format_exception_only(type(e), e)[-1].strip().replace("\n", " ")
        fix = "load it yourself to see more: %s -i %s" % (sys.executable, name)
        if isinstance(e, ImportError):
            fix = "install it for %s, or name another interpreter with --python" % sys.executable
        raise Refusal("%s%s: %s" % (name, _line_of(e, path), last), fix)
    # From here on it is the program.
    del sys.modules[_LOADING]
    sys.modules["__main__"] = module
    module.__name__ = "__main__"
    for v in list(vars(module).values()):
        if isinstance(v, (type, FunctionType)) and v.__module__ == _LOADING:
            v.__module__ = "__main__"
    return module


def _functions(module: ModuleType) -> List[str]:
    """The names of what could be submitted."""
    return [
        k
        for k, v in vars(module).items()
        if callable(v) and not k.startswith("_") and not isinstance(v, type) and getattr(v, "__module__", None) == module.__name__
    ]


def find(module: ModuleType, file: str, name: str) -> Callable[..., Any]:
    """The function name of the module, or of a class in it, as Class.function."""
    have = _functions(module)
    there = "it has " + ", ".join(have[:10]) + (", …" if len(have) > 10 else "") if have else "it defines no function"
    value: Any = module
    if not name:
        raise Refusal("%s: no function is named; %s" % (file, there), "name one: %s:%s" % (file, have[0] if have else "function"))
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise Refusal("%s has no function %s; %s" % (file, name, there), "name one of those after the colon")
    if not callable(value):
        raise Refusal("%s:%s is %s, which cannot be called; %s" % (file, name, _kind(value), there), "name a function after the colon")
    if inspect.isgeneratorfunction(value) or inspect.isasyncgenfunction(value):
        raise Refusal("%s:%s is a generator, which has no result to print" % (file, name), "name a function that returns a value")
    return value  # type: ignore[no-any-return]


def _kind(value: object) -> str:
    return "a module" if isinstance(value, ModuleType) else "of type " + type(value).__name__


def bundle(file: str, name: str) -> Tuple[Dict[str, Any], bytes]:
    """The line for the command line, and the bundle's bytes."""
    if sys.version_info < (3, 8):
        version = "%d.%d at %s" % (sys.version_info[0], sys.version_info[1], sys.executable)
        raise Refusal("Python %s is too old to submit from" % version, "name one from 3.8 on with --python")
    from meshnode._ship import ShipError, ship

    sys.path.append(sys.path.pop(0))  # the file may import this package, too, and has it if no other is installed
    function = find(load(file), file, name)
    try:
        b = ship(function)
    except ShipError as e:
        raise Refusal("%s:%s %s" % (file, name, " ".join(str(e).split())), "make it inside of the function, or give it as an input")
    head: Dict[str, Any] = {
        "runtime": b.runtime,
        "name": b.name,
        "size": len(b.data),
        "path": [os.path.abspath(p) for p in sys.path],
        "dir": os.getcwd(),
        "interpreter": sys.executable,
        "version": "%d.%d" % sys.version_info[:2],
        "contents": b.contents(),
    }
    return head, b.data


def main(argv: List[str], out: BinaryIO) -> int:
    """Writes the line and the bundle; 1 if there is none."""
    try:
        head, data = bundle(argv[0], argv[1])
    except Refusal as e:
        head, data = {"error": {"message": e.message, "fix": e.fix}}, b""
    out.write(json.dumps(head).encode() + b"\n" + data)
    out.flush()
    return 1 if "error" in head else 0


def _script() -> NoReturn:
    # The bundle has the real standard output for itself; what the file prints as it is loaded is for the person.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = 130
    try:
        code = main(sys.argv[1:], out)
    except KeyboardInterrupt:
        pass
    sys.stdout.flush()
    os._exit(code)  # threads that the file started do not keep us


if __name__ == "__main__":
    _script()
