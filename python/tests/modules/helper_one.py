"""A module of a user's program, beside the script."""

from helper_two import OFFSET

FACTOR = 2


def twice(x):
    return x * FACTOR + OFFSET - OFFSET


def adder(n):
    def add(x):
        return x + n + FACTOR

    return add


class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b

    def swap(self):
        return Pair(self.b, self.a)

    def __eq__(self, other):
        return isinstance(other, Pair) and (self.a, self.b) == (other.a, other.b)
