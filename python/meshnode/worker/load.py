"""A bundle of functions becomes callable here, inside a worker process; calls are decoded and results encoded.

Runs on Python 3.6 and later, and imports nothing of the client. What the worker process does with it:

    try:
        program = load(data)          # the bundle's bytes; user code may run here: modules are imported
    except Unable as e: ...           # this interpreter cannot, another may: str(e) is a sentence
    except Invalid as e: ...          # nobody can
    failed, output, error = program.run(input, files, mark, number)

run() carries out one item. Of what user code raises it lets two things through: MemoryError, and of a text's call
SystemExit; all else is in its answer. `input` is what the node sent (bytes), `number` the item's, from 1, `files` the paths
of the task's blobs, in their order. `program.words` may be set to what a command line has after the function's name. `mark()` is called after each call, and returns how many bytes the item has logged so far (standard
output and error together, after flushing); without it lengths are 0. `output` is a bytes-like object, or a list of them
that belong one after another if they are large; `error` is the last line of the first traceback if `failed`. While an
item runs, the names that the bundle brought are those of `__main__` and of its modules; an item of another program
takes them away again. An item must not begin before the last one has ended. When a program is not wanted any more,
`program.close()` takes its modules away.

What a call may count on: it sees the globals, closure variables, defaults and attributes that were shipped, whatever other
calls did before it in this process. Names that functions rebind (`global`) are put back after each call, and so are values that
can change, if they are small (SMALL); larger ones are shared by the calls of one program in one process, as is the state of
classes, caches and imported modules. Two programs see nothing of each other but what they do to installed modules.

The bundle is one line of magic and then JSON (see meshnode/_ship.py, which writes it):

    name         what the function is called, for people
    python       "3.12" if there is byte code in it, which only that version can run; else ""
    root         number of the object that is called; null: each call brings a function, its first argument
    objects      the list of objects, each a dict whose "k" says what it is (see Program._make); they name each other by number
    spaces       the list of namespaces: {"name", "bind": {name: number}, "package", "spare": [name]}; the first is __main__. What is
                 spare was in a dict of globals and is not known to be used: where it cannot be made, for want of a module, it is left out
    sources      the user's own modules, by name: {"file", "source", "package"}
    wants        modules that its functions import when they run, if some: where one is missing, nothing of the program runs
    texts        which arguments a text from the command line stays text for, if some: {"at": [positions], "rest": from which on}
"""

import builtins
import collections
import dis
import importlib
import importlib.util
import io
import json
import linecache
import marshal
import mmap
import opcode
import pickle
import re
import struct
import sys
import traceback
import types
from base64 import b64decode

try:  # hashlib would load OpenSSL: 3.7 MB in each worker process
    from _sha2 import sha256
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256

MAGIC = b"meshnode-python 1"

# A buffer that the caller handed over apart from its pickle is at least this large, and so is one that goes back.
LARGE = 64 << 10

# Values up to this size (of their text or pickle, in bytes) are made anew for each call.
SMALL = 4 << 10

_VERSION = "%d.%d" % sys.version_info[:2]
_HERE = __file__


class Unable(Exception):
    """This interpreter cannot load the bundle, but another might: a module or a version is missing."""


class Invalid(Exception):
    """No interpreter could load the bundle."""


def load(data):
    """The program in a bundle. Raises Unable or Invalid, with a sentence."""
    head, _, body = bytes(data).partition(b"\n")
    if head != MAGIC:
        if head.startswith(b"meshnode-python "):
            raise Unable("the bundle is of a newer meshnode (format %s)" % head[16:24].decode("ascii", "replace"))
        raise Invalid("this is no bundle of Python functions")
    try:
        spec = json.loads(body.decode("utf-8"))
        version = spec["python"]
    except (ValueError, KeyError, TypeError) as e:
        raise Invalid("the bundle is damaged: %s" % e)
    if version and version != _VERSION:
        raise Unable("needs Python %s, since it has byte code; this is %s" % (version, _VERSION))
    program = Program(spec)
    try:
        program._build()
    except BaseException as e:
        program.close()
        if isinstance(e, (Unable, Invalid)):
            raise
        raise _why(e)
    return program


def _why(e):
    """The Unable or Invalid that an exception while loading means."""
    if isinstance(e, ImportError):
        name = getattr(e, "name", None)
        if isinstance(e, ModuleNotFoundError) and name:
            return Unable("needs the Python module %s, which is not here" % name)
        return Unable("a module cannot be imported here: %s" % e)
    if isinstance(e, SyntaxError):
        return Unable(
            "cannot be read by Python %s, a newer one may: %s (%s, line %s)" % (_VERSION, e.msg, e.filename, e.lineno)
        )
    if isinstance(e, NameError) and _VERSION == "3.6":
        return Unable("cannot be loaded by Python 3.6, a newer one may: %s" % e)
    if isinstance(e, (MemoryError, RecursionError)):
        return Unable("cannot be loaded here: %s" % (type(e).__name__,))
    last = traceback.format_exception_only(type(e), e)[-1].strip()
    line = ""
    for frame in traceback.extract_tb(e.__traceback__):
        if frame[0] != _HERE and not frame[0].startswith("<frozen"):
            line = " (%s, line %d)" % (frame[0], frame[1])
    return Invalid("loading it raises %s%s" % (last, line))


