"""Pickles from other people's machines, read so that they can do nothing but make values.

A pickle is a program: it can name any function that can be imported and call it. This reader is Python's own, in Python, with each
step that names, calls or changes something replaced by one that asks a list first. Classes that the client shipped are made without
running anything of theirs that takes what the pickle says as arguments, except __setstate__.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import io
import pathlib
import pickle
import re
import sys
import types
import uuid
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple


class Refused(pickle.UnpicklingError):
    """A result from another person's node names something that is not known to be harmless."""


def _standard() -> Dict[Tuple[str, str], Any]:
    """Functions that check what a class of the standard library is made of, and make it; None: it is only a value."""

    def plain(c: Any) -> Any:
        return lambda args: c(*args)

    def fraction(args: Tuple[Any, ...]) -> Any:
        if all(type(a) is int for a in args) and len(args) in (1, 2):
            return fractions.Fraction(*args)
        if (
            len(args) == 1 and type(args[0]) is str and re.match(r"-?\d+(/\d+)?\Z", args[0])
        ):  # 1e999999999 takes for ever
            return fractions.Fraction(args[0])
        raise Refused("a Fraction made of something else than numbers")

    def of_bytes(args: Tuple[Any, ...]) -> Any:
        if args and not isinstance(args[0], (bytes, str, list)):
            raise Refused("a bytearray made of something else than bytes")
        return bytearray(*args)

    def containers(c: Any) -> Any:
        def make(args: Tuple[Any, ...]) -> Any:
            if args and not isinstance(args[0], (list, tuple, dict, set, frozenset)):
                raise Refused("a %s made of something else than a list" % c.__name__)
            return c(*args)

        return make

    def default(args: Tuple[Any, ...]) -> Any:
        if (
            len(args) > 1
            or args
            and args[0] not in (None, int, float, str, bytes, bool, list, dict, set, tuple, frozenset)
        ):
            raise Refused("a defaultdict that makes something else than a plain value")
        return collections.defaultdict(*args)

    def codec(args: Tuple[Any, ...]) -> Any:
        text, encoding = args  # how protocols before 3 tell bytes
        if encoding != "latin1" or not isinstance(text, str):
            raise Refused("text in an encoding")
        return text.encode("latin1")

    found: Dict[Tuple[str, str], Any] = {}
    c: Any
    for c in (complex, range, slice):
        found["builtins", c.__name__] = plain(c)
    for c in (set, frozenset):
        found["builtins", c.__name__] = containers(c)
    for c in (int, float, bool, str, bytes, list, tuple, dict, object):
        found["builtins", c.__name__] = None
    found["builtins", "Ellipsis"] = found["builtins", "NotImplemented"] = None
    found["builtins", "bytearray"] = of_bytes
    found["_codecs", "encode"] = codec
    for c in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone):
        found["datetime", c.__name__] = plain(c)
    found["decimal", "Decimal"] = plain(decimal.Decimal)
    found["fractions", "Fraction"] = fraction
    found["uuid", "UUID"] = None
    found["uuid", "SafeUUID"] = plain(uuid.SafeUUID)
    for c in (collections.OrderedDict, collections.deque, collections.Counter):
        found["collections", c.__name__] = containers(c)
    found["collections", "defaultdict"] = default
    for name in ("PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"):
        found["pathlib", name] = found["pathlib._local", name] = _path(name)
    for name, c in list(vars(sys.modules["builtins"]).items()):
        if isinstance(c, type) and issubclass(c, BaseException):
            found["builtins", name] = plain(c)
    return found


def _path(name: str) -> Any:
    def make(args: Tuple[Any, ...]) -> Any:
        if not all(type(a) is str for a in args):
            raise Refused("a path made of something else than texts")
        c = (
            getattr(pathlib, name) if name.startswith("Pure") else pathlib.Path
        )  # the other system's have no such class here
        return c(*args)

    return make


# What instances of may be made without a call, and then given attributes.
_BARE = {("uuid", "UUID"), ("builtins", "object")}

_ARRAYS = re.compile(r"numpy(\._?core\.(multiarray|numeric))?\Z")


