"""A package of a user's program."""

NAME = "shapes"