# ---- source text into code


def future_flags(names):
    """The compiler's flags for futures. Python 3.6 lacks annotations; there parse() sees to them."""
    import __future__

    flags = 0
    for n in names:
        if hasattr(__future__, n):
            flags |= getattr(__future__, n).compiler_flag
    return flags


def _texts(tree):
    """Makes annotations texts, as the future annotations does; what they say is lost."""
    import ast

    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.copy_location(ast.Str(s="object"), node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None


def parse(text, file, line, future):
    """The statement (or lambda expression) whose text begins at that line, as a tree with the lines of the file."""
    import ast

    if text.startswith("lambda"):
        block, shift = "(" + text + "\n)", 1
    elif text[:1] in " \t":
        block, shift = "if 1:\n" + text, 2
    else:
        block, shift = text, 1
    tree = compile(block, file, "exec", future_flags(future) | ast.PyCF_ONLY_AST, True)
    if "annotations" in future and sys.version_info < (3, 7):
        _texts(tree)
    node = tree.body[0]
    if shift == 2:
        node = node.body[0]
    elif text.startswith("lambda"):
        node = node.value
    ast.increment_lineno(tree, line - shift)
    return node


def _module(body, like):
    import ast

    tree = ast.parse("pass")
    tree.body = body
    ast.fix_missing_locations(tree)
    return tree


def compile_function(text, file, line, free, owner, future):
    """The code object of the function whose source this is; free: names of its free variables; owner: the class whose
    private names (__x) it uses, or ''; future: the names of what it imports from __future__."""
    import ast

    node = parse(text, file, line, future)
    flags = future_flags(future)
    none = ast.parse("None", mode="eval").body
    args = node.args
    args.defaults = [none for _ in args.defaults]
    args.kw_defaults = [d and none for d in args.kw_defaults]
    if isinstance(node, ast.Lambda):
        body = [ast.copy_location(ast.Expr(value=node), node)]
    else:
        node.decorator_list = []
        node.returns = None
        if getattr(node, "type_params", None):
            node.type_params = []
        every = list(getattr(args, "posonlyargs", [])) + args.args + args.kwonlyargs + [args.vararg, args.kwarg]
        for a in every:
            if a is not None:
                a.annotation = None
        body = [node]
    depth = 1
    if free:
        wrap = ast.parse("def wrap(%s):\n    pass" % ", ".join(free)).body[0]
        wrap.body = body
        body = [wrap]
        depth += 1
    if owner:
        cls = ast.parse("class %s:\n    pass" % owner).body[0]
        cls.body = body
        body = [cls]
        depth += 1
    code = compile(_module(body, node), file, "exec", flags, True)
    for _ in range(depth):
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType))
    return code


def _cell():
    """An empty cell, and how to fill it. (Cells cannot be made or filled otherwise before Python 3.8.)"""
    value = None

    def get():
        return value

    def fill(v):
        nonlocal value
        value = v

    def clear():
        nonlocal value
        del value

    clear()
    return get.__closure__[0], fill


class _Sources:
    """Imports the modules that a bundle brought. (importlib.abc, which it would name, costs 1.5 MB in each process.)"""

    def __init__(self, program):
        self.program = program

    def find_spec(self, fullname, path=None, target=None):
        if self.program is not _Active.program or fullname not in self.program.sources:
            return None
        s = self.program.sources[fullname]
        spec = importlib.util.spec_from_loader(fullname, self, origin=s["file"], is_package=s["package"])
        spec.has_location = False
        return spec

    def create_module(self, spec):
        return None

    def get_source(self, fullname):
        return self.program.sources[fullname]["source"]

    def get_code(self, fullname):
        s = self.program.sources[fullname]
        if "code" in s:
            return marshal.loads(b64decode(s["code"]))
        return compile(s["source"], s["file"], "exec", 0, True)

    def exec_module(self, module):
        name = module.__name__
        s = self.program.sources[name]
        module.__file__ = s["file"]
        if "source" in s:
            _remember(s["file"], 1, s["source"])
        exec(self.get_code(name), module.__dict__)


def _remember(file, line, text):
    """Keeps source text for tracebacks."""
    old = linecache.cache.get(file)
    lines = list(old[2]) if old and old[1] is None else []
    new = text.splitlines(True)
    end = line - 1 + len(new)
    if len(lines) < end:
        lines.extend(["\n"] * (end - len(lines)))
    lines[line - 1 : end] = new
    linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


class _Active:
    program = None  # the one whose names are in sys.modules


if sys.version_info >= (3, 8):
    _Unpickler = pickle.Unpickler
