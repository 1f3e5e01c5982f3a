"""A program as users write them, whose functions are run in worker processes of other interpreters.

python ship_cases.py VERSION=PATH...   runs each case on each of them; prints what is wrong, and at last how many cases ran.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import math
import operator
import os.path
import sys
import typing
from collections import namedtuple
from functools import lru_cache, partial
from math import sqrt as root

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "modules"))
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import shapes
import shapes.round
from helper_one import twice, Pair, adder

CASES = []


def case(func, *args, **options):
    """Notes a call. Options: want (default: what the call gives here), least (the oldest Python that can), kwargs."""
    CASES.append((func, args, options))
    return func


# ---- plain functions and what they use

LIMIT = 10
TABLE = {"a": 1, "b": [2, 3], "c": {"d": (4, None)}}
NAMES = {"x", "y", "zz"}
NOTHING = None
BYTES = b"\0\xff"
TEXT = "\u00e4\U0001f600\n\"'"


def is_prime(n):
    """Whether n is a prime."""
    if n < 2:
        return False
    if n == 2:
        return True
    top = int(math.ceil(math.sqrt(n)))
    i = 2
    while i <= top:
        if n % i == 0:
            return False
        i += 1
    return True


def sum_primes(n):
    """Sum of all primes below n."""
    return sum([x for x in range(2, n) if is_prime(x)])


case(sum_primes, 1000, want=76127)


def constants():
    return LIMIT, TABLE, sorted(NAMES), NOTHING, BYTES, TEXT, root(16.0)


case(constants)


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


case(factorial, 20)
case(even, 11)


def numbers(n):
    for i in range(n):
        yield from (i, -i)


def with_generators(n):
    return list(numbers(n)), sum(x * LIMIT for x in range(n)), {k: v for k, v in zip("abc", range(n))}


case(with_generators, 3)


def arguments(a, b=LIMIT, *rest, c, d=TABLE["a"], **others):
    return a, b, rest, c, d, sorted(others.items())


case(arguments, 1, kwargs={"c": 3, "e": 5})
case(arguments, 1, 2, 3, 4, kwargs={"c": 3})


def annotated(a: "NoSuchType", b: typing.Optional[int] = None) -> "NeitherThis":
    c: AlsoNot = a
    return c, b


case(annotated, 1)


def with_imports(text):
    import json
    from xml.etree import ElementTree as tree

    return json.loads(text), tree.fromstring("<a/>").tag, os.path.basename("a/b")


case(with_imports, "[1]")

async def wait(n):
    return n + LIMIT


case(wait, 1, want=11)


def texts():
    a = """