def _numpy(module: str, name: str) -> Any:
    """What arrays are made of, if numpy is here; it is not imported for that."""
    np: Any = sys.modules.get("numpy")
    if np is None:
        raise Refused("a numpy array, and numpy is not imported here")
    root: Any = getattr(np, "_core", None) or np.core

    def reconstruct(args: Tuple[Any, ...]) -> Any:
        kind, shape, code = args
        if kind is not np.ndarray or tuple(shape) != (0,):
            raise Refused("a numpy array that is none")
        return root.multiarray._reconstruct(np.ndarray, (0,), b"b")

    def dtype(args: Tuple[Any, ...]) -> Any:
        if not args or type(args[0]) is not str:
            raise Refused("a numpy type that is none")
        return np.dtype(args[0], *args[1:3])

    def scalar(args: Tuple[Any, ...]) -> Any:
        kind, data = args
        if not isinstance(kind, np.dtype) or kind.hasobject or type(data) is not bytes:
            raise Refused("a numpy number that is none")
        return root.multiarray.scalar(kind, data)

    def frombuffer(args: Tuple[Any, ...]) -> Any:
        data, kind, shape, order = args
        if not isinstance(kind, np.dtype) or kind.hasobject or order not in ("C", "F"):
            raise Refused("a numpy array that is none")
        return np.frombuffer(data, dtype=kind).reshape(shape, order=order)

    if name == "ndarray":
        return _Class(np.ndarray, None)
    if name == "dtype":
        return _Class(np.dtype, dtype)
    makers: Dict[str, Any] = {"_reconstruct": reconstruct, "scalar": scalar, "_frombuffer": frombuffer}
    if name in makers:
        return _Maker(makers[name])
    raise Refused("%s.%s" % (module, name))


# A unit of time of a numpy type, as its state has it.
_UNIT = re.compile(r"(generic|Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\Z")
_ALIGNED = 0x80  # of a numpy type's flags