else:

    class _Unpickler(pickle._Unpickler):
        """Reads protocol 5, which these versions do not."""

        dispatch = dict(pickle._Unpickler.dispatch)

        def load_proto(self):
            self.proto = self.read(1)[0]

        dispatch[pickle.PROTO[0]] = load_proto

        def load_bytearray8(self):
            (n,) = struct.unpack("<Q", self.read(8))
            self.append(bytearray(self.read(n)))

        dispatch[0x96] = load_bytearray8

        def load_next_buffer(self):
            self.append(next(self.apart))

        dispatch[0x97] = load_next_buffer

        def load_readonly_buffer(self):
            self.stack[-1] = bytes(self.stack[-1])

        dispatch[0x98] = load_readonly_buffer


class _Values(pickle.Unpickler):
    """Reads the values of a bundle: numbers in them stand for the bundle's objects."""

    def __init__(self, part, data):
        pickle.Unpickler.__init__(self, io.BytesIO(data))
        self.persistent_load = part.object

    def find_class(self, module, name):
        return _find_class(pickle.Unpickler.find_class, self, module, name)


def _find_class(find, unpickler, module, name):
    try:
        return find(unpickler, module, name)
    except ModuleNotFoundError:
        # numpy 2 calls numpy._core what is numpy.core before.
        if module.startswith("numpy._core"):
            return find(unpickler, "numpy.core" + module[11:], name)
        if module.startswith("numpy.core"):
            return find(unpickler, "numpy._core" + module[10:], name)
        raise


