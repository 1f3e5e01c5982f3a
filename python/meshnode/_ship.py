"""Functions become bundles: all that a function needs to run on another machine, as bytes.

What travels is source text: of the function, and of the functions and classes of the program that it uses, which are found
by walking the names in its code; what they find there besides travels by value, and modules by name. The user's own
modules (not of the standard library, not installed) travel whole. So a bundle runs on every version of Python that
understands the text. Where there is no text (the plain interactive interpreter, `exec`), or the text is not what runs any more
(the file was edited), the byte code travels, and the bundle names the version that it needs.

The format is described in worker/load.py, which reads it.
"""

from __future__ import annotations

import ast
import base64
import builtins
import dis
import functools
import importlib
import importlib.util
import io
import json
import marshal
import os
import pickle
import site
import sys
import sysconfig
import threading
import types
from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Set, Tuple, TypeVar

from . import _source
from .worker.load import MAGIC, digest_of

_VERSION = "%d.%d" % sys.version_info[:2]

# Of the user's own modules, so much travels with a function; more is a folder of something else that got in by mistake.
MAX_MODULES = 1000
MAX_SOURCE = 16 << 20


# So often arguments may make a bundle grow; then what they need travels with each call.
MAX_GROWTHS = 8

# Stands, among what a bundle lacks, for the version of this Python.
BYTE_CODE = object()

# Callables that change only as their parts do, which are looked at one by one.
_DEFINITIONS = (types.FunctionType, types.BuiltinFunctionType, type)


class ShipError(TypeError):
    """Something cannot travel to other machines. The message names the variable or the object."""


class _Captured(NamedTuple):
    """Something that travelled by value, where it was found, for noticing that it changed."""

    get: Callable[[], Any]
    value: Any
    state: Optional[bytes]


_MISSING = object()
_T = TypeVar("_T")


class Bundle:
    """A function as it travels.

    Attributes:
        data: the bytes. The same definitions give the same bytes.
        runtime: what a node must have: "python", or "python3.12" if byte code is inside.
        name: of the function, for people.
    """

    def __init__(self, data: bytes, runtime: str, name: str, walk: "_Walk") -> None:
        self.data = data
        self.runtime = runtime
        self.name = name
        self._walk = walk
        self._layers: List["_Walk"] = []  # what arguments brought besides
        self._digests: Dict[str, "_Walk"] = {}  # the latest of those, and of what single calls brought
        self._made_of: Tuple[Any, ...] = ()  # what ship() was given
        self._wanted: List[Any] = []  # classes and modules that arguments had in them, and the bundle lacks
        self._grown: Optional["Bundle"] = None
        self._growths = 0

    def _want(self, o: Any) -> None:
        """Notes something that arguments had in them: it is in the bundle that grown() gives."""
        if not any(o is w or isinstance(o, str) and o == w for w in self._wanted):
            self._wanted.append(o)

    def _want_for(self, walk: "_Walk") -> None:
        """The same for what arguments brought: the modules that it needs, and the version of byte code."""
        if walk.python and not self._walk.python:
            self._want(BYTE_CODE)
        for o in walk.objects:
            m = sys.modules.get(o["module"]) if o["k"] == "import" else None
            if m is not None and module_installed(m) and not self._walk.has_module(m):
                self._want(m.__name__.partition(".")[0])
        for name in sorted(walk.wants):
            if name not in self._walk.wants:
                self._want(name)

    def lacks(self) -> bool:
        """Whether arguments had classes in them, or modules that a machine must have, which the bundle says nothing of. They
        travel with each such call; with grown() they need not, and calls go only to machines that have the modules."""
        return bool(self._wanted) and self._growths < MAX_GROWTHS and bool(self._made_of)

    def grown(self) -> "Bundle":
        """The bundle with what it lacks."""
        if self._grown is None:
            func, depfuncs, modules, globals, before = self._made_of
            wanted = before + tuple(self._wanted)
            self._grown = _make(func, depfuncs, modules, globals, wanted)
            self._grown._growths = self._growths + 1
        return self._grown

    def _remember(self, data: bytes, walk: "_Walk") -> None:
        """A result may name an object that arguments brought."""
        self._digests[digest_of(data)] = walk
        if len(self._digests) > 1000:
            del self._digests[next(iter(self._digests))]

    def _object(self, number: int, digest: str) -> Any:
        """The object of this program that a result means."""
        walk = self._digests.get(digest) if digest else self._walk
        if walk is None:
            raise pickle.UnpicklingError("a result names a function of an older call's arguments, which is forgotten")
        return walk.object(number)

    def _shipped_as(self, name: str) -> Any:
        """The function or class that __main__ has under a name over there, or None."""
        for walk in [self._walk] + self._layers:
            o = walk.shipped_as(name)
            if o is not None:
                return o
        return None

    def _own_modules(self) -> FrozenSet[str]:
        return frozenset(name for walk in [self._walk] + self._layers for name in walk.sources)

    def __repr__(self) -> str:
        return "<Bundle of %s, %s, %d bytes>" % (self.name, self.runtime, len(self.data))

    def contents(self) -> List[str]:
        """What is inside, for people: "function f", "class C", "value limit", "module helpers"."""
        return self._walk.contents()

    def current(self) -> bool:
        """Whether the function, and what travelled by value with it, is still as it was. What is changed inside of large
        values (over 4 KiB as a pickle) is not seen: pass such things as arguments."""
        return self._walk.current()