def _numpy_type(np: Any, o: Any, state: Any) -> Any:
    """The numpy type that o becomes with a state. Made anew, for numpy checks what it makes but believes a state: one that hides an object
    among plain bytes would have it follow any address. And o itself stays: arrays may have it already."""
    if type(state) is not tuple or len(state) < 8:
        raise Refused("a numpy type that is none")
    _, order, sub, names, fields, size, _, flags = state[:8]
    if sub is not None:
        base, shape = sub
        if not isinstance(base, np.dtype) or type(shape) is not tuple:
            raise Refused("a numpy type that is none")
        return np.dtype((base, shape))
    if names is not None:
        parts = [fields[n] for n in names]
        if not all(isinstance(p[0], np.dtype) and type(p[1]) is int for p in parts):
            raise Refused("a numpy type that is none")
        said = {"names": list(names), "formats": [p[0] for p in parts], "offsets": [p[1] for p in parts], "itemsize": size}
        if any(len(p) > 2 for p in parts):
            said["titles"] = [p[2] if len(p) > 2 else None for p in parts]
        return np.dtype(said, align=bool(flags & _ALIGNED))
    if o.kind in "SUV":
        if type(size) is not int or size < 0:
            raise Refused("a numpy type that is none")
        o = np.dtype("%s%d" % (o.kind, size // 4 if o.kind == "U" else size))
    elif o.kind in "mM" and len(state) > 8:
        unit, times = state[8][1][:2]
        unit = unit.decode("ascii", "replace") if type(unit) is bytes else unit
        if type(unit) is not str or not _UNIT.match(unit) or type(times) is not int:
            raise Refused("a numpy type that is none")
        o = np.dtype("%s8" % o.kind if unit == "generic" else "%s8[%d%s]" % (o.kind, times, unit))
    return o.newbyteorder(order) if order in ("<", ">") else o


def _array_state(np: Any, state: Any) -> Any:
    """The state of a numpy array, if it has as much in it as it says: numpy does not look."""
    if type(state) is not tuple or len(state) != 5:
        raise Refused("a numpy array that is none")
    shape, kind, data = state[1], state[2], state[4]
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape) or not isinstance(kind, np.dtype):
        raise Refused("a numpy array that is none")
    count = 1
    for n in shape:
        count *= n
    if type(data) is list:
        if not kind.hasobject or len(data) != count:
            raise Refused("a numpy array of more than it has")
    elif kind.hasobject or not isinstance(data, (bytes, str)):
        raise Refused("a numpy array that is none")
    return state


class _Maker:
    """What a pickle may call, in place of the function itself."""

    def __init__(self, make: Callable[[Tuple[Any, ...]], Any]) -> None:
        self.make = make


class _Class(_Maker):
    """A class that a pickle names. Where it is a value, the class itself takes its place."""

    def __init__(self, c: Any, make: Any, bare: bool = False) -> None:
        super().__init__(make)
        self.c = c
        self.bare = bare


_Unpickler: Any = getattr(pickle, "_Unpickler")  # the one that is written in Python


class Reader(_Unpickler):  # type: ignore[misc]
    """Reads one pickle.

    Args:
        main: gives what __main__ has under a name; the client's own functions and classes.
        allow: modules whose classes may be made, by name; what is below them, too.

    Raises (from load): Refused, naming what the list does not have; pickle.UnpicklingError and others for a damaged pickle.
    """

    dispatch: Dict[int, Any] = dict(_Unpickler.dispatch)
    standard: Dict[Tuple[str, str], Any] = {}

    def __init__(self, data: bytes, main: Callable[[str], Any], allow: FrozenSet[str] = frozenset()) -> None:
        super().__init__(io.BytesIO(data))
        self.size = len(data)
        self.main = main
        self.allow = allow
        self.made: Dict[int, Any] = {}  # instances that this pickle made, which it may give attributes
        self.noted: Dict[int, int] = {}  # of numpy types: where in the memo each comes to be
        if not Reader.standard:
            Reader.standard = _standard()

    def load(self) -> Any:
        try:
            return _real(super().load())
        except Refused:
            raise
        except (pickle.UnpicklingError, MemoryError, RecursionError):
            raise
        except Exception as e:
            raise pickle.UnpicklingError("a damaged result: %s: %s" % (type(e).__name__, e)) from None

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            o = self.main(name)
            if isinstance(o, type):
                return _Class(o, None, True)
            raise Refused("__main__.%s, which is not a class" % name)
        if (module, name) in self.standard:
            make = self.standard[module, name]
            c: Any = sys.modules.get(module) or sys.modules[module.partition(".")[0]]
            return _Class(getattr(c, name, None), make, (module, name) in _BARE)
        if module.partition(".")[0] == "numpy" and _ARRAYS.match(module):
            return _numpy(module, name)
        m = sys.modules.get(module)
        parts = module.split(".")
        if m is not None and any(".".join(parts[: i + 1]) in self.allow for i in range(len(parts))):
            c = m
            for part in name.split("."):
                c = vars(c).get(part) if isinstance(c, (type, types.ModuleType)) else None
            if isinstance(c, type) and c.__module__ == module:
                return _Class(c, None, True)
        raise Refused(
            "the result has %s.%s in it, and its node belongs to somebody else: name its module in the option allow, if"
            " making such things is harmless" % (module, name)
        )

    # -- the steps that do something. Each takes its operands from the stack, as pickle's own does.

    def step_reduce(self) -> None:
        args = self.stack.pop()
        maker = self.stack[-1]
        if not isinstance(maker, _Maker) or type(args) is not tuple:
            raise Refused("a call of something that is not a class")
        self.stack[-1] = self.call(maker, args, {})

    def step_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.instance(self.stack[-1], args, {})

    def step_newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        self.stack[-1] = self.instance(self.stack[-1], args, kwargs)

    def call(self, maker: _Maker, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        if maker.make is not None:
            return self.mark(maker.make(tuple(_real(a) for a in args)))
        return self.instance(maker, args, kwargs)

    def mark(self, o: Any) -> Any:
        """Notes that the pickle made it; and o stays, so that its id is not another's."""
        self.made[id(o)] = o
        self.noted[id(o)] = len(self.memo)
        return o

    def instance(self, maker: Any, args: Any, kwargs: Any) -> Any:
        """A new instance of a class, without running what the class defines."""
        if not isinstance(maker, _Class) or not maker.bare or type(args) is not tuple:
            if isinstance(maker, _Class) and maker.make is not None and not kwargs:
                return self.call(maker, args, {})
            raise Refused("an instance of something that is not a class to be made")
        c = maker.c
        args = tuple(_real(a) for a in args)
        if issubclass(c, enum.Enum):
            if len(args) == 1 and not kwargs:
                for member in c:
                    if type(member.value) is type(args[0]) and member.value == args[0]:
                        return member
                if issubclass(c, enum.Flag) and type(args[0]) is int:
                    return c(args[0])
            raise Refused("a member of %s that is none" % c.__qualname__)
        if issubclass(c, type):
            raise Refused("a new class")
        if hasattr(c, "__del__"):  # it would run, with attributes that the pickle chose
            raise Refused("the result has an instance of %s in it, whose __del__ would run, and its node belongs to somebody else" % c.__qualname__)
        new = _plain_new(c)
        if new is None:
            raise Refused(
                "the result has an instance of %s in it, whose __new__ would run, and its node belongs to somebody else"
                % c.__qualname__
            )
        if new is object.__new__:
            args = ()
        elif new is tuple.__new__ and isinstance(getattr(c, "_fields", None), tuple):
            args = (args,)
        elif args and not isinstance(args[0], _MADE_OF.get(new, object)):
            raise Refused("a %s made of something else" % c.__qualname__)
        return self.mark(new(c, *args))

    def step_build(self) -> None:
        state = self.stack.pop()
        o = self.stack[-1]
        if self.made.get(id(o)) is not o or isinstance(o, (type, types.FunctionType, types.ModuleType)):
            raise Refused("attributes for something that the result did not make")
        np: Any = sys.modules.get("numpy")
        if np is not None and isinstance(o, np.dtype):
            self.stack[-1] = self.mark(_numpy_type(np, o, _deep(state)))
            at = self.noted[id(o)]
            if self.memo.get(at) is o:
                self.memo[at] = self.stack[-1]
            return
        if np is not None and isinstance(o, np.ndarray):
            np.ndarray.__setstate__(o, _array_state(np, _deep(state)))
            return
        set_state = getattr(type(o), "__setstate__", None)
        if set_state is not None and set_state is not getattr(object, "__setstate__", None):
            if not isinstance(o, _NO_STATE):
                set_state(o, _deep(state))
                return
        slots = None
        if type(state) is tuple and len(state) == 2:
            state, slots = state
        if state:
            for k, v in state.items():
                if type(k) is not str:
                    raise Refused("an attribute without a name")
                o.__dict__[sys.intern(k)] = _real(v)
        if slots:
            for k, v in slots.items():
                descriptor = getattr(type(o), k, None)
                if not isinstance(descriptor, types.MemberDescriptorType):
                    raise Refused("an attribute %s that is none" % k)
                descriptor.__set__(o, _real(v))

    def step_append(self) -> None:
        value = self.stack.pop()
        self.extend(self.stack[-1], [value])

    def step_appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def extend(self, to: Any, items: List[Any]) -> None:
        items = [_real(i) for i in items]
        if isinstance(to, list):
            list.extend(to, items)
        elif isinstance(to, collections.deque):
            collections.deque.extend(to, items)
        else:
            raise Refused("items for something that is not a list")

    def step_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.put(self.stack[-1], [key, value])

    def step_setitems(self) -> None:
        items = self.pop_mark()
        self.put(self.stack[-1], items)

    def put(self, to: Any, items: List[Any]) -> None:
        if not isinstance(to, dict):
            raise Refused("items for something that is not a dict")
        set_item = collections.OrderedDict.__setitem__ if isinstance(to, collections.OrderedDict) else dict.__setitem__
        for i in range(0, len(items), 2):
            set_item(to, _real(items[i]), _real(items[i + 1]))

    def step_additems(self) -> None:
        items = self.pop_mark()
        to = self.stack[-1]
        if not isinstance(to, set):
            raise Refused("items for something that is not a set")
        set.update(to, [_real(i) for i in items])

    def step_refused(self) -> None:
        raise Refused("a kind of pickle that results never are")

    def step_bytearray8(self) -> None:
        n = int.from_bytes(self.read(8), "little")
        if n > self.size:
            raise pickle.UnpicklingError("a result is cut off")
        self.append(bytearray(self.read(n)))

    # Containers hold what names stand for, not the names.

    def step_tuple(self) -> None:
        items = self.pop_mark()
        self.append(tuple(_real(v) for v in items))

    def step_tuple1(self) -> None:
        self.stack[-1] = (_real(self.stack[-1]),)

    def step_tuple2(self) -> None:
        self.stack[-2:] = [(_real(self.stack[-2]), _real(self.stack[-1]))]

    def step_tuple3(self) -> None:
        self.stack[-3:] = [(_real(self.stack[-3]), _real(self.stack[-2]), _real(self.stack[-1]))]

    def step_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(_real(v) for v in items))

    def step_list(self) -> None:
        items = self.pop_mark()
        self.append([_real(v) for v in items])

    def step_dict(self) -> None:
        items = [_real(v) for v in self.pop_mark()]
        self.append({items[i]: items[i + 1] for i in range(0, len(items), 2)})

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a kind of pickle that results never are")


# What a new instance of a class may be made of, by its __new__; a range or a number would make a huge one of a few bytes.
_MADE_OF: Dict[Any, Any] = {bytes.__new__: bytes, bytearray.__new__: bytes, int.__new__: int, str.__new__: str}
_MADE_OF.update((c.__new__, (list, tuple, dict, set, frozenset, str)) for c in (list, tuple, set, frozenset, dict))

# Classes of the standard library that have a __setstate__ that is not called: BUILD is nothing for them, or is done here.
_NO_STATE = (BaseException,)


def _real(o: Any) -> Any:
    """A value as it is outside of this module."""
    if isinstance(o, _Class):
        return o.c
    if isinstance(o, _Maker):
        raise Refused("a function as a value")
    return o


def _deep(o: Any) -> Any:
    if type(o) is tuple:
        return tuple(_deep(v) for v in o)
    return _real(o)


def _plain_new(c: type) -> Optional[Any]:
    """The __new__ of a class, if it is none that the program wrote."""
    for b in c.__mro__:
        new = vars(b).get("__new__")
        if new is None:
            continue
        if isinstance(new, staticmethod):
            new = new.__func__
        if isinstance(new, types.FunctionType):
            if (
                b.__bases__ == (tuple,)
                and isinstance(getattr(b, "_fields", None), tuple)
                and new.__code__.co_filename != c.__module__
            ):
                if new.__module__.startswith("namedtuple_"):
                    return tuple.__new__
            return None
        return b.__new__
    return None


def _install() -> None:
    """Puts our steps in place of pickle's, and a refusal in place of those that results never need."""
    dispatch = Reader.dispatch
    for op, step in (
        (pickle.REDUCE, Reader.step_reduce),
        (pickle.NEWOBJ, Reader.step_newobj),
        (pickle.NEWOBJ_EX, Reader.step_newobj_ex),
        (pickle.BUILD, Reader.step_build),
        (pickle.APPEND, Reader.step_append),
        (pickle.APPENDS, Reader.step_appends),
        (pickle.SETITEM, Reader.step_setitem),
        (pickle.SETITEMS, Reader.step_setitems),
        (pickle.ADDITEMS, Reader.step_additems),
        (pickle.BYTEARRAY8, Reader.step_bytearray8),
        (pickle.TUPLE, Reader.step_tuple),
        (pickle.TUPLE1, Reader.step_tuple1),
        (pickle.TUPLE2, Reader.step_tuple2),
        (pickle.TUPLE3, Reader.step_tuple3),
        (pickle.FROZENSET, Reader.step_frozenset),
        (pickle.LIST, Reader.step_list),
        (pickle.DICT, Reader.step_dict),
    ):
        dispatch[op[0]] = step
    for op in (
        pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID,
        pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    ):  # fmt: skip
        dispatch[op[0]] = Reader.step_refused


_install()