class _Part(object):
    """Objects that came together: those of a bundle, or those that a call's arguments brought besides.

    Numbers below `base` are objects of the part that this one continues.
    """

    def __init__(self, program, spec, before=None, apart=False):
        self.program = program
        self.before = before
        self.apart = apart  # its names are not those of __main__
        self.back = None  # puts back what a call may have changed of it
        try:
            self.base = before.base + len(before.specs) if before else 0
            self.specs = spec["objects"]
            self.spaces = spec["spaces"]
        except (KeyError, TypeError) as e:
            raise Invalid("the bundle is damaged: %r" % (e,))
        self.objects = {}
        self.globals = {}
        self.making = set()
        self.fills = {}  # how to fill the cells that are empty yet
        self.cells = {}  # how to fill the others, and what is in them
        self.rebound = set()  # the cells whose variables functions rebind
        self.sites = {}  # where the values are that are made anew for each call: number to setters
        self.stores = {}  # names that code rebinds: space to names

    def build(self):
        for i in range(len(self.spaces)):
            spare = self.spaces[i].get("spare", ())
            for name in self.spaces[i]["bind"]:
                try:
                    self.bind(i, name)
                except (Unable, ImportError):
                    if name not in spare:
                        raise
        for number in list(self.fills):
            self.fill(number)

    def space(self, i):
        """The dict of a namespace."""
        ns = self.globals.get(i)
        if ns is None:
            name = self.spaces[i]["name"]
            if self.spaces[i].get("real"):
                ns = self.program.imported(name).__dict__
            elif i == 0 and self.fits():
                ns = self.program.main.__dict__
                for k, n in self.spaces[0]["bind"].items():
                    self.program.names[k] = self.owner(n), n
            else:
                ns = {"__name__": name, "__builtins__": builtins}
            self.globals[i] = ns
        return ns

    def fits(self):
        """Whether the names of this part's __main__ can be among those that are there already."""
        if self.apart:
            return False
        names, there = self.program.names, self.program.main.__dict__
        return all(
            names[k] == (self.owner(n), n) if k in names else k not in there for k, n in self.spaces[0]["bind"].items()
        )

    def owner(self, number):
        """The part that has this object."""
        return self if number >= self.base else self.before.owner(number)

    def drop(self):
        """Its names are those of __main__ no more."""
        names = self.program.names
        for k in [k for k, (part, _) in names.items() if part is self]:
            del names[k]
            self.program.main.__dict__.pop(k, None)

    def bind(self, space, name):
        """Makes sure that the namespace has the name."""
        number = self.spaces[space]["bind"].get(name)
        if number is None:
            return
        ns = self.space(space)
        if name not in ns and number not in self.making:
            value = self.object(number)
            ns[name] = value
            self.site(number, lambda v: ns.__setitem__(name, v))

    def site(self, number, setter):
        """Value `number` is where setter puts it; if it can change, it is put there anew for each call."""
        if number < self.base:
            return
        s = self.specs[number - self.base]
        if s["k"] == "literal" and s.get("mutable") and len(s["text"]) <= SMALL:
            self.sites.setdefault(number, []).append(setter)
        elif s["k"] == "pickle" and s.get("mutable") and len(s["data"]) <= SMALL * 4 // 3:
            self.sites.setdefault(number, []).append(setter)

    def object(self, i):
        if i in self.objects:
            return self.objects[i]
        if self.before is not None and i < self.base:
            return self.before.object(i)
        try:
            s = self.specs[i - self.base]
            make = getattr(self, "make_" + s["k"])
        except (IndexError, KeyError, TypeError, AttributeError):
            raise Invalid("the bundle is damaged at object %r" % (i,))
        if i in self.making:
            raise Invalid("the bundle is damaged: object %d needs itself" % i)
        self.making.add(i)
        try:
            value = make(i, s)
        finally:
            self.making.discard(i)
        self.objects[i] = value
        return value

    def done(self, i, value):
        """The object exists, though what it uses may not yet."""
        self.objects[i] = value
        self.making.discard(i)

    def make_literal(self, i, s):
        if "compiled" not in s:
            s["compiled"] = compile(s["text"], "<value>", "eval", 0, True)
        return eval(s["compiled"], _LITERAL)

    def make_pickle(self, i, s):
        if isinstance(s["data"], str):
            s["raw"] = b64decode(s["data"])
        return _Values(self, s["raw"]).load()

    def make_call(self, i, s):
        """What a call of one object with others gives: static methods, properties, enumerations."""
        value = self.object(s["of"])(*[self.object(n) for n in s["args"]])
        for k, v in s.get("set", {}).items():
            try:
                setattr(value, k, v)
            except AttributeError:
                pass
        return value

    def make_attribute(self, i, s):
        value = self.object(s["of"])
        for part in s["name"].split("."):
            value = getattr(value, part)
        return value

    def make_import(self, i, s):
        m = self.program.imported(s["module"])
        for also in s.get("also", ()):
            self.program.imported(also)
        if not s.get("name"):
            return m
        for part in s["name"].split("."):
            try:
                m = getattr(m, part)
            except AttributeError:
                # A submodule that nobody imported yet.
                if isinstance(m, types.ModuleType):
                    try:
                        m = importlib.import_module(m.__name__ + "." + part)
                        continue
                    except ImportError:
                        pass
                raise Unable("needs %s.%s, which is not here" % (s["module"], s["name"]))
        return m

    def code(self, s):
        if "code" in s:
            return marshal.loads(b64decode(s["code"]))
        _remember(s["file"], s["line"], s["source"])
        return compile_function(s["source"], s["file"], s["line"], s["free"], s.get("owner", ""), s.get("future", ()))

    def make_function(self, i, s):
        code = self.code(s)
        ns = self.space(s["space"])
        self.note_stores(s["space"], code)
        cells = dict(zip(s["free"], s["cells"]))
        try:
            # Cells are made here, empty, so that functions that use each other can be.
            closure = tuple(self.cell(cells[name]) for name in code.co_freevars)
        except KeyError as e:
            raise Unable(
                "Python %s sees a free variable %s in %s that the caller's does not" % (_VERSION, e, s["name"])
            )
        for c in _codes(code):
            if _has_stores(c, _CELL_STORES):
                self.rebound.update(cells[name] for name in _stored(c, _CELL_STORES) if name in cells)
        f = types.FunctionType(code, ns, s["name"], None, closure or None)
        f.__qualname__ = s.get("qualname", s["name"])
        f.__module__ = s["module"]
        self.done(i, f)
        for name in s["uses"]:
            self.bind(s["space"], name)
        for number in s["cells"]:
            self.fill(number)
        n = s.get("defaults")
        if n is not None:
            f.__defaults__ = self.object(n)
            self.site(n, lambda v: setattr(f, "__defaults__", v))
        n = s.get("kwdefaults")
        if n is not None:
            f.__kwdefaults__ = self.object(n)
            self.site(n, lambda v: setattr(f, "__kwdefaults__", v))
        n = s.get("attributes")
        if n is not None:
            f.__dict__.update(self.object(n))
            self.site(n, lambda v: (f.__dict__.clear(), f.__dict__.update(v)))
        return f

    def cell(self, number):
        if number < self.base:
            return self.before.cell(number)
        if number not in self.objects:
            self.objects[number], self.fills[number] = _cell()
        return self.objects[number]

    def fill(self, number):
        fill = self.fills.pop(number, None)
        if fill is not None:
            n = self.specs[number - self.base]["value"]
            if n is not None:
                fill(self.object(n))
                self.site(n, fill)
                self.cells[number] = fill, n

    def make_cell(self, i, s):
        self.done(i, self.cell(i))
        self.fill(i)
        return self.objects[i]

    def make_decorated(self, i, s):
        f = self.object(s["function"])
        ns = self.space(s["space"])
        for name in s["uses"]:
            self.bind(s["space"], name)
        for text in reversed(s["expressions"]):
            f = eval(compile("(" + text + "\n)", s["file"], "eval", 0, True), ns)(f)
        return f

    def make_class(self, i, s):
        import ast

        for name in s["now"]:
            self.bind(s["space"], name)
        ns = self.space(s["space"])
        flags = future_flags(s.get("future", ()))
        _remember(s["file"], s["line"], s["source"])
        node = parse(s["source"], s["file"], s["line"], s.get("future", ()))
        if s["free"]:
            values = [self.object(n) for n in s["values"]]
            wrap = ast.parse("def wrap(%s):\n    return %s" % (", ".join(s["free"]), s["name"])).body[0]
            wrap.body.insert(0, node)
            code = compile(_module([wrap], node), s["file"], "exec", flags, True)
            code = next(c for c in code.co_consts if isinstance(c, types.CodeType))
            c = types.FunctionType(code, ns)(*values)
        else:
            found = {}
            code = compile(_module([node], node), s["file"], "exec", flags, True)
            exec(code, ns, found)
            c = found[s["name"]]
        self.note_stores(s["space"], code)
        self.name_class(c, s)
        self.done(i, c)
        for name in s["uses"]:
            self.bind(s["space"], name)
        self.set_attributes(c, s)
        return c

    def name_class(self, c, s):
        if not isinstance(c, type):
            return  # a decorator made something else of it
        for k, v in (("__qualname__", s.get("qualname", s["name"])), ("__module__", s["module"])):
            try:
                if getattr(c, k) != v:
                    setattr(c, k, v)
            except (AttributeError, TypeError):
                pass

    def set_attributes(self, c, s):
        for name, number in sorted(s.get("attributes", {}).items()):
            setattr(c, name, self.object(number))
            self.site(number, lambda v, name=name: setattr(c, name, v))

    def make_type(self, i, s):
        """A class without a statement, from its parts."""
        body = {"__module__": s["module"], "__qualname__": s["qualname"]}
        if "slots" in s:
            body["__slots__"] = s["slots"]
        if "doc" in s:
            body["__doc__"] = s["doc"]
        bases = tuple(self.object(n) for n in s["bases"])
        c = self.object(s["meta"])(s["name"], bases, body)
        self.done(i, c)
        self.set_attributes(c, s)
        return c

    def make_namedtuple(self, i, s):
        import collections

        c = collections.namedtuple(s["name"], s["fields"])
        c.__module__ = s["module"]
        c.__qualname__ = s["qualname"]
        self.done(i, c)
        if s.get("defaults") is not None:
            c.__new__.__defaults__ = self.object(s["defaults"])
        return c

    # ---- state

    def note_stores(self, space, code):
        """Which globals code rebinds."""
        names = self.stores.setdefault(space, set())
        for c in _codes(code):
            if not _ANY.isdisjoint(c.co_names):
                names.add("*")
            if _has_stores(c):
                names.update(_stored(c))

    def state(self):
        """Setters that put back what calls may have changed: a list of functions without arguments."""
        back = []
        for space, names in self.stores.items():
            if names:
                back.append(_restorer(self.space(space), names))
        for number in sorted(self.rebound):
            fill, n = self.cells.get(number, (None, None))
            if fill is not None and n not in self.sites:
                back.append(_refiller(fill, self.object(n)))
        for number, setters in sorted(self.sites.items()):
            s = self.specs[number - self.base]
            back.append(_remaker(getattr(self, "make_" + s["k"]), number, s, setters))
        return back


