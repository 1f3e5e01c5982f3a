"""Words of the command line become arguments: numbers and lists as Python writes them, anything else as text.

    meshnode submit examples/python/words.py:repeat {} 3 ::: ab cd
    meshnode submit examples/python/words.py:total ::: "[1, 2, 3]" "(4.5,)"
    meshnode submit examples/python/words.py:digits ::: 007
"""


def repeat(word, times):
    return " ".join([word] * times)


def total(numbers):
    return sum(numbers)


def digits(number: str):
    """With the annotation it gets the text as it is, and 007 stays three digits."""
    return len(number)