def _sure_imports(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The packages of what statements import, but for those that may not come to it, or go on without: in try, if and with."""
    for s in body:
        if isinstance(s, ast.Import):
            for a in s.names:
                yield a.name.partition(".")[0]
        elif isinstance(s, ast.ImportFrom) and s.module and not s.level and s.module != "__future__":
            yield s.module.partition(".")[0]
        elif isinstance(s, (ast.For, ast.While)):
            yield from _sure_imports(s.body)


def ship(
    func: Callable[..., Any],
    depfuncs: Iterable[Any] = (),
    modules: Iterable[str] = (),
    globals: Optional[Mapping[str, Any]] = None,
) -> Bundle:
    """The bundle of a callable.

    Args:
        func: any callable: a function, lambda, closure, method, class, partial, callable object, builtin.
        depfuncs: functions and classes to take along besides those that are found.
        modules: "math", "os.path", "numpy as np", "from a import b as c": names to import for it.
        globals: names that the function is to have besides; modules in it are imported there, functions and classes shipped.

    Raises:
        ShipError: something cannot travel.
    """
    if not callable(func):
        raise ShipError("%r cannot be called: it is of type %s" % (func, type(func).__name__))
    depfuncs, modules = tuple(depfuncs), tuple(modules)
    key = _key(func, depfuncs, modules, globals)
    bundle = _cache.get(key) if key is not None else None
    if bundle is not None and bundle.current():
        if not bundle.lacks():
            return bundle
        bundle = bundle.grown()
    else:
        bundle = _make(func, depfuncs, modules, globals, ())
    if key is not None:
        with _cache_lock:
            _cache.pop(key, None)
            while len(_cache) >= _CACHE:
                del _cache[next(iter(_cache))]
            _cache[key] = bundle
    return bundle


class Caller:
    """What calls its first argument with the others. Shipped, it is the program for functions that are alike (closures that a loop
    makes, say): they travel as arguments, and need no job each.

    Args:
        name: of these functions, for people.
    """

    def __init__(self, name: str) -> None:
        self.__qualname__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0](*args[1:], **kwargs)


def _make(
    func: Any,
    depfuncs: Tuple[Any, ...],
    modules: Tuple[str, ...],
    globals: Optional[Mapping[str, Any]],
    wanted: Tuple[Any, ...],
) -> Bundle:
    bundle = _Walk().bundle(func, depfuncs, modules, globals, wanted)
    bundle._made_of = func, depfuncs, modules, globals, wanted
    return bundle


# So many functions are remembered with their bundles, which keeps them alive.
_CACHE = 256
_cache: Dict[Any, Bundle] = {}
_cache_lock = threading.Lock()


def _key(func: Any, depfuncs: Tuple[Any, ...], modules: Tuple[str, ...], globals: Optional[Mapping[str, Any]]) -> Any:
    if isinstance(func, types.MethodType):
        return None  # a new object at each look
    if not isinstance(func, _DEFINITIONS) and _state(func) is None:
        return None  # one could not tell whether it changed
    names = tuple((k, id(v)) for k, v in globals.items()) if globals else ()
    return id(func), tuple(map(id, depfuncs)), modules, names


def _texts(func: Any) -> Dict[str, Any]:
    """Which of a callable's positional arguments are annotated with str: of the command line they get the text as it is."""
    annotated = func.__init__ if isinstance(func, type) else func  # type: ignore[misc]
    try:
        if not any(a in (str, "str") for a in getattr(annotated, "__annotations__", {}).values()):
            return {}
        import inspect

        parameters = list(inspect.signature(func).parameters.values())
    except Exception:  # annotations are the user's: they may raise anything
        return {}
    texts: Dict[str, Any] = {}
    for i, p in enumerate(parameters):
        if p.annotation in (str, "str"):
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                texts.setdefault("at", []).append(i)
            elif p.kind == p.VAR_POSITIONAL:
                texts["rest"] = i
    return texts


def _label(o: Any) -> str:
    t = type(o)
    name = t.__qualname__ if t.__module__ in ("builtins", "__main__") else t.__module__ + "." + t.__qualname__
    return "of type " + name


# ---- which modules are the user's own


def _roots() -> Tuple[str, ...]:
    paths = sysconfig.get_paths()
    found = {paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib") if k in paths}
    found.add(os.path.dirname(os.__file__))
    for get in ("getsitepackages", "getusersitepackages"):
        try:
            there = getattr(site, get)()
        except Exception:
            continue
        found.update([there] if isinstance(there, str) else there)
    return tuple(os.path.realpath(p) + os.sep for p in found if p)


_INSTALLED = _roots()
_HERE = os.path.dirname(os.path.realpath(__file__))


@functools.lru_cache(maxsize=None)
def _own_file(path: str) -> bool:
    real = os.path.realpath(path)
    if not real.endswith(".py") or real.startswith(_INSTALLED) or real.startswith(_HERE + os.sep):
        return False
    parts = real.split(os.sep)
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    around = os.path.dirname(_HERE)
    return not any(real.startswith(os.path.join(around, p) + os.sep) for p in ("pp", "ppft"))


def own(module: Any) -> bool:
    """Whether a module is the user's own: it travels as source."""
    file = getattr(module, "__file__", None)
    return (
        isinstance(module, types.ModuleType)
        and isinstance(file, str)
        and module.__name__ != "__main__"
        and sys.modules.get(module.__name__) is module
        and _own_file(file)
    )


def module_needed(m: types.ModuleType) -> bool:
    """Whether a module has to be sent before a pickle can name what is in it."""
    return own(m)


def module_installed(m: types.ModuleType) -> bool:
    """Whether a module is neither the user's own nor of the standard library: another machine may lack it."""
    root = m.__name__.partition(".")[0]
    known = getattr(sys, "stdlib_module_names", None)
    if known is not None and root in known or root in ("builtins", "__main__", "meshnode", "pp", "ppft"):
        return False
    file = getattr(sys.modules.get(root), "__file__", None)
    if not isinstance(file, str) or own(m):
        return False
    real = os.path.realpath(file)
    return "site-packages" in real.split(os.sep) or "dist-packages" in real.split(os.sep) or not real.startswith(_INSTALLED)


# ---- what code uses


class _Uses(NamedTuple):
    names: List[str]  # of globals
    imports: List[Tuple[str, int, Tuple[str, ...]]]  # statements inside: name, level, names
    every: Set[str]  # also of attributes


_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}


@functools.lru_cache(maxsize=4096)
def _uses(code: types.CodeType) -> _Uses:
    names: Set[str] = set()
    imports: List[Tuple[str, int, Tuple[str, ...]]] = []
    every: Set[str] = set()
    for c in _source.codes(code):
        every.update(c.co_names)
        consts: List[Any] = []
        for i in dis.get_instructions(c):
            if i.opname in _LOADS:
                names.add(i.argval)
            elif i.opname == "LOAD_CONST":
                consts.append(i.argval)
            elif i.opname == "IMPORT_NAME":
                level, froms = consts[-2:] if len(consts) >= 2 else (0, None)
                imports.append((i.argval, level if isinstance(level, int) else 0, tuple(froms or ())))
    return _Uses(sorted(names), imports, every)


def _now(code: types.CodeType) -> Set[str]:
    """The globals that a class statement uses while it runs, not in its methods."""
    names = set()
    for i in dis.get_instructions(code):
        if i.opname in _LOADS:
            names.add(i.argval)
    for c in code.co_consts:
        if isinstance(c, types.CodeType) and (not c.co_flags & 1 or c.co_name.startswith("<")):
            names |= _now(c)
    return names


# ---- walking


class _Values(pickle.Pickler):
    """Pickles a value of a bundle; functions, classes and modules in it are objects of the bundle."""

    def __init__(self, walk: "_Walk", out: io.BytesIO) -> None:
        super().__init__(out, 4)
        self.walk = walk

    def persistent_id(self, o: Any) -> Optional[int]:
        t = type(o)
        if t is types.FunctionType or t is types.ModuleType or isinstance(o, type):
            if isinstance(o, type) and o.__module__ == "builtins" and getattr(builtins, o.__name__, None) is o:
                return None
            return self.walk.add(o)
        if t is types.CellType:
            return self.walk.add(o)
        return None


class _Walk:
    """Makes one bundle."""

    def __init__(self, before: Optional["_Walk"] = None) -> None:
        self.before = before
        self.base = before.count() if before is not None else 0
        self.objects: List[Dict[str, Any]] = []  # those from number `base` on
        self.index: Dict[int, int] = {}  # of objects, by id
        self.texts: Dict[str, int] = {}  # of immutable literals
        self.keep: List[Any] = []  # so that ids stay what they are
        self.spaces: List[Dict[str, Any]] = []
        self.space_of: Dict[int, int] = {}
        self.sources: Dict[str, Dict[str, Any]] = {}
        self.python = ""
        self.captured: List[_Captured] = []
        self.trail: List[str] = []  # what is being looked at, for errors
        self.size = 0
        self.by_number: Optional[Dict[int, Any]] = None
        self.extra: Dict[str, Any] = {}
        self.wants: Set[str] = set()  # modules that functions import when they run

    def bundle(
        self,
        func: Any,
        depfuncs: Tuple[Any, ...],
        modules: Tuple[str, ...],
        globals: Optional[Mapping[str, Any]],
        wanted: Tuple[Any, ...],
    ) -> Bundle:
        main = sys.modules["__main__"]
        self.space(main.__dict__)
        package = getattr(main, "__package__", None)
        if package:
            self.spaces[0]["package"] = package
        name = _name(func)
        ns = _globals_of(func)
        self.extra = dict(globals or {})
        for f in depfuncs:
            if getattr(f, "__name__", "").isidentifier():
                self.extra.setdefault(f.__name__, f)
        target = self.space(ns) if ns is not None else 0
        if self.spaces[target].get("real"):
            target = 0
        root = None if isinstance(func, Caller) else self.add(func)
        if isinstance(func, types.FunctionType):
            self.want(func.__code__)
        if root is not None and not isinstance(func, _DEFINITIONS):
            self.watch(lambda: func, func)
        for o in wanted:
            if o is BYTE_CODE:
                self.python = _VERSION
            elif isinstance(o, str):
                self.wants.add(o)
            elif not isinstance(o, types.ModuleType):
                self.bind_class(o)
            elif own(o):
                self.need(o)
            else:
                self.wants.add(o.__name__.partition(".")[0])
        own_name = getattr(func, "__name__", None)
        if own_name in main.__dict__ and main.__dict__[own_name] is func:
            self.bind(main.__dict__, [own_name])  # so that pickles find it
        for text in modules:
            for as_name, number in self.statement(text):
                self.spaces[target]["bind"][as_name] = number
        for f in depfuncs:
            k = getattr(f, "__name__", "")
            if k.isidentifier() and self.extra[k] is f and k not in self.spaces[target]["bind"]:
                self.spaces[target]["bind"][k] = self.attempt(functools.partial(self.under, k, f))
        needed = [set(s["bind"]) for s in self.spaces]
        for k in sorted(self.extra):
            if isinstance(k, str) and k not in self.spaces[target]["bind"] and not k.startswith("__"):
                v = self.extra[k]
                try:
                    self.spaces[target]["bind"][k] = self.attempt(functools.partial(self.under, k, v))
                except ShipError:
                    pass  # what the function does not use may be in a dict of globals by accident, and is not missed
        for i, s in enumerate(self.spaces):
            spare = set(s["bind"]) - (needed[i] if i < len(needed) else set())
            if spare:
                s["spare"] = sorted(spare)
        data = self.encode(name, root, _texts(func))
        return Bundle(data, "python" + self.python, name, self)

    def encode(self, name: str, root: Optional[int], texts: Dict[str, Any]) -> bytes:
        spec: Dict[str, Any] = {"name": name, "python": self.python, "root": root, "sources": self.sources}
        if texts:
            spec["texts"] = texts
        if self.wants:
            spec["wants"] = sorted(self.wants)
        return MAGIC + b"\n" + self.text(spec)

    def begin(self) -> None:
        """For a walk that continues another: namespace 0 is __main__."""
        self.space(sys.modules["__main__"].__dict__)

    def layer(self) -> bytes:
        """What such a walk found, as it travels with calls."""
        return self.text({"python": self.python, "sources": self.sources})

    def bind_class(self, c: type) -> None:
        """Adds a class, under its name in __main__, where the pickles of results look for it."""
        number = self.add(c)
        if c.__module__ == "__main__" and "." not in c.__qualname__:
            self.spaces[0]["bind"].setdefault(c.__name__, number)

    def object(self, number: int) -> Any:
        """The function or class of this program that has a number."""
        if self.by_number is None:
            ids = {id(o): o for o in self.keep}
            self.by_number = {n: ids[i] for i, n in self.index.items() if i in ids}
        o = self.by_number[number]
        if not isinstance(o, (type, types.FunctionType)):
            raise pickle.UnpicklingError("object %d of the bundle is neither function nor class" % number)
        return o

    def shipped_as(self, name: str) -> Any:
        """The function or class that __main__ has under a name in the bundle, or None."""
        number = self.spaces[0]["bind"].get(name)
        if number is None or self.spec(number)["k"] not in (
            "function",
            "class",
            "type",
            "namedtuple",
            "decorated",
            "call",
        ):
            return None
        if self.by_number is None:
            try:
                self.object(number)
            except pickle.UnpicklingError:
                pass
        assert self.by_number is not None
        return self.by_number.get(number)

    def count(self) -> int:
        return self.base + len(self.objects)

    def named(self, o: Any, number: int) -> bool:
        """Whether a pickle can name an object of this walk that has this number, by its place in __main__."""
        if number >= self.count() or not self.spaces or o.__module__ != "__main__":
            return False
        name = o.__qualname__
        return self.spaces[0]["bind"].get(name) == number and sys.modules["__main__"].__dict__.get(name) is o

    def text(self, spec: Dict[str, Any]) -> bytes:
        spec = dict(spec, objects=self.objects, spaces=self.spaces)
        return json.dumps(spec, sort_keys=True, separators=(",", ":")).encode("ascii")

    def contents(self) -> List[str]:
        found = []
        bound = {n: k for s in self.spaces for k, n in s["bind"].items()}
        for i, o in enumerate(self.objects):
            k = o["k"]
            if k in ("function", "class", "namedtuple"):
                kind = "function" if k == "function" else "class"
                found.append("%s %s%s" % (kind, o["qualname"], " (byte code)" if "code" in o else ""))
            elif k == "import":
                found.append("module " + o["module"] if not o.get("name") else "name %s.%s" % (o["module"], o["name"]))
            elif k in ("literal", "pickle") and i in bound:
                found.append("value " + bound[i])
        found.extend("source of module " + s for s in sorted(self.sources))
        return sorted(set(found))

    # -- noticing changes

    def current(self) -> bool:
        for c in self.captured:
            try:
                now = c.get()
            except Exception:
                return False
            if now is not c.value:
                return False
            if c.state is not None and _state(now) != c.state:
                return False
        return True

    def watch(self, get: Callable[[], Any], value: Any) -> None:
        self.captured.append(_Captured(get, value, _state(value)))

    # -- errors

    def under(self, what: str, o: Any) -> int:
        self.trail.append(what)
        try:
            return self.add(o)
        finally:
            self.trail.pop()

    def error(self, why: str) -> ShipError:
        where = ", in ".join(reversed(self.trail)) if self.trail else "it"
        return ShipError("cannot travel: %s %s" % (where, why))

    def attempt(self, walk: Callable[[], _T]) -> _T:
        """What walk returns; if it fails, all that it put in is taken out again."""
        index, texts, space_of = dict(self.index), dict(self.texts), dict(self.space_of)
        binds = [dict(s["bind"]) for s in self.spaces]
        sizes = len(self.objects), len(self.keep), len(self.captured), len(self.trail)
        sources, python, size = dict(self.sources), self.python, self.size
        try:
            return walk()
        except Exception:
            self.index, self.texts, self.space_of = index, texts, space_of
            del self.spaces[len(binds) :]
            for s, bind in zip(self.spaces, binds):
                s["bind"] = bind
            del self.objects[sizes[0] :], self.keep[sizes[1] :], self.captured[sizes[2] :], self.trail[sizes[3] :]
            self.sources, self.python, self.size = sources, python, size
            raise

    # -- objects

    def put(self, o: Any, spec: Dict[str, Any]) -> int:
        """Reserves the number of an object whose spec is filled in later."""
        number = self.new(spec)
        self.index[id(o)] = number
        self.keep.append(o)
        return number

    def new(self, spec: Dict[str, Any]) -> int:
        self.objects.append(spec)
        return self.base + len(self.objects) - 1

    def spec(self, number: int) -> Dict[str, Any]:
        if number < self.base:
            assert self.before is not None
            return self.before.spec(number)
        return self.objects[number - self.base]

    def known(self, o: Any) -> Optional[int]:
        """The number of an object that is in already."""
        number = self.index.get(id(o))
        if number is None and self.before is not None:
            number = self.before.known(o)
        return number

    def has_module(self, m: types.ModuleType) -> bool:
        """Whether the bundle says that a machine must have the package of a module."""
        root = m.__name__.partition(".")[0]
        return root in self.wants or any(
            o["k"] == "import" and o["module"].partition(".")[0] == root for o in self.objects
        )

    def has_source(self, name: str) -> bool:
        return name in self.sources or (self.before is not None and self.before.has_source(name))

    def add(self, o: Any) -> int:
        """The number of an object, which is walked if it is new."""
        known = self.known(o)
        if known is not None:
            return known
        literal = _literal(o)
        if literal is not None:
            text, mutable = literal
            if not mutable:
                known = self.texts.get(text)
                if known is None:
                    known = self.texts[text] = self.put(o, {"k": "literal", "text": text})
                return known
            return self.put(o, {"k": "literal", "text": text, "mutable": True})
        t = type(o)
        if t is types.ModuleType:
            return self.module(o)
        found = self.by_name(o)
        if found is not None:
            return found
        found = self.decorated(o)
        if found is None:
            found = self.part_of_class(o)
        if found is not None:
            return found
        if t is types.FunctionType:
            return self.function(o)
        if t is types.CellType:
            return self.cell(o)
        if isinstance(o, type):
            return self.klass(o)
        if t in (staticmethod, classmethod):
            return self.made(o, t, (o.__func__,))
        if t is property:
            return self.made(o, t, (o.fget, o.fset, o.fdel, o.__doc__))
        if t is TypeVar:
            return self.made(o, t, (o.__name__, *o.__constraints__), __module__=o.__module__)
        return self.value(o)

    def made(self, o: Any, by: Any, args: Tuple[Any, ...], **set: str) -> int:
        """An object that calling something with other objects makes."""
        spec: Dict[str, Any] = {"k": "call"}
        number = self.put(o, spec)
        spec["of"] = self.add(by)
        spec["args"] = [self.add(a) for a in args]
        if set:
            spec["set"] = set
        return number

    def part_of_class(self, o: Any) -> Optional[int]:
        """A function that is an attribute of a class of the program: Class.method."""
        if type(o) is not types.FunctionType or "<" in o.__qualname__:
            return None
        path, _, name = o.__qualname__.rpartition(".")
        if not path:
            return None
        c = _attribute(sys.modules.get(o.__module__), path)
        if not isinstance(c, type) or vars(c).get(name) is not o or self.known(c) is None and self.by_name_of(c):
            return None
        spec: Dict[str, Any] = {"k": "attribute", "name": name}
        spec["of"] = self.under("class %s" % c.__qualname__, c)
        known = self.known(o)
        return known if known is not None else self.put(o, spec)

    def by_name_of(self, c: Any) -> bool:
        """Whether importing finds a function or class."""
        if not isinstance(c.__module__, str) or "<" in c.__qualname__:
            return False
        return c.__module__ != "__main__" and _attribute(sys.modules.get(c.__module__), c.__qualname__) is c

    def by_name(self, o: Any) -> Optional[int]:
        """An object that importing finds: of the standard library, of what is installed, of the user's own modules."""
        if not (
            isinstance(o, (type, types.FunctionType, types.BuiltinFunctionType))
            or hasattr(type(o), "__wrapped__")
            or hasattr(o, "__wrapped__")
        ):
            return None
        name = getattr(o, "__qualname__", None)
        module = getattr(o, "__module__", None)
        if isinstance(o, types.BuiltinFunctionType):
            me = getattr(o, "__self__", None)
            if isinstance(me, types.ModuleType):
                module = me.__name__
            elif me is not None:
                return None  # a method of some value
        if not isinstance(name, str) or not isinstance(module, str) or module == "__main__" or "<" in name:
            return None
        m = sys.modules.get(module)
        if m is None or _attribute(m, name) is not o:
            return None
        return self.imported(o, m, name)

    def imported(self, o: Any, m: types.ModuleType, name: str) -> int:
        self.need(m)
        return self.put(o, {"k": "import", "module": _portable(m.__name__), "name": name})

    def module(self, m: types.ModuleType) -> int:
        if m is sys.modules.get("__main__"):
            return self.put(m, {"k": "import", "module": "__main__"})
        if sys.modules.get(m.__name__) is not m:
            raise self.error("is a module that cannot be imported: %s" % m.__name__)
        number = self.put(m, {"k": "import", "module": _portable(m.__name__)})
        self.need(m)
        return number

    def need(self, m: types.ModuleType) -> None:
        """The module must be there: if it is the user's own, its source travels, with what it imports of the user's own."""
        name = m.__name__
        if self.has_source(name) or name == "__main__":
            return
        parent = name.rpartition(".")[0]
        if parent and parent in sys.modules:
            self.need(sys.modules[parent])
        if not own(m):
            return
        if len(self.sources) >= MAX_MODULES:
            raise self.error("needs more than %d modules of the program" % MAX_MODULES)
        source = _source_of_module(m)
        self.size += len(source)
        if self.size > MAX_SOURCE:
            raise self.error("needs more than %d MiB of the program's modules" % (MAX_SOURCE >> 20))
        package = hasattr(m, "__path__")
        file = m.__file__ or ""
        shown = "/".join(name.split(".")) + ("/__init__.py" if package else ".py")
        spec: Dict[str, Any] = {"file": shown, "package": package}
        self.sources[name] = spec
        if _edited(m, source):
            code = _cached_code(m)
            if code is None:
                raise self.error(
                    "is in the module %s, whose file changed since it was imported (%s): import it again or restart"
                    % (name, file)
                )
            spec["code"] = base64.b64encode(marshal.dumps(code)).decode("ascii")
            self.python = _VERSION
        else:
            spec["source"] = source
        for other in _imports_of(source, name, package):
            found = sys.modules.get(other)
            if found is not None and own(found):
                self.need(found)

    def statement(self, text: str) -> List[Tuple[str, int]]:
        """The names that an import gives: "numpy as np", "import a as b", "from a import b as c"."""
        words = text.strip()
        if not words.startswith(("import ", "from ")):
            words = "import " + words
        try:
            tree = ast.parse(words)
        except SyntaxError:
            raise ShipError("not an import: %r" % text) from None
        found = []
        for s in tree.body:
            if isinstance(s, ast.Import):
                for a in s.names:
                    self.need_name(a.name)
                    top = a.name if a.asname else a.name.partition(".")[0]
                    spec: Dict[str, Any] = {"k": "import", "module": top}
                    if top != a.name:
                        spec["also"] = [a.name]
                    found.append((a.asname or top, self.new(spec)))
            elif isinstance(s, ast.ImportFrom) and s.module and not s.level:
                self.need_name(s.module)
                for a in s.names:
                    if a.name == "*":
                        raise ShipError("not an import that names what it imports: %r" % text)
                    self.need_name(s.module + "." + a.name)
                    found.append((a.asname or a.name, self.new({"k": "import", "module": s.module, "name": a.name})))
            else:
                raise ShipError("not an import: %r" % text)
        return found

    def need_name(self, name: str) -> None:
        """The same for a module that may not be imported here yet; one that is not the user's own need not even be here."""
        m = sys.modules.get(name)
        if m is None:
            try:
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError, AttributeError):
                return
            if spec is None or not isinstance(spec.origin, str) or not _own_file(spec.origin):
                return
            try:
                m = importlib.import_module(name)
            except Exception:
                return
        self.need(m)

    def space(self, ns: Dict[str, Any]) -> int:
        """The number of the namespace of functions that have these globals."""
        known = self.space_of.get(id(ns))
        if known is not None:
            return known
        name = ns.get("__name__")
        m = sys.modules.get(name) if isinstance(name, str) else None
        spec: Dict[str, Any] = {"name": name if isinstance(name, str) else "__main__", "bind": {}}
        number = len(self.spaces)
        self.spaces.append(spec)
        self.space_of[id(ns)] = number
        self.keep.append(ns)
        if number and m is not None and m.__dict__ is ns:
            spec["real"] = True
            self.need(m)
        return number

    def bind(self, ns: Dict[str, Any], names: Iterable[str]) -> List[str]:
        """The names that are bound in the bundle's namespace, of those used."""
        number = self.space(ns)
        space = self.spaces[number]
        bound = []
        for name in names:
            if name in space["bind"]:
                bound.append(name)
                continue
            if number == 0 and name in self.extra:
                value = self.extra[name]
            elif name in ns:
                value = ns[name]
                self.watch(functools.partial(ns.__getitem__, name), value)
            elif name in self.extra and not space.get("real"):
                value = self.extra[name]
            else:
                continue  # a builtin, or missing: then the function will say so
            if space.get("real"):
                continue  # it is in the module there
            if name in ("__name__", "__builtins__", "__file__", "__doc__", "__package__", "__spec__", "__loader__"):
                continue
            space["bind"][name] = -1
            try:
                space["bind"][name] = self.under("variable %s" % name, value)
            except BaseException:
                del space["bind"][name]
                raise
            bound.append(name)
        return bound

    def follow(self, code: types.CodeType, ns: Dict[str, Any]) -> List[str]:
        """Takes along what code uses; the names of its globals."""
        uses = _uses(code)
        self.want(code)
        names = self.bind(ns, uses.names)
        self.submodules(uses, ns)
        for name, level, froms in uses.imports:
            base = name
            if level:
                package = ns.get("__package__") or ""
                try:
                    base = importlib.util.resolve_name("." * level + name, package)
                except (ImportError, ValueError):
                    continue
            self.need_name(base)
            for f in froms:
                if base + "." + f in sys.modules:
                    self.need_name(base + "." + f)
        return names

    def want(self, code: types.CodeType) -> None:
        """Notes what a function imports in any case when it is called: a machine without it cannot run it."""
        source = _source.of_code(code)
        if source is None or not isinstance(source.node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        for name in _sure_imports(source.node.body):
            if name in self.wants or name in sys.builtin_module_names:
                continue
            m = sys.modules.get(name)
            try:
                here = m is not None or importlib.util.find_spec(name) is not None
            except (ImportError, ValueError, AttributeError):
                continue
            if here and not (m is not None and own(m)):
                self.wants.add(name)

    def submodules(self, uses: _Uses, ns: Dict[str, Any]) -> None:
        """`import a.b` binds a; so of a module that is used, those below are imported that the code names and that are here."""
        for name in uses.names:
            m = ns.get(name)
            number = self.known(m)
            if type(m) is not types.ModuleType or number is None:
                continue
            if number < self.base and self.submodules_of(m, uses):
                number = self.put(m, {"k": "import", "module": _portable(m.__name__)})
            spec = self.spec(number)
            prefix = m.__name__ + "."
            for other in self.submodules_of(m, uses):
                also = spec.setdefault("also", [])
                if other not in also:
                    also.append(other)
                    also.sort()
                    self.need(sys.modules[other])

    def submodules_of(self, m: types.ModuleType, uses: _Uses) -> List[str]:
        prefix = m.__name__ + "."
        return [
            n
            for n in sorted(sys.modules)
            if n.startswith(prefix)
            and uses.every.issuperset(n[len(prefix) :].split("."))
            and sys.modules[n] is not None
        ]

    def source(self, code: types.CodeType) -> Optional[_source.Source]:
        return _source.of_code(code)

    def function(self, f: types.FunctionType) -> int:
        spec: Dict[str, Any] = {"k": "function"}
        number = self.put(f, spec)
        self.trail.append("function %s" % f.__qualname__)
        code = f.__code__
        spec.update(
            name=f.__name__,
            qualname=f.__qualname__,
            module=f.__module__ if isinstance(f.__module__, str) else "__main__",
            space=self.space(f.__globals__),
            free=list(code.co_freevars),
        )
        self.watch(lambda: f.__code__, code)
        source = self.source(code)
        if source is None:
            self.byte_code(spec, code)
        else:
            spec.update(source=source.text, file=source.file, line=source.line)
            if source.future:
                spec["future"] = source.future
            owner = _owner(f, source)
            if owner:
                spec["owner"] = owner
        spec["uses"] = self.follow(code, f.__globals__)
        spec["cells"] = []
        for name, cell in zip(code.co_freevars, f.__closure__ or ()):
            spec["cells"].append(self.under("variable %s" % name, cell))
        if f.__defaults__:
            self.watch(lambda: f.__defaults__, f.__defaults__)
            spec["defaults"] = self.under("a default value", f.__defaults__)
        if f.__kwdefaults__:
            spec["kwdefaults"] = self.under("a default value", f.__kwdefaults__)
        attributes = {k: v for k, v in f.__dict__.items() if k != "__wrapped__"}
        if attributes:
            try:
                spec["attributes"] = self.attempt(lambda: self.under("an attribute", dict(sorted(attributes.items()))))
            except ShipError:
                pass  # what decorators of other libraries left there
        self.trail.pop()
        return number

    def byte_code(self, spec: Dict[str, Any], code: types.CodeType) -> None:
        spec["code"] = base64.b64encode(marshal.dumps(_nameless(code))).decode("ascii")
        self.python = _VERSION

    def cell(self, cell: Any) -> int:
        spec: Dict[str, Any] = {"k": "cell", "value": None}
        number = self.put(cell, spec)
        try:
            value = cell.cell_contents
        except ValueError:
            return number
        self.watch(lambda: cell.cell_contents, value)
        spec["value"] = self.add(value)
        return number

    def decorated(self, o: Any) -> Optional[int]:
        """What `@decorator` made of a function of the program: made again there, from the statement."""
        f = o
        for _ in range(20):
            inner = getattr(f, "__wrapped__", None) if not isinstance(f, type) else None
            if inner is None:
                break
            f = inner
        if f is o or type(f) is not types.FunctionType or "<" in f.__qualname__ or "." in f.__qualname__:
            return None
        if f.__globals__.get(f.__name__) is not o:
            return None
        source = self.source(f.__code__)
        if source is None or not source.decorators:
            return None
        spec: Dict[str, Any] = {"k": "decorated"}
        number = self.put(o, spec)
        self.trail.append("function %s" % f.__qualname__)
        ns = f.__globals__
        names: Set[str] = set()
        for text in source.decorators:
            names.update(_uses(compile("(" + text + "\n)", "decorator", "eval", dont_inherit=True)).names)
        spec["function"] = self.function(f)
        spec["expressions"] = source.decorators
        spec["file"] = source.file
        spec["space"] = self.space(ns)
        spec["uses"] = self.bind(ns, sorted(names - {f.__name__}))
        for text in source.decorators:
            self.submodules(_uses(compile("(" + text + "\n)", "decorator", "eval", dont_inherit=True)), ns)
        self.trail.pop()
        return number

    def klass(self, c: type) -> int:
        if issubclass(c, tuple) and _is_namedtuple(c):
            return self.namedtuple(c)
        source = _source.of_class(c)
        if source is None:
            return self.sourceless(c)
        spec: Dict[str, Any] = {"k": "class"}
        number = self.put(c, spec)
        self.trail.append("class %s" % c.__qualname__)
        module = sys.modules.get(c.__module__)
        ns = _class_globals(c)
        if ns is None:
            ns = module.__dict__ if module is not None else sys.modules["__main__"].__dict__
        text = source.text if source.text[0] not in " \t" else "if 1:\n" + source.text
        code = compile(text, source.file, "exec", dont_inherit=True)
        spec.update(
            name=c.__name__,
            qualname=c.__qualname__,
            module=c.__module__,
            space=self.space(ns),
            source=source.text,
            file=source.file,
            line=source.line,
        )
        if source.future:
            spec["future"] = source.future
        free = self.free(c, code, source, ns)
        spec["free"] = sorted(free)
        spec["values"] = [self.under("variable %s" % k, free[k]) for k in sorted(free)]
        skip = set(free) | {c.__name__}
        now = _now(code) - skip
        spec["now"] = self.bind(ns, sorted(now))
        # The names of methods come later: they may need this class.
        spec["uses"] = self.follow_class(code, ns, skip)
        changed = self.changed(c, source)
        if changed:
            spec["attributes"] = {k: self.under("attribute %s" % k, v) for k, v in sorted(changed.items())}
        self.trail.pop()
        return number

    def follow_class(self, code: types.CodeType, ns: Dict[str, Any], skip: Set[str]) -> List[str]:
        uses = _uses(code)
        names = self.bind(ns, [n for n in uses.names if n not in skip])
        own_name = [n for n in uses.names if n in skip and n in ns]
        names += self.bind(ns, own_name) if own_name else []
        self.submodules(uses, ns)
        for name, level, _ in uses.imports:
            if not level:
                self.need_name(name)
        return sorted(names)

    def free(self, c: type, code: types.CodeType, source: _source.Source, ns: Dict[str, Any]) -> Dict[str, Any]:
        """The variables of the function around a class that it uses."""
        if "<locals>" not in c.__qualname__:
            return {}
        values: Dict[str, Any] = {}
        for f in _source.methods(c):
            for name, cell in zip(f.__code__.co_freevars, f.__closure__ or ()):
                if name != "__class__" and name != c.__name__:
                    try:
                        values.setdefault(name, cell.cell_contents)
                    except ValueError:
                        pass
        assert isinstance(source.node, ast.ClassDef)
        for node, base in zip(source.node.bases, c.__bases__):
            if isinstance(node, ast.Name):
                values.setdefault(node.id, base)
        used = set(_uses(code).names)
        return {k: v for k, v in values.items() if k in used}

    def changed(self, c: type, source: _source.Source) -> Dict[str, Any]:
        """Attributes that were set on the class after its statement, and plain values, which may have been."""
        import enum

        if issubclass(c, enum.Enum):
            return {}
        first, last = source.line, source.line + source.text.count("\n")
        found = {}
        for k, v in vars(c).items():
            if k.startswith("__") and k.endswith("__"):
                continue
            if type(v) in (bool, int, float, complex, str, bytes, type(None), tuple, list, dict, set, frozenset):
                if not k.startswith("_abc_") and _literal(v) is not None:
                    found[k] = v
                    self.watch(functools.partial(vars(c).__getitem__, k), v)
            elif type(v) is types.FunctionType and v.__module__ == "__main__":
                inside = (
                    _source.display(v.__code__.co_filename) == source.file
                    and first <= v.__code__.co_firstlineno <= last
                )
                if not inside and v.__code__.co_filename != "<string>":
                    found[k] = v
        return found

    def namedtuple(self, c: Any) -> int:
        spec: Dict[str, Any] = {
            "k": "namedtuple",
            "name": c.__name__,
            "qualname": c.__qualname__,
            "module": c.__module__,
            "fields": list(c._fields),
        }
        number = self.put(c, spec)
        defaults = getattr(c.__new__, "__defaults__", None)
        if defaults:
            spec["defaults"] = self.under("a default value", defaults)
        return number

    def sourceless(self, c: type) -> int:
        """A class whose statement is not found, or that none made: from its parts, and its functions as byte code."""
        import enum

        if issubclass(c, enum.Enum) and c.__members__:
            values = [(k, v.value) for k, v in c.__members__.items()]
            return self.made(
                c, c.__bases__[-1], (c.__name__, values), __module__=c.__module__, __qualname__=c.__qualname__
            )
        try:
            return self.attempt(lambda: self.parts(c))
        except ShipError as e:
            data = _cloudpickle(c)
            if data is None:
                raise ShipError("%s; the source of the class %s is not found" % (e, c.__qualname__)) from None
            self.python = _VERSION
            return self.put(c, {"k": "pickle", "data": data})

    def parts(self, c: type) -> int:
        spec: Dict[str, Any] = {"k": "type"}
        number = self.put(c, spec)
        self.trail.append("class %s" % c.__qualname__)
        spec.update(name=c.__name__, qualname=c.__qualname__, module=c.__module__)
        spec["meta"] = self.add(type(c))
        spec["bases"] = [self.add(b) for b in c.__bases__]
        slots = vars(c).get("__slots__")
        if slots is not None:
            spec["slots"] = [slots] if isinstance(slots, str) else list(slots)
        if isinstance(c.__doc__, str) and "__doc__" in vars(c):
            spec["doc"] = c.__doc__
        spec["attributes"] = {}
        for k, v in sorted(vars(c).items()):
            if k in _NOT_PARTS or isinstance(v, (types.MemberDescriptorType, types.GetSetDescriptorType)):
                continue
            known = self.known(v)
            if known is None and type(v) is types.FunctionType:
                known = self.function(v)
            spec["attributes"][k] = self.under("attribute %s" % k, v) if known is None else known
        self.trail.pop()
        return number

    def value(self, o: Any) -> int:
        """Anything else: its pickle."""
        out = io.BytesIO()
        try:
            self.attempt(lambda: _Values(self, out).dump(o))
        except Exception as e:
            data = _cloudpickle(o)
            if data is not None:
                self.python = _VERSION
                return self.put(o, {"k": "pickle", "data": data})
            if isinstance(e, ShipError):
                raise
            raise self.error("is %s, which cannot be pickled (%s)" % (_label(o), e)) from None
        raw = out.getvalue()
        if b"__main__" in raw and _named_in_main(raw):
            raise self.error("is %s, whose pickle is only a name in __main__" % _label(o))
        return self.put(o, {"k": "pickle", "data": base64.b64encode(raw).decode("ascii"), "mutable": True})


def _named_in_main(raw: bytes) -> bool:
    """Whether a pickle has the name of something in __main__ in it, instead of the thing itself."""
    import pickletools

    texts: List[Any] = []
    for op, arg, _ in pickletools.genops(raw):
        if op.name == "STACK_GLOBAL" and "__main__" in texts[-2:]:
            return True
        if op.name not in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            texts.append(arg)
    return False


# Attributes of a class that making it makes.
_NOT_PARTS = {
    "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__slots__", "_abc_impl", "__abstractmethods__",
    "__annotations__", "__static_attributes__", "__firstlineno__", "__annotate__", "__annotations_cache__",
}  # fmt: skip


def _cloudpickle(o: Any) -> Optional[str]:
    """What cloudpickle makes of an object, if it is installed and can."""
    try:
        import cloudpickle  # type: ignore[import-not-found,unused-ignore]

        return base64.b64encode(cloudpickle.dumps(o, 4)).decode("ascii")
    except Exception:
        return None


# ---- parts


def _name(f: Any) -> str:
    while isinstance(f, functools.partial):
        f = f.func
    name = getattr(f, "__qualname__", None) or getattr(f, "__name__", None)
    return name if isinstance(name, str) else type(f).__name__


def _globals_of(f: Any) -> Optional[Dict[str, Any]]:
    """The namespace in which a callable's names are looked up."""
    for _ in range(20):
        if isinstance(f, functools.partial):
            f = f.func
        elif isinstance(f, types.MethodType):
            f = f.__func__
        elif type(f) is types.FunctionType:
            return f.__globals__
        else:
            inner = getattr(f, "__wrapped__", None)
            if inner is None:
                return None
            f = inner
    return None


def _attribute(m: Any, path: str) -> Any:
    for part in path.split("."):
        m = getattr(m, part, _MISSING)
    return m


def _portable(module: str) -> str:
    """The name by which other systems know a module of the standard library."""
    return "os.path" if module in ("posixpath", "ntpath") else module


_CHECKED = 4096


def _state(value: Any) -> Optional[bytes]:
    """What shows whether a value that can change did; None if it cannot, or is too large to look at each time."""
    t = type(value)
    if t in (
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        types.FunctionType,
        types.ModuleType,
        types.BuiltinFunctionType,
    ):
        return None
    if isinstance(value, type):
        return None
    if t in (list, dict, set, bytearray) and len(value) > _CHECKED:
        return str(len(value)).encode()
    try:
        data = pickle.dumps(value, 4)
    except Exception:
        return None
    return data if len(data) <= _CHECKED else None


def _literal(o: Any) -> Optional[Tuple[str, bool]]:
    """The canonical text of a plain value, and whether it can change; None for what has no such text."""
    parts: List[str] = []
    seen: Set[int] = set()
    mutable = [False]
    if _write(o, parts, seen, mutable, 0):
        return "".join(parts), mutable[0]
    return None


def _write(o: Any, parts: List[str], seen: Set[int], mutable: List[bool], depth: int) -> bool:
    t = type(o)
    if t in (type(None), bool, type(...)):
        parts.append(repr(o))
    elif t is int:
        if not -(10**1000) < o < 10**1000:
            return False
        parts.append(repr(o))
    elif t in (str, bytes):
        parts.append(ascii(o))
    elif t is float:
        text = repr(o)
        if "n" in text:  # nan, inf
            return False
        parts.append(text)
    elif t in (tuple, list, dict, set, frozenset):
        if depth > 20 or len(parts) > 20000:
            return False
        if t not in (tuple, frozenset):
            if id(o) in seen:
                return False  # the same object twice: text would make two of it
            seen.add(id(o))
            mutable[0] = True
        if t is dict:
            parts.append("{")
            for k, v in o.items():
                if not _write(k, parts, seen, mutable, depth + 1):
                    return False
                parts.append(":")
                if not _write(v, parts, seen, mutable, depth + 1):
                    return False
                parts.append(",")
            parts.append("}")
        elif t in (set, frozenset):
            texts = []
            for v in o:
                inner: List[str] = []
                if not _write(v, inner, seen, mutable, depth + 1):
                    return False
                texts.append("".join(inner))
            parts.append(t.__name__ + "([" + ",".join(sorted(texts)) + "])")
        else:
            parts.append("(" if t is tuple else "[")
            for v in o:
                if not _write(v, parts, seen, mutable, depth + 1):
                    return False
                parts.append(",")
            parts.append(")" if t is tuple else "]")
    else:
        return False
    return True


def _nameless(code: types.CodeType) -> types.CodeType:
    """Code with nothing in it of the machine it was compiled on."""
    consts = tuple(_nameless(c) if isinstance(c, types.CodeType) else c for c in code.co_consts)
    return code.replace(co_filename=_source.display(code.co_filename), co_consts=consts)


def _owner(f: types.FunctionType, source: _source.Source) -> str:
    """The class whose private names (__x) a function uses that was written in its body."""
    parts = f.__qualname__.split(".")
    for c in _source.codes(f.__code__):
        for n in c.co_names + c.co_varnames + c.co_freevars:
            for p in reversed(parts[:-1]):
                stem = p.lstrip("_")
                if p.isidentifier() and stem and n.startswith("_" + stem + "__") and not n.endswith("__"):
                    return p
    return ""


def _class_globals(c: type) -> Optional[Dict[str, Any]]:
    for f in _source.methods(c):
        if f.__code__.co_filename != "<string>":
            return f.__globals__
    return None


def _is_namedtuple(c: Any) -> bool:
    """Whether collections.namedtuple made it, and not a class statement."""
    fields = getattr(c, "_fields", None)
    return (
        c.__bases__ == (tuple,)
        and isinstance(fields, tuple)
        and "__orig_bases__" not in vars(c)
        and "__annotations__" not in vars(c)
        and getattr(c, "_make", None) is not None
    )


def _source_of_module(m: types.ModuleType) -> str:
    loader = getattr(m, "__loader__", None)
    get = getattr(loader, "get_source", None)
    text: Any = None
    if get is not None:
        try:
            text = get(m.__name__)
        except Exception:
            text = None
    if not isinstance(text, str):
        with open(m.__file__ or "", "rb") as f:
            text = importlib.util.decode_source(f.read())
    assert isinstance(text, str)
    return text


def _edited(m: types.ModuleType, source: str) -> bool:
    """Whether a module's functions are not those of its source."""
    there = _meanings(source)
    return there is None or not _from(m, there)


def _from(m: types.ModuleType, there: Set[Tuple[Any, ...]]) -> bool:
    """Whether a module's functions, and the methods of its classes, are among these."""
    for v in list(vars(m).values()):
        if getattr(v, "__module__", None) != m.__name__:
            continue
        functions = _source.methods(v) if isinstance(v, type) else [v] if isinstance(v, types.FunctionType) else []
        for f in functions:
            if f.__code__.co_filename == m.__file__ and _source.meaning(f.__code__) not in there:
                return False
    return True


@functools.lru_cache(maxsize=256)
def _meanings(source: str) -> Optional[Set[Tuple[Any, ...]]]:
    try:
        return {_source.meaning(c) for c in _source.codes(compile(source, "module", "exec", dont_inherit=True))}
    except (SyntaxError, ValueError):
        return None


def _cached_code(m: types.ModuleType) -> Optional[types.CodeType]:
    """The code of a module as it was imported, from its cache file."""
    path = getattr(m, "__cached__", None)
    try:
        with open(path or "", "rb") as f:
            code = marshal.loads(f.read()[16:])
    except (OSError, ValueError, EOFError, TypeError):
        return None
    if not isinstance(code, types.CodeType):
        return None
    if not _from(m, {_source.meaning(c) for c in _source.codes(code)}):
        return None
    return _nameless(code)


@functools.lru_cache(maxsize=1024)
def _imports_of(source: str, name: str, package: bool) -> Tuple[str, ...]:
    """The modules that a module's text imports, anywhere in it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    found: List[str] = []
    home = name if package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.extend(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, home)
                except (ImportError, ValueError):
                    continue
            found.append(base)
            found.extend(base + "." + a.name for a in node.names)
    return tuple(dict.fromkeys(found))