def _remaker(make, number, s, setters):
    if len(setters) == 1:
        (only,) = setters
        return lambda: only(make(number, s))

    def again():
        value = make(number, s)
        for put in setters:
            put(value)

    return again


def _refiller(fill, value):
    return lambda: fill(value)


_ABSENT = object()


def _restorer(ns, names):
    if "*" in names:
        before = dict(ns)

        def restore():
            if len(ns) != len(before) or any(v is not ns.get(k, _ABSENT) for k, v in before.items()):
                ns.clear()
                ns.update(before)

        return restore
    values = [(k, ns.get(k, _ABSENT)) for k in sorted(names)]

    def put_back():
        for k, v in values:
            if v is not _ABSENT:
                ns[k] = v
            else:
                ns.pop(k, None)

    return put_back


# Names by which code gets at its globals as a dict, or at __main__.
_ANY = frozenset(["globals", "vars", "locals", "exec", "eval", "__main__"])

_LITERAL = {"__builtins__": {}, "set": set, "frozenset": frozenset, "bytearray": bytearray}


_GLOBAL_STORES = ("STORE_GLOBAL", "DELETE_GLOBAL")
_CELL_STORES = ("STORE_DEREF", "DELETE_DEREF")


def _codes(code):
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            for d in _codes(c):
                yield d


def _has_stores(code, names=_GLOBAL_STORES):
    """Whether there may be one of these instructions in it; each is two bytes, or begins with two."""
    return not {opcode.opmap[n] for n in names}.isdisjoint(code.co_code[::2])


def _stored(code, names=_GLOBAL_STORES):
    return {i.argval for i in dis.get_instructions(code) if i.opname in names}


