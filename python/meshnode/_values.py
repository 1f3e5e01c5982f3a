"""Arguments and results, as they travel: the pickles of calls, and what comes back for them.

A call's payload is a pickle of (args, kwargs). What worker/load.py cannot find by name travels with it: functions, and classes
that the bundle lacks; large buffers go apart, as blobs. Then the payload is a pickle of (pickle, dict); see _extended there.
"""

from __future__ import annotations

import importlib
import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from ._errors import RemoteTraceback
from ._ship import Bundle, ShipError, _label, _Walk, module_installed, module_needed
from .worker.load import OBJECT

# Larger parts of arguments go apart from the pickle, as blobs: each is sent once to a node, however often it is used.
LARGE = 64 << 10

# A pickle that is larger goes as a blob itself: the same arguments again cost nothing.
LARGE_CALL = 1 << 20

# A task may name 64 blobs; what is beyond stays in the pickle.
_MOST = 60

_U32 = struct.Struct("<I")
_RESULT = struct.Struct("<BII")


class Ref:
    """An object that was stored on the mesh once, for any number of calls: in the arguments of a call it stands for the object.

    Attributes:
        id: of the blob, 32 bytes.
        size: of the blob, in bytes.
    """

    __slots__ = ("id", "size", "_needs", "__weakref__")

    def __init__(self, id: bytes, size: int, needs: Sequence[Any] = ()) -> None:
        self.id = id
        self.size = size
        self._needs = tuple(needs)

    def __repr__(self) -> str:
        return "<Ref %s, %d bytes>" % (self.id.hex()[:12], self.size)

    def __reduce__(self) -> Any:
        raise TypeError("a reference to a stored object only travels in the arguments of a call")


def _shipped(number: int) -> Any:
    """Stands for an object of the bundle in the pickle of a call."""
    raise pickle.UnpicklingError("object %d of a bundle, in a pickle that does not belong to it" % number)


def _stored(number: int) -> Any:
    """Stands for a stored object in the pickle of a call."""
    raise pickle.UnpicklingError("stored object %d, in a pickle that does not belong to it" % number)


# Types whose pickles hold nothing of the program, and which are quick to look at.
_ATOMS = frozenset([type(None), bool, int, float, complex, str])


class _TooMany(ShipError):
    """The arguments need more blobs than a task may name."""


# Types that a pickle has an own way for.
_NAMELESS = (type(None), type(...), type(NotImplemented))


class _Again(Exception):
    """The pickle has to be begun again: something about how it is made changed."""


class _Pickler(pickle.Pickler):
    encoder: "Encoder"

    def reducer_override(self, o: Any) -> Any:
        t = type(o)
        if t is types.FunctionType or issubclass(t, type):
            return self.encoder._definition(o)
        if t is Ref:
            return self.encoder._ref(o)
        if t is types.ModuleType:
            self.encoder._need(o)
            return importlib.import_module, (o.__name__,)
        return self.encoder._instance(o, t)


class _LargePickler(_Pickler):
    """Also takes large bytes out of the pickle, which costs a look at each object in it."""

    def persistent_id(self, o: Any) -> Any:
        t = type(o)
        if (t is bytes or t is bytearray) and len(o) >= LARGE:
            i = self.encoder._blob(o)
            if i is not None:
                return "b" if t is bytes else "y", i
        return None


class _Layer(NamedTuple):
    """Definitions that travel with calls: a walk that continues the bundle's or another layer's."""

    walk: _Walk
    data: bytes


