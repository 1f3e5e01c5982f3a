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

The bundle is one line of magic and then JSON (see meshnode/_ship.py, which writes it):

    name         what the function is called, for people
    python       "3.12" if there is byte code in it, which only that version can run; else ""
    root         number of the object that is called
    objects      the list of objects, each a dict whose "k" says what it is (see Program._make); they name each other by number
    spaces       the list of namespaces: {"name", "bind": {name: number}, "package"}; the first is __main__
    sources      the user's own modules, by name: {"file", "source", "package"}
    texts        which arguments a text from the command line stays text for, if some: {"at": [positions], "rest": from which on}
"""

import builtins
import importlib
import importlib.abc
import importlib.util
import io
import json
import linecache
import marshal
import os
import pickle
import re
import struct
import sys
import threading
import traceback
import types
from base64 import b64decode

MAGIC = b"meshnode-python 1"

# A buffer that the caller handed over apart from its pickle is at least this large, and so is one that goes back.
LARGE = 64 << 10

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
    import __future__

    flags = 0
    for n in names:
        if not hasattr(__future__, n):
            raise Unable("needs a Python that has the future %s; this is %s" % (n, _VERSION))
        flags |= getattr(__future__, n).compiler_flag
    return flags


def parse(text, file, line, flags):
    """The statement (or lambda expression) whose text begins at that line, as a tree with the lines of the file."""
    import ast

    if text.startswith("lambda"):
        block, shift = "(" + text + "\n)", 1
    elif text[:1] in " \t":
        block, shift = "if 1:\n" + text, 2
    else:
        block, shift = text, 1
    tree = compile(block, file, "exec", flags | ast.PyCF_ONLY_AST, True)
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


def compile_function(text, file, line, free, owner, flags):
    """The code object of the function whose source this is; free: names of its free variables; owner: the class whose
    private names (__x) it uses, or ''."""
    import ast

    node = parse(text, file, line, flags)
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


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules that a bundle brought."""

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


class _Values(pickle.Unpickler):
    """Reads the values of a bundle: numbers in them stand for the bundle's objects."""

    def __init__(self, program, data):
        pickle.Unpickler.__init__(self, io.BytesIO(data))
        self.persistent_load = program._object
        self.program = program