class Program(object):
    """A loaded bundle."""

    def __init__(self, spec):
        try:
            self.name = spec["name"]
            self.root = spec["root"]
            self.sources = spec["sources"]
            self.texts = spec.get("texts") or {}
            self.wants = [str(w) for w in spec.get("wants") or ()]
            package = spec["spaces"][0].get("package")
        except (KeyError, TypeError, IndexError, AttributeError) as e:
            raise Invalid("the bundle is damaged: %r" % (e,))
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = builtins
        if package:
            self.main.__package__ = package
        self.own = {"__main__": self.main}  # the modules that are in sys.modules while an item of it runs
        self.hidden = {}  # modules of this process that have the names of those
        self.finder = _Sources(self)
        self.names = {}  # of __main__: the part and the number of what has it
        self.part = _Part(self, spec)
        self.more = collections.OrderedDict()  # parts that calls brought, by their bytes
        self.call = None
        self.words = []  # of the command line, after the function: in each, {} is the input and {#} the number from 1
        self.back = []  # puts back what a call may have changed
        self.changed = False  # a call ran since that was done

    def _build(self):
        self._enter()
        for name in self.wants:
            try:
                found = importlib.util.find_spec(name) is not None
            except (ImportError, ValueError):  # it was imported, and has no spec
                found = name in sys.modules
            if not found:
                raise Unable("needs the Python module %s, which is not here" % name)
        self.call = _apply if self.root is None else self.part.object(self.root)
        self.part.build()
        if not callable(self.call):
            raise Invalid("%s cannot be called: it is of type %s" % (self.name, type(self.call).__name__))
        self.back = self.part.state() + self._module_state()

    def _module_state(self):
        """The same as _Part.state for the user's own modules."""
        back = []
        for name, s in sorted(self.sources.items()):
            m = sys.modules.get(name)
            if m is not None:
                names = set()
                for c in _codes(self.finder.get_code(name)):
                    if _has_stores(c):
                        names |= _stored(c)
                if names:
                    back.append(_restorer(m.__dict__, names))
        return back

    def imported(self, name):
        """A module, imported."""
        if name == "__main__":
            return self.main
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if not e.name:
                e.name = name
            raise

    def numbers(self):
        """How results name functions and classes that were shipped, by id."""
        found = {}
        for text, part in [(key[-1], part) for key, part in self.more.items()] + [(None, self.part)]:
            digest = () if text is None else (digest_of(text),)
            for i, o in part.objects.items():
                if isinstance(o, (type, types.FunctionType)) and part.specs[i - part.base]["k"] != "import":
                    found[id(o)] = (i,) + digest
        return found

    # ---- running

    def _enter(self):
        """The bundle's names are in sys.modules from here on."""
        other = _Active.program
        if other is self:
            return
        if other is not None:
            other._leave()
        for name in self.sources:
            m = sys.modules.pop(name, None)
            if m is not None:
                self.hidden[name] = m
        sys.modules.update(self.own)
        if self.sources:
            sys.meta_path.insert(0, self.finder)
        _Active.program = self

    def _leave(self):
        for name in self.sources:
            m = sys.modules.pop(name, None)
            if m is not None:
                self.own[name] = m
        sys.modules.update(self.hidden)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _Active.program = None

    def close(self):
        if _Active.program is self:
            self._leave()
            sys.modules["__main__"] = _MAIN
        self.own.clear()

    def run(self, input, files=(), mark=None, number=1):
        """One item: (failed, output, error). See the top of this file."""
        if _Active.program is not self:
            self._enter()
        kind = bytes(input[:1])
        if kind == b"C":
            return self._calls(input, files, mark)
        if kind == b"T" or not kind:
            return self._text(bytes(input), number)
        return True, b"", "the input is neither calls nor text (it begins with %r)" % (kind,)

    def _calls(self, data, files, mark):
        data = bytes(data)
        cut = True, b"", "the packet of calls is cut off"
        if len(data) < 5:
            return cut
        (count,) = _U32.unpack_from(data, 1)
        end, at, error, logged = len(data), 5, "", 0
        out = [_U32.pack(count)]
        call, back = self.call, self.back
        loads, dumps, unpack, pack = pickle.loads, pickle.dumps, _U32.unpack_from, _RESULT.pack
        for _ in range(count):
            if at + 4 > end:
                return cut
            (n,) = unpack(data, at)
            at += 4 + n
            if at > end:
                return cut
            if back:
                self.restore()
            kind = 0
            try:
                args, kwargs = loads(data[at - n : at])
                if type(args) is bytes:
                    args, kwargs = self._extended(args, kwargs, files)
                result = call(*args, **kwargs) if kwargs else call(*args)
                if type(result) in _ATOMS:
                    value = dumps(result, 4)
                else:
                    if type(result) in _LAZY:
                        result = _settle(result)
                    value = self.encode(result)
            except MemoryError:
                raise
            except BaseException as e:
                kind = 1
                text, last = describe(e)
                value = _exception(e, text)
                error = error or last
                e.__traceback__ = None
            args = kwargs = result = None
            now = mark() if mark is not None else 0
            out.append(pack(kind, len(value), now - logged))
            out.append(value)
            logged = now
        return bool(error), b"".join(out), error

    def restore(self):
        """Puts back what a call changed of what was shipped."""
        if self.changed:
            for put in self.back:
                put()
        self.changed = True

    def _extended(self, inner, more, files):
        """The arguments of a call that brought more than a pickle: a dict with

        defs: definitions besides the bundle's, a tuple of JSON texts, each of which continues the one before
        own: the same once more, for this call alone
        apart: the numbers of the blobs that are buffers of the pickle
        inner: the number of the blob that is the pickle
        """
        part = self.part
        key = ()
        for text in more.get("defs", ()):
            key += (text,)
            part = self._continued(key, text, part, False)
        if "own" in more:
            part = self._continued(key + (more["own"],), more["own"], part, True)
        if "inner" in more:
            with open(files[more["inner"]], "rb") as f:
                inner = f.read()
        return _Arguments(part, inner, files).read(more.get("apart", ()))

    def _continued(self, key, text, before, apart):
        part = self.more.get(key)
        if part is not None:
            self.more.move_to_end(key)
            for put in part.back:
                put()
            return part
        spec = json.loads(text.decode("ascii"))
        if spec.get("python") and spec["python"] != _VERSION:
            raise RuntimeError(
                "the arguments have byte code of Python %s in them; this is %s" % (spec["python"], _VERSION)
            )
        for name, s in spec.get("sources", {}).items():
            self._bring(name, s)
        part = _Part(self, spec, before, apart)
        part.build()
        part.back = part.state()
        while len(self.more) >= _PARTS:
            self.more.popitem(last=False)[1].drop()
        self.more[key] = part
        return part

    def _bring(self, name, source):
        """Adds one of the user's own modules to those that the bundle brought."""
        if self.sources.get(name) == source:
            return
        m = sys.modules.pop(name, None)
        if m is not None and name not in self.sources:
            self.hidden[name] = m
        self.sources[name] = source
        if self.finder not in sys.meta_path:
            sys.meta_path.insert(0, self.finder)

    def encode(self, result):
        """The pickle of a result. Raises TypeError or PicklingError if it has none, and says what cannot be sent."""
        try:
            return pickle.dumps(result, 4)
        except MemoryError:
            raise
        except Exception as e:
            out = io.BytesIO()
            try:
                _Results(out, self).dump(result)
                return out.getvalue()
            except Exception:
                pass
            # An exception of its own kind that says why is kept, as pools of processes do it.
            kind = pickle.PicklingError if isinstance(e, pickle.PicklingError) else TypeError
            raise kind("the result cannot be sent back: it is %s: %s" % (_kind(result), e)) from None

    def _arguments(self, data, number):
        """The arguments that text of the command line stands for. No data at all, not even b"T": there are none."""
        text = data[1:].decode("utf-8", "surrogateescape")
        if self.words:
            fill = {"{}": text, "{#}": str(number)}
            words = [_PLACE.sub(lambda m: fill[m.group()], w) for w in self.words]
        else:
            words = [text] if data else []
        as_text, rest = self.texts.get("at", ()), self.texts.get("rest")
        return [w if i in as_text or rest is not None and i >= rest else argument(w) for i, w in enumerate(words)]

    def _text(self, data, number):
        try:
            self.restore()
            result = self.call(*self._arguments(data, number))
            if type(result) in _LAZY:
                result = _settle(result)
            if result is None:
                return False, b"", ""
            if isinstance(result, (bytes, bytearray, memoryview)):
                return False, bytes(result), ""
            return False, str(result).encode("utf-8", "surrogateescape"), ""
        except (MemoryError, SystemExit):
            raise
        except BaseException as e:
            text, last = describe(e)
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except Exception:
                pass
            return True, b"", last