class Encoder:
    """Makes the payloads of the calls of one bundle.

    Args:
        bundle: what is called.
        put: stores a large part of an argument (bytes-like) as a blob, and returns its id.

    May be used by one thread at a time.
    """

    def __init__(self, bundle: Bundle, put: Callable[[Any], bytes]) -> None:
        self.bundle = bundle
        self.put = put
        self._classes: List[_Layer] = (
            []
        )  # classes and modules that arguments needed and the bundle lacks, each continuing the last
        self._functions: "OrderedDict[Tuple[int, ...], _Layer]" = OrderedDict()  # by the ids of what they are for
        self._known: Dict[int, Any] = {}  # objects that any pickle can name, by id
        self._types: Dict[type, bool] = {}  # whether instances may have buffers of their own
        self._begin(4)

    def call(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[bytes, Tuple[bytes, ...]]:
        """The payload of a call, and the ids of the blobs that its task must name, in this order.

        Raises:
            ShipError: an argument cannot travel.
        """
        for a in args:
            if type(a) not in _ATOMS and not _simple(a):
                return self._call(args, kwargs)
        if kwargs:
            for a in kwargs.values():
                if type(a) not in _ATOMS and not _simple(a):
                    return self._call(args, kwargs)
        data = pickle.dumps((args, kwargs), 4)
        if len(data) >= LARGE_CALL:
            return self._call(args, kwargs)
        return data, ()

    # ---- what is not plain

    def _begin(self, protocol: int) -> None:
        self._protocol = protocol  # 5: buffers go apart
        self._large = False
        self._may_go_apart = True
        self._extended = False
        self._blobs: List[Union[Ref, Any]] = []
        self._blob_of: Dict[Any, int] = {}
        self._apart: List[int] = []
        self._wanted: List[Any] = []  # functions and such that this call brings
        self._own: Optional[_Layer] = None

    def _call(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[bytes, Tuple[bytes, ...]]:
        for i, layer in enumerate(self._classes):
            if not layer.walk.current():
                del self._classes[i:]
                self._functions.clear()
                break
        protocol, large, five = 4, _has_large((args, kwargs), 2), True
        for _ in range(1000):
            self._begin(protocol)
            self._large, self._may_go_apart = large, five
            try:
                data = self._dump((args, kwargs))
            except _Again:
                protocol = self._protocol
                continue
            except _TooMany:
                raise
            except Exception as e:
                raise self._error(args, kwargs, e) from None
            if protocol == 5 and not self._apart:
                protocol, five = 4, False  # older workers read that quicker
                continue
            if not large and len(data) >= LARGE and _has_large((args, kwargs), 6):
                large = True
                continue
            break
        else:
            raise ShipError("the arguments change while they are pickled")
        if len(data) >= LARGE_CALL and len(self._blobs) < 64:
            i = self._add_blob(data)
            return self._finish(b"", i)
        if not (self._extended or self._blobs or self._own):
            return data, ()
        return self._finish(data, None)

    def _dump(self, value: Any) -> bytes:
        out = io.BytesIO()
        kind = _LargePickler if self._large else _Pickler
        if self._protocol == 5:
            p = kind(out, 5, buffer_callback=self._buffer)
        else:
            p = kind(out, 4)
        p.encoder = self
        p.dump(value)
        return out.getvalue()

    def _finish(self, data: bytes, inner: Optional[int]) -> Tuple[bytes, Tuple[bytes, ...]]:
        more: Dict[str, Any] = {}
        if self._classes and (self._extended or self._own):
            more["defs"] = tuple(layer.data for layer in self._classes)
        if self._own is not None:
            more["own"] = self._own.data
        if self._apart:
            more["apart"] = tuple(self._apart)
        if inner is not None:
            more["inner"] = inner
        ids = tuple(b.id if type(b) is Ref else self.put(b) for b in self._blobs)
        return pickle.dumps((data, more), 4), ids

    def _add_blob(self, b: Any) -> int:
        self._blobs.append(b)
        return len(self._blobs) - 1

    def _blob(self, b: Any) -> Optional[int]:
        i = self._blob_of.get(id(b))
        if i is None and len(self._blobs) < _MOST:
            i = self._blob_of[id(b)] = self._add_blob(b)
        return i

    def _buffer(self, b: Any) -> bool:
        """Whether a buffer stays in the pickle."""
        try:
            memory = b.raw()
        except BufferError:
            return True
        if memory.nbytes < LARGE or len(self._blobs) >= _MOST:
            return True
        self._extended = True
        self._apart.append(self._add_blob(memory))
        return False

    def _ref(self, r: Ref) -> Any:
        for o in r._needs:
            self._bound(o)
        i = self._blob_of.get(r.id)
        if i is None:
            if len(self._blobs) >= 64:
                raise _TooMany("a call can name 64 stored objects and large buffers at most")
            i = self._blob_of[r.id] = self._add_blob(r)
        self._extended = True
        return _stored, (i,)

    def _instance(self, o: Any, t: type) -> Any:
        """Instances pickle as they are; but those with large buffers make the pickle one that has them apart."""
        apart = self._types.get(t)
        if apart is None:
            # Protocol 5 matters only to types that look at the number of the protocol.
            apart = getattr(t, "__reduce_ex__") is not object.__reduce_ex__ and not _plain(t)
            self._types[t] = apart
        if apart and self._protocol == 4 and self._may_go_apart:
            size = getattr(o, "nbytes", None)
            if not isinstance(size, int) or size >= LARGE:
                self._protocol = 5
                raise _Again
        return NotImplemented

    def _need(self, m: types.ModuleType) -> None:
        """A module that the arguments name."""
        if id(m) in self._known:
            return
        if not module_needed(m) or self.bundle._walk.has_source(m.__name__):
            self._known[id(m)] = m
            if module_installed(m) and not self.bundle._walk.has_module(m):
                self.bundle._want(m)
            return
        self.bundle._want(m)
        if not self._top().has_source(m.__name__):
            self._layer(lambda w: w.need(m))
            raise _Again
        self._extended = True  # the definitions go along

    def _top(self) -> _Walk:
        return self._classes[-1].walk if self._classes else self.bundle._walk

    def _layer(self, add: Callable[[_Walk], Any]) -> None:
        """Continues the definitions that go with each call that needs any."""
        if len(self._classes) >= 32:
            self._classes.clear()
        walk = _Walk(self._top())
        walk.begin()
        add(walk)
        self.bundle._want_for(walk)
        self._classes.append(_Layer(walk, walk.layer()))
        self.bundle._layers.append(walk)
        self.bundle._remember(self._classes[-1].data, walk)
        self._functions.clear()

    def _definition(self, o: Any) -> Any:
        """How a function or class is named in the pickle."""
        if id(o) in self._known or o is _shipped or o is _stored or o in _NAMELESS:
            return NotImplemented
        walk = self._top()
        number = walk.known(o)
        if number is None and self._own is not None:
            walk = self._own.walk
            number = walk.known(o)
        if number is None:
            if walk.by_name_of(o):
                m = sys.modules[o.__module__]
                self._need(m)
                if id(m) in self._known:
                    self._known[id(o)] = o
                return NotImplemented
            if isinstance(o, type):
                self.bundle._want(o)
                self._layer(lambda w: w.bind_class(o))
                raise _Again
            self._wanted.append(o)
            self._own = self._for(self._wanted)
            number = self._own.walk.known(o)
            assert number is not None
        elif walk.spec(number)["k"] == "import":
            if number < self.bundle._walk.count():
                self._known[id(o)] = o
            self._extended = self._extended or id(o) not in self._known
            return NotImplemented
        elif self.bundle._walk.named(o, number):
            return NotImplemented
        self._extended = True
        return _shipped, (number,)

    def _bound(self, o: Any) -> None:
        """Sees to it that a stored object's pickle finds a function or class by its name."""
        walk = self._top()
        number = walk.known(o)
        if number is not None and self.bundle._walk.named(o, number):
            return
        self._extended = True  # the definitions go along
        if o.__module__ != "__main__":
            self._need(sys.modules[o.__module__])
        elif number is None or not any(layer.walk.named(o, number) for layer in self._classes):
            self._layer(lambda w: w.bind_class(o))
            raise _Again

    def _for(self, wanted: List[Any]) -> _Layer:
        """The definitions of what this call brings."""
        key = tuple(map(id, wanted))
        layer = self._functions.get(key)
        if layer is not None and layer.walk.current():
            self._functions.move_to_end(key)
            return layer
        walk = _Walk(self._top())
        walk.begin()
        for o in wanted:
            walk.add(o)
        self.bundle._want_for(walk)
        layer = self._functions[key] = _Layer(walk, walk.layer())
        self.bundle._remember(layer.data, walk)
        if len(self._functions) > 64:
            self._functions.popitem(last=False)
        return layer

    def _error(self, args: Tuple[Any, ...], kwargs: Dict[str, Any], e: Exception) -> ShipError:
        named = [("argument %d" % (i + 1), a) for i, a in enumerate(args)] + [
            ("argument %s" % k, v) for k, v in kwargs.items()
        ]
        for name, value in named:
            for _ in range(100):
                self._begin(self._protocol)
                try:
                    self._dump(value)
                except _Again:
                    continue
                except Exception as found:
                    why = str(found)
                    if why.startswith(_CANNOT):
                        why = why[len(_CANNOT) :]
                    return ShipError("%s, %s, %s%s" % (name, _label(value), _CANNOT, why))
                break
        return ShipError("the arguments %s%s" % (_CANNOT, e))


_CANNOT = "cannot travel: "


_STANDARD: FrozenSet[str] = getattr(sys, "stdlib_module_names", frozenset())


def _plain(t: type) -> bool:
    """Whether a type is one of the standard library: none of these has large buffers."""
    root = t.__module__.partition(".")[0]
    if _STANDARD:
        return root in _STANDARD and t is not pickle.PickleBuffer
    return root in ("builtins", "datetime", "enum", "decimal", "collections", "fractions", "uuid", "pathlib", "array")


def _simple(a: Any) -> bool:
    """Whether a pickle holds nothing of the program, nor anything large; False if one had to look further to tell."""
    t = type(a)
    if t is bytes:
        return len(a) < LARGE
    if t is list or t is tuple or t is set or t is frozenset:
        return _ATOMS.issuperset(map(type, a))
    if t is dict:
        return _ATOMS.issuperset(map(type, a)) and _ATOMS.issuperset(map(type, a.values()))
    return False


def _has_large(value: Any, depth: int) -> bool:
    """Whether there are large bytes in plain containers, not too deep, nor among too many things."""
    level = [value]
    seen = 0
    for _ in range(depth):
        below: List[Any] = []
        for v in level:
            t = type(v)
            if t is bytes or t is bytearray:
                if len(v) >= LARGE:
                    return True
            elif t is tuple or t is list:
                below.extend(v[:1000])
            elif t is dict:
                below.extend(list(v.values())[:1000])
            elif hasattr(v, "__dict__") and not isinstance(v, type):
                below.extend(list(vars(v).values())[:100])
            seen += 1
            if seen > 10000:
                return False
        if not below:
            return False
        level = below
    for v in level:
        if type(v) in (bytes, bytearray) and len(v) >= LARGE:
            return True
    return False


def packet(payloads: Sequence[bytes]) -> bytes:
    """The input of a task that makes these calls."""
    parts = [b"C", _U32.pack(len(payloads))]
    for p in payloads:
        parts.append(_U32.pack(len(p)))
        parts.append(p)
    return b"".join(parts)


def store(value: Any) -> Tuple[List[Any], Tuple[Any, ...]]:
    """An object as a blob that any number of calls can name: the parts of its bytes, and what a Ref to it needs.

    Arrays and other large buffers in it lie apart from the pickle, and workers map them instead of copying.

    Raises:
        ShipError: it cannot travel.
    """
    buffers: List[memoryview] = []

    def apart(b: Any) -> bool:
        try:
            memory = b.raw()
        except BufferError:
            return True
        if memory.nbytes < LARGE:
            return True
        buffers.append(memory)
        return False

    out = io.BytesIO()
    p = _Storing(out, 5, buffer_callback=apart)
    p.needs = {}
    try:
        p.dump(value)
    except ShipError:
        raise
    except Exception as e:
        raise ShipError("what is to be stored, %s, cannot be pickled: %s" % (_label(value), e)) from None
    data = out.getvalue()
    head = OBJECT + _U32.pack(len(buffers))
    at = len(head) + 16 * len(buffers) + 8 + len(data)
    table, parts = [], []
    for b in buffers:
        pad = -at % 64
        table.append(struct.pack("<QQ", at + pad, b.nbytes))
        parts += [b"\0" * pad, b]
        at += pad + b.nbytes
    return [head + b"".join(table) + struct.pack("<Q", len(data)) + data, *parts], tuple(p.needs.values())


class _Storing(pickle.Pickler):
    """Notes the classes and functions that a stored object names: calls that use it bring them."""

    needs: Dict[int, Any]

    def reducer_override(self, o: Any) -> Any:
        t = type(o)
        if t is types.FunctionType or issubclass(t, type):
            if o in _NAMELESS:
                return NotImplemented
            module = sys.modules.get(o.__module__ or "")
            found: Any = module
            for part in o.__qualname__.split("."):
                found = getattr(found, part, None)
            if found is not o:
                raise ShipError("what is to be stored names %r, which is not found by that name" % (o,))
            if module is not None and (o.__module__ == "__main__" or module_needed(module)):
                self.needs[id(o)] = o
        elif t is types.ModuleType:
            return importlib.import_module, (o.__name__,)
        elif t is Ref:
            raise ShipError("a stored object cannot hold a reference to another")
        return NotImplemented


# ---- results


# What came of one call: the value that it returned, what it raised (then the value is None), and what it printed.
Result = Tuple[Any, Optional[BaseException], bytes]


class Decoder:
    """Reads the results of the calls of one bundle.

    Args:
        bundle: what was called: results may have its functions and classes in them.
        allow: modules (by name) whose classes may be in the results of other people's nodes too, besides those that are known to be
            harmless: "mypackage" means also what is below it.

    May be used by any number of threads.
    """

    def __init__(self, bundle: Optional[Bundle] = None, allow: Iterable[str] = ()) -> None:
        self.bundle = bundle
        self.allow = frozenset(allow)

    def results(self, output: bytes, log: bytes = b"", node: str = "", foreign: bool = False) -> Iterator[Result]:
        """The results of a packet's calls, in order. A result that cannot be read is an error of that call alone.

        Args:
            output: of the task.
            log: of the task.
            node: name of the node where it ran.
            foreign: whether that node belongs to somebody else; then nothing is unpickled that could run code.

        Raises:
            ValueError: the output is not one of calls.
        """
        unpack, loads, plain = _RESULT.unpack_from, pickle.loads, not foreign
        end, at, logged = len(output), 4, 0
        try:
            (count,) = _U32.unpack_from(output, 0)
            for _ in range(count):
                kind, size, length = unpack(output, at)
                at += 9 + size
                if at > end or kind > 1:
                    raise ValueError("the results of a packet are damaged")
                data = output[at - size : at]
                text = log[logged : logged + length] if length else b""
                logged += length
                if kind:
                    yield None, self.error(data, node, foreign), text
                    continue
                error: Optional[BaseException] = None
                value = None
                try:
                    if plain and b"__main__" not in data:
                        try:
                            value = loads(data)
                        except pickle.UnpicklingError:  # it names objects of the bundle
                            value = self.value(data)
                    else:
                        value = self.value(data, foreign)
                except Exception as e:
                    error = e
                one = [(value, error, text)]
                value = error = None
                yield one.pop()  # nothing here keeps it alive
        except struct.error:
            raise ValueError("the results of a packet are cut off") from None

    def values(self, output: bytes, node: str = "", foreign: bool = False) -> Iterator[Any]:
        """The values of a packet's calls, in order: as results(), but quicker. It ends with the first error, and raises it."""
        kept: List[Any] = []
        if foreign or b"__main__" in output:
            for value, error, _ in self.results(output, b"", node, foreign):
                if error is not None:
                    raise error
                kept.append(value)
                del value
                yield kept.pop()  # nothing here keeps it alive
            return
        unpack, loads = _RESULT.unpack_from, pickle.loads
        try:
            (count,) = _U32.unpack_from(output, 0)
            at = 4
            for _ in range(count):
                kind, size, _ = unpack(output, at)
                begin = at + 9
                at = begin + size
                if at > len(output) or kind > 1:
                    raise ValueError("the results of a packet are damaged")
                if kind:
                    raise self.error(output[begin:at], node)
                try:
                    kept.append(loads(output[begin:at]))
                except pickle.UnpicklingError:  # it names objects of the bundle
                    kept.append(self.value(output[begin:at]))
                yield kept.pop()
        except struct.error:
            raise ValueError("the results of a packet are cut off") from None

    def value(self, data: bytes, foreign: bool = False) -> Any:
        """The object that one pickle has."""
        if foreign:
            from ._allow import Reader

            return Reader(data, self._only_shipped, self.allow | self._modules()).load()
        return _Reader(data, self).load()

    def error(self, data: bytes, node: str = "", foreign: bool = False) -> BaseException:
        """The exception that a call raised: its type and attributes, with the traceback of where it was as its cause, and
        the node's name as its attribute `node`. A RemoteError stands for one that cannot be made here."""
        try:
            said = self.value(data, True)  # a dict of texts: nothing more is needed, whoever sent it
            if not isinstance(said, dict):
                raise ValueError("an exception that is not told as a dict")
        except Exception as e:
            return RemoteError("Unreadable", str(e), node)
        made: Any = None
        inner = said.get("pickle")
        if isinstance(inner, bytes):
            try:
                made = self.value(inner, foreign)
            except Exception:
                made = None  # the text says it all
        if not isinstance(made, BaseException):
            name, module = str(said.get("type", "")), str(said.get("module", ""))
            if module not in ("", "builtins", "__main__"):
                name = module + "." + name
            made = RemoteError(name, str(said.get("message", "")), node)
        raised: BaseException = made
        raised.__cause__ = RemoteTraceback(str(said.get("traceback", "")), node)
        try:
            made.node = node
        except Exception:
            pass  # a class that has no room for it
        return raised

    def _main(self, name: str) -> Any:
        """What a pickle calls __main__.name: as it was shipped, or as it is now."""
        top, _, rest = name.partition(".")
        o: Any = None
        if self.bundle is not None:
            o = self.bundle._shipped_as(top)
        if o is None:
            o = getattr(sys.modules["__main__"], top)
        for part in rest.split(".") if rest else ():
            o = getattr(o, part)
        return o

    def _only_shipped(self, name: str) -> Any:
        top, _, rest = name.partition(".")
        o = self.bundle._shipped_as(top) if self.bundle is not None else None
        for part in rest.split(".") if rest else ():
            o = vars(o).get(part) if isinstance(o, type) else None
        return o

    def _modules(self) -> FrozenSet[str]:
        return self.bundle._own_modules() if self.bundle is not None else frozenset()

    def _object(self, number: int, digest: str = "") -> Any:
        if self.bundle is None:
            raise pickle.UnpicklingError("a result names an object of a bundle that is not known")
        return self.bundle._object(number, digest)


class _Reader(pickle.Unpickler):
    """Reads a result of one's own machines."""

    def __init__(self, data: bytes, decoder: Decoder) -> None:
        super().__init__(io.BytesIO(data))
        self.decoder = decoder

    def find_class(self, module: str, name: str) -> Any:
        if module == "__main__":
            return self.decoder._main(name)
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return self.decoder._object(*pid)


class RemoteError(RuntimeError):
    """A call raised an exception that cannot be made again here.

    Attributes:
        type: its name, with its module.
        message: what str() of it was.
        node: name of the node, "" if not known.
    """

    def __init__(self, type: str, message: str, node: str = "") -> None:
        super().__init__(type, message, node)
        self.type, self.message, self.node = type, message, node

    def __str__(self) -> str:
        return self.type + (": " + self.message if self.message else "")


def results(output: bytes, log: bytes = b"", node: str = "", foreign: bool = False) -> Iterator[Result]:
    """As Decoder.results, for a bundle that is not known."""
    return Decoder().results(output, log, node, foreign)
