"""Another one, which the first imports."""

OFFSET = 100


def later(x):
    return x + OFFSET