class _Arguments(_Unpickler):
    """Reads the pickle of a call's arguments."""

    def __init__(self, part, data, files):
        self.part, self.files, self.mapped = part, files, {}
        self.data = data

    def read(self, apart):
        buffers = [self.map(i) for i in apart]
        if sys.version_info >= (3, 8):
            _Unpickler.__init__(self, io.BytesIO(self.data), buffers=buffers)
        else:
            _Unpickler.__init__(self, io.BytesIO(self.data))
            self.apart = iter(buffers)
        try:
            args, kwargs = self.load()
        finally:  # _stored may have made a circle of us, and large objects would wait in it for the collector
            self.memo, self.mapped = {}, {}
        return args, kwargs

    def path(self, i):
        try:
            return self.files[i]
        except IndexError:
            raise ValueError("the call names blob %d, and its task has %d" % (i, len(self.files))) from None

    def map(self, i):
        """Blob i as memory; what the task writes there is its own."""
        if i not in self.mapped:
            self.mapped[i] = map_file(self.path(i))
        return self.mapped[i]

    def persistent_load(self, what):
        kind, i = what
        if kind == "o":
            return read_object(self.map(i), self.part)
        with open(self.path(i), "rb") as f:
            data = f.read()
        return bytearray(data) if kind == "y" else data

    def find_class(self, module, name):
        if module == "meshnode._values":
            if name == "_shipped":
                return self.part.object
            if name == "_stored":
                return lambda i: self.persistent_load(("o", i))
        return _find_class(_Unpickler.find_class, self, module, name)


