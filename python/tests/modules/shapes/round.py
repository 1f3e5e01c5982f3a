"""A module in it, which imports a third one by a relative name."""

from . import NAME
from .numbers import PI


def area(r):
    assert NAME == "shapes"
    return PI * r * r
