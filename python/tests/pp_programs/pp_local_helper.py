"""A module that the program local_module.py imports."""


def triple(x):
    """Three times x."""
    return 3 * x
