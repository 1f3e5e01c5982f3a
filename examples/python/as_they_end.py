"""Results as they come, an exception that is a real one, and a function made by another: concurrent.futures throughout.

    meshnode python examples/python/as_they_end.py
"""

from concurrent.futures import as_completed

from meshnode import Executor


def root_of(degree):
    """The inner function travels with the degree that it closes over."""

    def root(x):
        if x < 0:
            raise ValueError("%d has no root here" % x)
        return round(x ** (1 / degree), 3)

    return root


if __name__ == "__main__":
    with Executor() as executor:
        futures = {executor.submit(root_of(3), x): x for x in (8, 27, 64, -1)}
        for future in as_completed(futures):
            x = futures[future]
            try:
                print("the cube root of %d is %s" % (x, future.result()))
            except ValueError as e:
                print("no cube root of %d: %s" % (x, e))