several
   lines""" + 'one\
line'
    return a + f"{LIMIT + 1}"


case(texts)

# ---- lambdas

one, two, three = (lambda x: x + 1), (lambda x: x + 2), (lambda x, y=lambda: 3: x + y())
case(one, 1)
case(two, 1)
case(three, 1)
long = lambda x: (
    x
    + LIMIT
)  # fmt: skip
case(long, 1)
table = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b}
case(table["add"], 5, 3)
case(table["sub"], 5, 3)
case((lambda f: lambda x: f(f(x)))(lambda x: x * 3), 2)

# ---- closures


def counter(start):
    step = [1]

    def add(n, by=start):
        return start + step[0] + n + by + LIMIT

    def both(n):
        return add(n) + again(n - 1)

    def again(n):
        return 0 if n <= 0 else both(n)

    return add, both


case(counter(4)[0], 1)
case(counter(4)[1], 3)


def deep(a):
    def inside(b):
        def innermost(c):
            return a, b, c

        return innermost

    return inside


case(deep(1)(2), 3)
case(deep(deep)(is_prime), 3, want=None, check=lambda got: got[2] == 3 and got[0] is deep and got[1] is is_prime, least=(3, 6))


def tally():
    n = 0

    def add():
        nonlocal n
        n += 1
        return n

    return add


case(tally(), want=1)
made = []
for factor in range(3):

    def scaled(x, factor=factor):
        return x * factor

    made.append(scaled)
for f in made:
    case(f, 7)
made = []
for factor in range(3):

    def scaled(x):
        return x * 2 + LIMIT

    made.append(scaled)

# ---- decorators


def shout(prefix):
    def decorate(f):
        @functools.wraps(f)
        def wrapper(*args):
            return prefix + str(f(*args))

        return wrapper

    return decorate


def plain_decorator(f):
    def wrapper(*args):
        return ["plain", f(*args)]

    return wrapper


@shout("a" + "b")
@shout("c")
def shouted(x):
    return x + LIMIT


@plain_decorator
def plainly(x):
    return x


@lru_cache(maxsize=None)
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


@contextlib.contextmanager
def managed(n):
    yield n + 1


@functools.singledispatch
def kind(x):
    return "thing"


@kind.register(int)
def _(x):
    return "number"


@kind.register(str)
def _(x):
    return "text"


def use_managed(n):
    with managed(n) as m:
        return m, fibonacci(30), shouted(1), plainly(2)


case(shouted, 1)
case(plainly, 1)
case(fibonacci, 50)
case(use_managed, 1)
registry = {}


def register(f):
    registry[f.__name__] = True
    f.marked = "yes"
    return f


@register
def registered(x):
    return x, registered.marked


case(registered, 1)

# ---- classes


class Base:
    """A base."""

    scale = 3
    instances: typing.ClassVar[int] = 0

    def __init__(self, x):
        self.x = x
        self.__hidden = x + 1

    def value(self):
        return self.x * self.scale

    def hidden(self):
        return self.__hidden

    @property
    def y(self):
        return self.x + LIMIT

    @y.setter
    def y(self, v):
        self.x = v - LIMIT

    @classmethod
    def make(cls, x):
        return cls(x)

    @staticmethod
    def add(a, b):
        return a + b + LIMIT

    def __eq__(self, other):
        return type(self) is type(other) and self.x == other.x

    def __hash__(self):
        return hash(self.x)

    def __repr__(self):
        return "%s(%r)" % (type(self).__name__, self.x)


class Child(Base):
    class Inner:
        z = 5

    def value(self):
        return super().value() + self.Inner.z + helper(self.x)

    def __lt__(self, other):
        return self.x < other.x


def helper(x):
    return Child.make(x).y if x < 100 else 0


class Meta(type):
    def __new__(meta, name, bases, body, **options):
        c = super().__new__(meta, name, bases, body)
        c.options = options
        return c

    def __init__(cls, name, bases, body, **options):
        super().__init__(name, bases, body)


class WithMeta(Base, metaclass=Meta, a=1):
    numbers = [i * LIMIT for i in range(3)]
    __slots__ = ("s",)


def use_classes(n):
    c = Child.make(n)
    c.y = 20
    return c.value(), c.hidden(), Base.add(1, 2), sorted([Child(3), Child(1)]), WithMeta.options, WithMeta.numbers, c


case(use_classes, 4)
case(Child, 5)
case(Child(5).value)
case(Child.make, 6)
case(Base.add, 1, 2)
case(Base.value, Child(2))


class Callable:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return self.n + x + LIMIT


case(Callable(1), 2)
case(Callable(2), 2)
case(partial(sum_primes, 100))
case(partial(arguments, c=5), 1)
case(functools.reduce, operator.add, [1, 2, 3])
case(math.sin, 1.0)
case(len, [1, 2])
case(str.upper, "a")
case(os.path.join, "a", "b")
case("a,b".split, ",")
case([3, 1].count, 1)
case(dict.fromkeys, "ab")

Point = namedtuple("Point", "x y")
Point3 = namedtuple("Point3", "x y z", defaults=(9,))


class Typed(typing.NamedTuple):
    a: int
    b: str = "b"

    def total(self):
        return len(self.b) + self.a


class Color(enum.Enum):
    RED = 1
    GREEN = "g"

    def shout(self):
        return self.name + "!"


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


Shape = enum.Enum("Shape", "SQUARE CIRCLE")


@dataclasses.dataclass(order=True)
class Item:
    name: str
    price: float = 1.5
    tags: typing.List[str] = dataclasses.field(default_factory=list)

    def total(self, n: int) -> float:
        return self.price * n + LIMIT


def use_values(item):
    other = dataclasses.replace(item, name="other")
    return (
        Point(1, 2), Point3(1, 2), Typed(1).total(), Color.RED.shout(), Color("g"), Level.LOW | Level.HIGH,
        Shape.CIRCLE, item.total(2), other, isinstance(item, Item), dataclasses.asdict(item),
    )  # fmt: skip


case(use_values, Item("x"), least=(3, 7))
case(Point._make, (1, 2))
case(Color, "g")


class Dual:
    """Numbers that differentiate themselves."""

    def __init__(self, value, slope=0.0):
        self.value, self.slope = value, slope

    def __add__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value + other.value, self.slope + other.slope)

    __radd__ = __add__

    def __mul__(self, other):
        other = other if isinstance(other, Dual) else Dual(other)
        return Dual(self.value * other.value, self.value * other.slope + self.slope * other.value)

    __rmul__ = __mul__


def sine(x):
    return Dual(math.sin(x.value), math.cos(x.value) * x.slope) if isinstance(x, Dual) else math.sin(x)


def slope(f, x):
    return f(Dual(x, 1.0)).slope


case(slope, lambda x: 3 * x * x + sine(x), 0.5)
case(slope, sine, 0.5)


class Primes:
    def __init__(self, n):
        self.n = n

    def is_prime(self, n):
        return is_prime(n)

    def __call__(self):
        return sum(x for x in range(2, self.n) if self.is_prime(x))


case(Primes(100))


def quicksort(a, n=-1, srt=None):
    """pp's example, without a mesh."""
    if len(a) <= 1:
        return a
    return (
        quicksort([x for x in a if x < a[0]]) + [x for x in a if x == a[0]] + quicksort([x for x in a if x > a[0]])
    )


case(quicksort, [5, 3, 8, 1, 5])