class Program(object):
    """A loaded bundle."""

    def __init__(self, spec):
        try:
            self.name = spec["name"]
            self.specs = spec["objects"]
            self.spaces = spec["spaces"]
            self.root = spec["root"]
            self.sources = spec["sources"]
            self.texts = spec.get("texts") or {}
            self.main = types.ModuleType("__main__")
            self.main.__dict__["__builtins__"] = builtins
            package = self.spaces[0].get("package")
            if package:
                self.main.__package__ = package
        except (KeyError, TypeError, IndexError) as e:
            raise Invalid("the bundle is damaged: %r" % (e,))
        self.own = {"__main__": self.main}  # the modules that are in sys.modules while an item of it runs
        self.finder = _Sources(self)
        self.objects = {}
        self.globals = {}
        self.making = set()
        self.fills = {}  # how to fill the cells that are empty yet
        self.call = None
        self.words = []  # of the command line, after the function: in each, {} is the input and {#} the number from 1

    # ---- building

    def _build(self):
        self._enter()
        self.call = self._object(self.root)
        for i in range(len(self.spaces)):
            for name in self.spaces[i]["bind"]:
                self._bind(i, name)
        if not callable(self.call):
            raise Invalid("%s cannot be called: it is of type %s" % (self.name, type(self.call).__name__))
        self._note_state()

    def _space(self, i):
        """The dict of a namespace."""
        ns = self.globals.get(i)
        if ns is None:
            name = self.spaces[i]["name"]
            if i == 0:
                ns = self.main.__dict__
            elif self.spaces[i].get("real"):
                ns = self._import(name).__dict__
            else:
                ns = {"__name__": name, "__builtins__": builtins}
            self.globals[i] = ns
        return ns

    def _import(self, name):
        if name == "__main__":
            return self.main
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if not e.name:
                e.name = name
            raise

    def _bind(self, space, name):
        """Makes sure that the namespace has the name."""
        number = self.spaces[space]["bind"].get(name)
        if number is None:
            return
        ns = self._space(space)
        if name not in ns and number not in self.making:
            value = self._object(number)
            ns[name] = value

    def _object(self, i):
        if i in self.objects:
            return self.objects[i]
        try:
            s = self.specs[i]
            make = getattr(self, "_make_" + s["k"])
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

    def _done(self, i, value):
        """The object exists, though what it uses may not yet."""
        self.objects[i] = value
        self.making.discard(i)

    def _make_literal(self, i, s):
        return eval(s["text"], {"__builtins__": {}, "set": set, "frozenset": frozenset, "bytearray": bytearray})

    def _make_pickle(self, i, s):
        for space, name in s.get("uses", ()):
            self._bind(space, name)
        return _Values(self, b64decode(s["data"])).load()

    def _make_import(self, i, s):
        m = self._import(s["module"])
        for also in s.get("also", ()):
            self._import(also)
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

    def _code(self, s):
        if "code" in s:
            return marshal.loads(b64decode(s["code"]))
        _remember(s["file"], s["line"], s["source"])
        return compile_function(
            s["source"], s["file"], s["line"], s["free"], s.get("owner", ""), future_flags(s.get("future", ()))
        )

    def _make_function(self, i, s):
        code = self._code(s)
        ns = self._space(s["space"])
        cells = dict(zip(s["free"], s["cells"]))
        try:
            # Cells are made here, empty, so that functions that use each other can be.
            closure = tuple(self._cell_object(cells[name]) for name in code.co_freevars)
        except KeyError as e:
            raise Unable("Python %s sees a free variable %s in %s that the caller's does not" % (_VERSION, e, s["name"]))
        f = types.FunctionType(code, ns, s["name"], None, closure or None)
        f.__qualname__ = s.get("qualname", s["name"])
        f.__module__ = s["module"]
        self._done(i, f)
        for name in s["uses"]:
            self._bind(s["space"], name)
        for number in s["cells"]:
            self._fill(number)
        if s.get("defaults") is not None:
            f.__defaults__ = self._object(s["defaults"])
        if s.get("kwdefaults") is not None:
            f.__kwdefaults__ = self._object(s["kwdefaults"])
        if s.get("attributes") is not None:
            f.__dict__.update(self._object(s["attributes"]))
        return f

    def _cell_object(self, number):
        if number not in self.objects:
            cell, fill = _cell()
            self.objects[number] = cell
            self.fills[number] = fill
        return self.objects[number]

    def _fill(self, number):
        fill = self.fills.pop(number, None)
        if fill is not None and self.specs[number]["value"] is not None:
            fill(self._object(self.specs[number]["value"]))

    def _make_decorated(self, i, s):
        f = self._object(s["function"])
        ns = self._space(s["space"])
        for name in s["uses"]:
            self._bind(s["space"], name)
        for text in reversed(s["expressions"]):
            f = eval(compile("(" + text + "\n)", s["file"], "eval", 0, True), ns)(f)
        return f

    def _make_class(self, i, s):
        import ast

        for name in s["now"]:
            self._bind(s["space"], name)
        ns = self._space(s["space"])
        flags = future_flags(s.get("future", ()))
        _remember(s["file"], s["line"], s["source"])
        node = parse(s["source"], s["file"], s["line"], flags)
        if s["free"]:
            values = [self._object(n) for n in s["values"]]
            wrap = ast.parse("def wrap(%s):\n    return %s" % (", ".join(s["free"]), s["name"])).body[0]
            wrap.body.insert(0, node)
            code = compile(_module([wrap], node), s["file"], "exec", flags, True)
            code = next(c for c in code.co_consts if isinstance(c, types.CodeType))
            c = types.FunctionType(code, ns)(*values)
        else:
            found = {}
            exec(compile(_module([node], node), s["file"], "exec", flags, True), ns, found)
            c = found[s["name"]]
        if isinstance(c, type):
            for k, v in (("__qualname__", s.get("qualname", s["name"])), ("__module__", s["module"])):
                try:
                    if getattr(c, k) != v:
                        setattr(c, k, v)
                except (AttributeError, TypeError):
                    pass
        self._done(i, c)
        for name, number in s.get("attributes", {}).items():
            setattr(c, name, self._object(number))
        for name in s["uses"]:
            self._bind(s["space"], name)
        return c

    def _make_namedtuple(self, i, s):
        import collections

        c = collections.namedtuple(s["name"], s["fields"])
        c.__module__ = s["module"]
        c.__qualname__ = s["qualname"]
        if s.get("defaults") is not None:
            c.__new__.__defaults__ = self._object(s["defaults"])
        return c

    def _note_state(self):
        pass

    # ---- running

    def _enter(self):
        """The bundle's names are in sys.modules from here on."""
        other = _Active.program
        if other is self:
            return
        if other is not None:
            other._leave()
        for name in self.sources:
            sys.modules.pop(name, None)
        sys.modules.update(self.own)
        if self.sources:
            sys.meta_path.insert(0, self.finder)
        _Active.program = self

    def _leave(self):
        for name in self.sources:
            m = sys.modules.pop(name, None)
            if m is not None:
                self.own[name] = m
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
        if len(data) < 5:
            return True, b"", "the packet of calls is cut off"
        (count,) = _U32.unpack_from(data, 1)
        at = 5
        out = [_U32.pack(count)]
        error = ""
        logged = 0
        call = self.call
        loads, dumps, unpack, pack = pickle.loads, pickle.dumps, _U32.unpack_from, _RESULT.pack
        for _ in range(count):
            if at + 4 > len(data):
                return True, b"", "the packet of calls is cut off"
            (n,) = unpack(data, at)
            at += 4
            if at + n > len(data):
                return True, b"", "the packet of calls is cut off"
            failure = None
            try:
                args, kwargs = loads(data[at : at + n])
                if type(args) is bytes:
                    args, kwargs = self._extended(args, kwargs, files)
                result = call(*args, **kwargs) if kwargs else call(*args)
                if type(result) not in _ATOMS:
                    if type(result) in _LAZY:
                        result = _settle(result)
                    value = encode(result)
                else:
                    value = dumps(result, 4)
            except MemoryError:
                raise
            except BaseException as e:
                failure = e
            args = kwargs = result = None
            at += n
            if failure is not None:
                text, last = describe(failure)
                value = _exception(failure, text)
                failure.__traceback__ = None
                error = error or last
            now = mark() if mark is not None else 0
            out.append(pack(failure is not None, len(value), now - logged))
            out.append(value)
            logged = now
        return bool(error), b"".join(out), error

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


def encode(result):
    """The pickle of a result. Raises TypeError if it has none, and says what cannot be sent."""
    try:
        return pickle.dumps(result, 4)
    except Exception as e:
        raise TypeError("the result cannot be sent back: %s: %s" % (_kind(result), e)) from None


def _kind(value):
    t = type(value)
    name = t.__qualname__ if t.__module__ in ("builtins", "__main__") else t.__module__ + "." + t.__qualname__
    return "it is of type " + name


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
