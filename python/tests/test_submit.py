"""Functions of the command line: what is made of a file, and what the texts become that are its inputs."""

import glob
import json
import os
import subprocess
import sys
import tempfile
import unittest

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "meshnode")

FILE = '''
import helper

def kind(*words):
    return " ".join("%s %r" % (type(w).__name__, w) for w in words)

def text(x: str, y, *rest: str):
    return kind(x, y, *rest)

def later(x: "str" = "nothing"):
    return helper.shout(x)

class Text:
    def __init__(self, x: str):
        self.x = x

    def __str__(self):
        return repr(self.x)
'''

# Runs one item after another, as a worker process does: the bundle's path and words, then the inputs, as JSON.
WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import load
with open(sys.argv[2], "rb") as f:
    program = load.load(f.read())
program.words = json.loads(sys.argv[3])
out = []
for number, text in enumerate(json.loads(sys.argv[4]), 1):
    data = b"" if text is None else b"T" + text.encode()
    failed, output, error = program.run(data, (), None, number)
    out.append(error if failed else bytes(output).decode())
sys.stdout.buffer.write(json.dumps(out).encode())
"""


def interpreters():
    """One of each version of Python from 3.6 on that is found here, ours first."""
    found = {"%d.%d" % sys.version_info[:2]: sys.executable}
    for path in sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))):
        found.setdefault(".".join(path.split(os.sep)[-3].split(".")[:2]), path)
    return [found[v] for v in found if tuple(map(int, v.split("."))) >= (3, 6)]


class Submit(unittest.TestCase):
    def setUp(self):
        d = tempfile.TemporaryDirectory()
        self.addCleanup(d.cleanup)
        self.dir = d.name
        self.write("work.py", FILE)
        self.write("helper.py", "def shout(x):\n    return x.upper()\n")

    def write(self, name, content):
        path = os.path.join(self.dir, name)
        with open(path, "w") as f:
            f.write(content)
        return path

    def submit(self, function, file="work.py"):
        """What the script says, and the path of the bundle."""
        p = subprocess.run(
            [sys.executable, os.path.join(PACKAGE, "_submit.py"), os.path.join(self.dir, file), function],
            stdout=subprocess.PIPE,
            timeout=60,
        )
        head, _, bundle = p.stdout.partition(b"\n")
        said = json.loads(head.decode())
        self.assertEqual(p.returncode, 1 if "error" in said else 0)
        self.assertEqual(len(bundle), said.get("size", 0))
        path = os.path.join(self.dir, "bundle")
        with open(path, "wb") as f:
            f.write(bundle)
        return said, path

    def run_texts(self, function, texts, words=(), python=sys.executable):
        _, bundle = self.submit(function)
        p = subprocess.run(
            [python, "-c", WORKER, os.path.join(PACKAGE, "worker"), bundle, json.dumps(list(words)), json.dumps(texts)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Python 3.6 writes there what it cannot parse
            timeout=60,
            check=True,
        )
        return json.loads(p.stdout.decode())

    def test_values(self):
        want = {
            "7": "int 7",
            "-3": "int -3",
            "+4": "int 4",
            "1_000": "int 1000",
            "0x1F": "int 31",
            "1.5": "float 1.5",
            ".5": "float 0.5",
            "1e3": "float 1000.0",
            "[1, 'a']": "list [1, 'a']",
            "(1,)": "tuple (1,)",
            '{"a": 1}': "dict {'a': 1}",
            "{1}": "set {1}",
            '"7"': "str '7'",
            "b'x'": "bytes b'x'",
            r"r'\d'": r"str '\\d'",
            "True": "bool True",
            " None ": "NoneType None",
            # What is not written as a value of those is text, on every version the same.
            "": "str ''",
            "abc": "str 'abc'",
            "007": "str '007'",
            "1,2": "str '1,2'",
            "'a', 'b'": 'str "\'a\', \'b\'"',
            "2026-10-11": "str '2026-10-11'",
            "1+2": "str '1+2'",
            "1 2": "str '1 2'",
            "...": "str '...'",
            "-": "str '-'",
            "--5": "str '--5'",
            "[1, x]": "str '[1, x]'",
            "(": "str '('",
            "(1": "str '(1'",
            "'": 'str "\'"',
            "buy": "str 'buy'",
            "nan": "str 'nan'",
            "f'{1}'": "str \"f'{1}'\"",
            "[" * 5000: "str '%s'" % ("[" * 5000),
            "é": "str 'é'",
        }
        for python in interpreters():
            with self.subTest(python=python):
                got = self.run_texts("kind", list(want), python=python)
                self.assertEqual(dict(zip(want, got)), want)

    def test_annotated_text_stays(self):
        for python in interpreters():
            with self.subTest(python=python):
                self.assertEqual(self.run_texts("text", ["[1]"], ["{}", "{}", "{}"], python), ["str '[1]' list [1] str '[1]'"])
                self.assertEqual(self.run_texts("Text", ["7"], python=python), ["'7'"])
                self.assertEqual(self.run_texts("later", ["7"], python=python), ["7"])

    def test_words(self):
        self.assertEqual(
            self.run_texts("kind", ["a", "2", "{#}"], ["{}", "{#}", "x{}y", "3"]),
            ["str 'a' int 1 str 'xay' int 3", "int 2 int 2 str 'x2y' int 3", "str '{#}' int 3 str 'x{#}y' int 3"],
        )

    def test_no_input_is_no_argument(self):
        self.assertEqual(self.run_texts("later", [None, "", "yes"]), ["NOTHING", "", "YES"])

    def test_what_it_says(self):
        said, _ = self.submit("later")
        self.assertEqual((said["runtime"], said["name"]), ("python", "later"))
        self.assertIn(os.path.realpath(self.dir), [os.path.realpath(p) for p in said["path"]])
        self.assertIn("source of module helper", said["contents"])
        self.assertEqual(said["interpreter"], sys.executable)

    def test_refusals(self):
        self.write("syntax.py", "x = 1\ndef f(:\n")
        self.write("lines.py", "def f():\n    return g()\ndef g():\n    raise KeyError('k')\nf()\n")
        self.write("locked.py", "import socket\nline = socket.socket()\ndef f(x):\n    return line\n")
        for file, function, message in [
            ("work.py", "", "no function is named; it has kind, text, later"),
            ("work.py", "other", "has no function other; it has kind, text, later"),
            ("work.py", "kind.x", "has no function kind.x"),
            ("work.py", "helper", "work.py:helper is a module, which cannot be called"),
            ("syntax.py", "f", "syntax.py, line 2: "),
            ("lines.py", "f", "lines.py, line 4: KeyError: 'k'"),
            ("locked.py", "f", "line"),
            ("missing.py", "f", "missing.py: no such file or directory"),
        ]:
            with self.subTest(file=file, function=function):
                said, _ = self.submit(function, file)
                self.assertIn(message, said["error"]["message"])
                self.assertNotIn("\n", said["error"]["message"] + said["error"]["fix"])


if __name__ == "__main__":
    unittest.main()
