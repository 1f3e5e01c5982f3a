"""Where the source text of a function or class is, and whether it is what runs.

The text on disk may have been edited since it was loaded, and a name may have been defined many times (in a loop, in the
cells of a notebook). So text counts only if it compiles to the very code that the function has.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import sys
import types
import weakref
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

_Definition = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda]


class Source(NamedTuple):
    """The text of a definition: whole lines of a statement, or a lambda expression."""

    text: str
    file: str  # what tracebacks call it: no folder, nothing that differs from one run to the next
    line: int  # of the text's first, counted from 1
    future: List[str]
    decorators: List[str]
    node: _Definition


class _File:
    """A file's text as it was once, and what it compiles to."""

    def __init__(self, name: str, lines: List[str]) -> None:
        self.name = name
        self.lines = lines
        self.text = "".join(lines)
        self.codes: Set[types.CodeType] = set()
        self.nodes: Dict[int, List[_Definition]] = {}
        self.classes: Dict[str, List[ast.ClassDef]] = {}
        self.future: List[str] = []
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        try:
            tree = compile(self.text, name, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
            code = compile(self.text, name, "exec", flags, dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError):
            return
        self.codes.update(codes(code))
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                self.future.extend(a.name for a in statement.names)
        self.future.sort()
        self._visit(tree, "")

    def _visit(self, node: ast.AST, path: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = path
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                self.nodes.setdefault(_first(child), []).append(child)
                if isinstance(child, ast.ClassDef):
                    self.classes.setdefault(path + child.name, []).append(child)
                    inner = path + child.name + "."
                elif not isinstance(child, ast.Lambda):
                    inner = path + child.name + ".<locals>."
            self._visit(child, inner)

    def source(self, node: _Definition) -> Source:
        first = _first(node)
        if isinstance(node, ast.Lambda):
            text = ast.get_source_segment(self.text, node) or ""
            decorators = []
        else:
            text = "".join(self.lines[first - 1 : node.end_lineno])
            if not text.endswith("\n"):
                text += "\n"
            decorators = [ast.get_source_segment(self.text, d) or "" for d in node.decorator_list]
        future = [f for f in self.future if f == "annotations"]  # the others changed nothing since Python 3.0
        return Source(text, display(self.name), first, future, decorators, node)


def _first(node: _Definition) -> int:
    if isinstance(node, ast.Lambda):
        return node.lineno
    return min([node.lineno] + [d.lineno for d in node.decorator_list])


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all those inside."""
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            yield from codes(c)


def display(name: str) -> str:
    """A file's name for tracebacks on other machines."""
    if name.startswith("<"):
        return "<input>" if name.startswith(("<ipython-input", "<python-input")) else name
    folder, base = os.path.split(name)
    if os.path.basename(folder).startswith("ipykernel_"):
        return "<input>"
    return base


_files: Dict[str, _File] = {}
_found: "weakref.WeakKeyDictionary[types.CodeType, Source]" = weakref.WeakKeyDictionary()


def _file(name: str) -> Optional[_File]:
    linecache.checkcache(name)
    lines = linecache.getlines(name)
    if not lines:
        return None
    old = _files.get(name)
    if old is None or old.lines != lines:
        old = _files[name] = _File(name, list(lines))
    return old


def of_code(code: types.CodeType) -> Optional[Source]:
    """The source of a function's code, or None if there is none that compiles to it."""
    found = _found.get(code)
    if found is None:
        found = _find(code)
        if found is not None:
            _found[code] = found
    return found


def _find(code: types.CodeType) -> Optional[Source]:
    file = _file(code.co_filename)
    if file is None or code not in file.codes:
        return None
    kind = ast.Lambda if code.co_name == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in file.nodes.get(code.co_firstlineno, []) if isinstance(n, kind)]
    if isinstance(kind, tuple):
        nodes = [n for n in nodes if not isinstance(n, ast.Lambda) and n.name == code.co_name]
    if len(nodes) > 1:
        # Several lambdas on one line: the one that compiles to this code. Two that do are the same.
        nodes = [n for n in nodes if _compiles_to(file, n, code)]
    if not nodes:
        return None
    return file.source(nodes[0])


def _compiles_to(file: _File, node: _Definition, code: types.CodeType) -> bool:
    from .worker.load import compile_function

    s = file.source(node)
    try:
        other = compile_function(s.text, s.file, s.line, list(code.co_freevars), "", s.future)
    except (SyntaxError, StopIteration):
        return False
    return meaning(other) == meaning(code)


def meaning(code: types.CodeType) -> Tuple[Any, ...]:
    """What a code object does, wherever in a file it is: equal for two that do the same."""
    return (
        code.co_name,
        code.co_code,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_kwonlyargcount,
        code.co_flags & ~inspect.CO_NESTED,
        _constant(code.co_consts),
    )


def _constant(c: Any) -> Any:
    if isinstance(c, types.CodeType):
        return meaning(c)
    if isinstance(c, tuple):
        return tuple(_constant(v) for v in c)
    if isinstance(c, frozenset):
        return frozenset(_constant(v) for v in c)  # its text depends on how it was made
    return type(c), repr(c)


def methods(c: type) -> List[types.FunctionType]:
    """The functions in a class that were written in its body, as far as one can tell."""
    found = []
    for v in list(vars(c).values()):
        for f in _inside(v):
            here = f.__module__ == c.__module__ == f.__globals__.get("__name__")
            if here and f.__qualname__.startswith(c.__qualname__ + "."):
                found.append(f)
    return found


def _inside(v: Any) -> Iterator[types.FunctionType]:
    if isinstance(v, (staticmethod, classmethod)):
        v = v.__func__
    if isinstance(v, property):
        for f in (v.fget, v.fset, v.fdel):
            if f is not None:
                yield from _inside(f)
        return
    for _ in range(20):
        if isinstance(v, types.FunctionType):
            yield v
        inner = getattr(v, "__wrapped__", None) or getattr(v, "func", None)
        if inner is None or inner is v:
            return
        v = inner


def of_class(c: type) -> Optional[Source]:
    """The source of a class, or None."""
    names: List[str] = []
    own = [f for f in methods(c)]
    for f in own:
        if f.__code__.co_filename not in names and not f.__code__.co_filename == "<string>":
            names.append(f.__code__.co_filename)
    if not names:
        file = getattr(sys.modules.get(c.__module__), "__file__", None)
        if isinstance(file, str):
            names.append(file)
        # A class without methods does not say which cell of a notebook it is from: the newest that has one of its name.
        names.extend(n for n in reversed(list(linecache.cache)) if n.startswith("<") or "ipykernel_" in n)
    for name in names:
        f_ = _file(name)
        if f_ is None:
            continue
        for node in reversed(f_.classes.get(c.__qualname__, [])):
            if _is(f_, node, c, own):
                return f_.source(node)
    return None


def _is(file: _File, node: ast.ClassDef, c: type, own: List[types.FunctionType]) -> bool:
    """Whether this statement made the class."""
    line = getattr(c, "__firstlineno__", None)
    if isinstance(line, int) and "__firstlineno__" in vars(c) and line != _first(node):
        return False
    last = node.end_lineno or node.lineno
    written = 0
    for f in own:
        code = f.__code__
        if code.co_filename != file.name:
            continue
        if code not in file.codes or not _first(node) <= code.co_firstlineno <= last:
            return False
        written += 1
    # Without methods to compare, the names that the body binds must be there.
    for name in _bound(node):
        if name.startswith("__") and not name.endswith("__"):
            name = "_" + c.__name__.lstrip("_") + name
        if (
            name not in vars(c)
            and name not in getattr(c, "__annotations__", {})
            and name not in getattr(c, "_ignore_", ())
        ):
            if written == 0 or not hasattr(c, name):
                return False
    return True


def _bound(node: ast.ClassDef) -> List[str]:
    names: List[str] = []
    for s in node.body:
        if isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(s.name)
        elif isinstance(s, ast.Assign):
            names.extend(t.id for t in s.targets if isinstance(t, ast.Name))
        elif isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name) and s.value is not None:
            names.append(s.target.id)
    return [n for n in names if n not in ("__slots__", "_ignore_", "__classcell__")]


def class_of(c: type) -> Tuple[Optional[Source], bool]:
    """The source of a class, and whether it was defined inside a function."""
    return of_class(c), "<locals>" in c.__qualname__