def reverse_md5(hash, start, end):
    import hashlib

    for i in range(start, end):
        if hashlib.md5(str(i).encode()).hexdigest() == hash:
            return i


case(reverse_md5, "829e8a09a9d9d2c5a1a8a8bd4ba0ec50", 0, 10)


def make_local():
    size = 4

    class Local(Base):
        area = size * 2

        def big(self):
            return self.x * size

    return Local


Local = make_local()


def use_local(x):
    return Local(x).big() + Local.area + Local(x).value()


case(use_local, 2)
case(lambda o: (o.big(), isinstance(o, Local), o), Local(3))

# ---- classes changed after their statement


class Settings:
    threshold = 1
    words = ["a"]


Settings.threshold = 5
Settings.words.append("b")
Settings.check = lambda self, x: x > self.threshold


def use_settings(x):
    return Settings.threshold, Settings.words, Settings().check(x)


case(use_settings, 3)

# ---- the user's own modules


def use_modules(x):
    return twice(x), shapes.round.area(x), shapes.NAME, Pair(x, 2).swap(), adder(3)(x)


case(use_modules, 2)
case(twice, 4)
case(adder(5), 1)
case(shapes.round.area, 2)
case(Pair(1, 2).swap)


def lazily(x):
    from helper_two import later

    return later(x)


case(lazily, 1)

# ---- arguments and results


def apply(f, *args):
    return f(*args)


def same(x):
    return x


case(apply, one, 4)
case(apply, lambda a, b: a * b + LIMIT, 2, 3)
case(apply, counter(7)[0], 1)
case(apply, Child(4).value)
case(apply, is_prime, 7)
case(apply, math.sqrt, 9.0)
case(apply, Callable(5), 6)
case(apply, partial(sum_primes), 50)
case(apply, shouted, 3)
case(same, Child(4))
case(same, {"a": (Child(1), Point(1, 2), Color.RED, Shape.SQUARE, Level.HIGH)})
case(same, Pair(3, 4))
case(same, Local(2))
case(same, Child)
case(same, is_prime)
case(same, one)
case(same, collections.OrderedDict(a=1))
case(lambda p: isinstance(p, Pair), Pair(1, 2))
case(lambda p: (isinstance(p, Child), isinstance(p, Base), type(p) is Child), Child(1))
case(lambda c, p: isinstance(p, c), Child, Child(1))
case(lambda ps: [p.value() for p in ps], [Child(i) for i in range(3)])
case(same, float("inf"))
case(same, 10**30)
case(same, "\udcff")
case(same, b"x" * 100)
case(same, range(4))


def main(workers):
    import pickle
    import struct
    import tempfile
    import traceback

    from meshnode import _ship
    from meshnode._ship import ship
    from meshnode._values import Decoder, Encoder, packet
    from versions import Worker

    scratch = tempfile.TemporaryDirectory()
    blobs = {}

    def put(b):
        name = ("%064x" % (len(blobs) + 1)).encode()
        path = os.path.join(scratch.name, str(len(blobs)))
        with open(path, "wb") as f:
            f.write(b)
        blobs[name] = path
        return name

    made = []
    wrong = []
    for f, args, options in CASES:
        kwargs = options.get("kwargs", {})
        name = getattr(f, "__qualname__", repr(f)) + repr(args)
        try:
            bundle = ship(f)
            _ship._cache.clear()
            if ship(f).data != bundle.data:
                wrong.append("%s: other bytes at the second time" % name)
            payload, ids = Encoder(bundle, put).call(args, kwargs)
        except Exception:
            wrong.append("%s: %s" % (name, traceback.format_exc()))
            continue
        want = options["want"] if "want" in options else f(*args, **kwargs)
        made.append((name, bundle, payload, ids, want, options))
    ran = 0
    for version, path in workers:
        worker = Worker(path)
        try:
            for name, bundle, payload, ids, want, options in made:
                here = tuple(map(int, version.split(".")))
                if here < options.get("least", (3, 6)):
                    continue
                if bundle.runtime != "python" and bundle.runtime != "python" + version:
                    wrong.append("%s: needs %s" % (name, bundle.runtime))
                    continue
                try:
                    number = worker.load(bundle.data)
                    # Twice: the second call sees nothing of the first.
                    failed, out, error = worker.run(number, packet([payload, payload]), [blobs[i] for i in ids])
                    worker.ask({"do": "close", "as": number})
                    for value, raised, _ in Decoder(bundle).results(out):
                        if raised is not None:
                            raise raised
                        check = options.get("check", lambda got: got == want and type(got) is type(want))
                        if not check(value):
                            raise AssertionError("%r instead of %r" % (value, want))
                    ran += 1
                except Exception as e:
                    text = "".join(traceback.format_exception(type(e), e, e.__traceback__))
                    wrong.append("%s on %s: %s" % (name, version, text))
        finally:
            worker.close()
    scratch.cleanup()
    for w in wrong:
        print(w)
    print("ran", ran, "wrong", len(wrong))


if __name__ == "__main__":
    main([a.split("=", 1) for a in sys.argv[1:]])