def map_file(path):
    """A file as memory that can be written without changing it."""
    with open(path, "rb") as f:
        f.seek(0, 2)
        if f.tell() == 0:
            return bytearray()
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)


# What a stored object's blob begins with; then u32 number of buffers, for each u64 offset and u64 length, u64 length of the
# pickle, and the pickle. Buffers begin at multiples of 64.
OBJECT = b"meshnode-object\n"


def read_object(memory, part):
    """The object that a blob has: a plain pickle, or one with buffers behind it."""
    view = memoryview(memory)
    if bytes(view[: len(OBJECT)]) != OBJECT:
        return _Stored(part, bytes(view)).load()
    at = len(OBJECT)
    (count,) = _U32.unpack_from(view, at)
    at += 4
    buffers = []
    for _ in range(count):
        offset, size = struct.unpack_from("<QQ", view, at)
        at += 16
        buffers.append(view[offset : offset + size])
    (size,) = struct.unpack_from("<Q", view, at)
    data = bytes(view[at + 8 : at + 8 + size])
    return _Stored(part, data, buffers).load()


class _Stored(_Unpickler):
    """Reads an object that was stored for many calls."""

    def __init__(self, part, data, buffers=()):
        self.part = part
        if sys.version_info >= (3, 8):
            _Unpickler.__init__(self, io.BytesIO(data), buffers=buffers)
        else:
            _Unpickler.__init__(self, io.BytesIO(data))
            self.apart = iter(buffers)

    def find_class(self, module, name):
        return _find_class(_Unpickler.find_class, self, module, name)


class _Results(pickle.Pickler):
    """Pickles results that have functions or classes in them which were shipped, but which no name leads to."""

    def __init__(self, out, program):
        pickle.Pickler.__init__(self, out, 4)
        self.known = program.numbers()

    def persistent_id(self, o):
        if isinstance(o, (type, types.FunctionType)):
            return self.known.get(id(o))
        return None


def digest_of(text):
    """What names definitions that arguments brought, in results."""
    return sha256(text).hexdigest()[:32]


# So many sets of definitions that came with arguments are kept for the calls to come.
_PARTS = 64

_U32 = struct.Struct("<I")
_RESULT = struct.Struct("<BII")
_MAIN = sys.modules["__main__"]
_ATOMS = frozenset([type(None), bool, int, float, str])


_PLACE = re.compile(r"\{#?\}")
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?|[+-]?0[xXoObB][\da-fA-F_]+")
_NAMES = {"True": True, "False": False, "None": None}


def argument(text):
    """What a word of the command line is: a number, string in quotes, bytes, list, tuple in parentheses, dict, set, True,
    False or None as Python writes them; anything else is itself."""
    s = text.strip()
    if s in _NAMES:
        return _NAMES[s]
    quoted = s.lstrip("bBrRuU")[:1] in ("'", '"')
    if not quoted and s[:1] not in ("[", "(", "{") and not _NUMBER.fullmatch(s):
        return text
    import ast
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ast.literal_eval(s)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    if quoted and not isinstance(value, (str, bytes)):
        return text  # 'a', 'b'
    return value


def _apply(*args, **kwargs):
    """What bundles call that have no function of their own: the functions are the first arguments of the calls."""
    return args[0](*args[1:], **kwargs)


def _settle(result):
    """What a coroutine returns, in an event loop of its own."""
    import asyncio

    if hasattr(asyncio, "run"):
        return asyncio.run(result)
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(result)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


_LAZY = frozenset([types.CoroutineType])


def _kind(value):
    t = type(value)
    name = t.__qualname__ if t.__module__ in ("builtins", "__main__") else t.__module__ + "." + t.__qualname__
    return "of type " + name


def describe(e):
    """The traceback of an exception that user code raised, without our own frames, and its last line."""
    tb = e.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == _HERE:
        tb = tb.tb_next
    try:
        text = "".join(traceback.format_exception(type(e), e, tb))
        last = "".join(traceback.format_exception_only(type(e), e)).strip().split("\n")[-1]
    except Exception:
        last = type(e).__name__
        text = last + "\n"
    return text, last


def _exception(e, text):
    """The pickle of a dict that says all of an exception that can be said."""
    try:
        message = str(e)
    except Exception:
        message = ""
    try:
        inner = pickle.dumps(e, 4)
    except Exception:
        inner = None
    t = type(e)
    d = {
        "type": t.__qualname__,
        "module": t.__module__ if isinstance(t.__module__, str) else "",
        "message": message,
        "traceback": text,
        "pickle": inner,
    }
    return pickle.dumps(d, 4)
