"""The fingerprint of an algorithm: a hash of the source that makes its code, by which records know whether they still
speak of it. What only ranks or refuses configs is not in it, so that a better model leaves what was measured usable."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

DIGITS = 12
NUMBERS = "convc.numerics"

Place = tuple[str, str]
"""A module and the name of one of its top-level definitions; "" is all of it."""


def fingerprint(functions: Sequence[Callable[..., Any]]) -> str:
    """12 hex digits of the SHA-256 over the definitions that these functions reach, within their package and where
    numbers of the code come from, and over the data files of the modules that hold them."""
    places = tuple(sorted({_place(function) for function in functions}))
    return _digest(places)


@cache
def _digest(places: Sequence[Place]) -> str:
    texts: dict[Place, str] = {}
    waiting = list(places)
    while waiting:
        place = waiting.pop()
        if place in texts:
            continue
        source = _source(place[0])
        if place[1] and place[1] not in source.definitions:
            place = (place[0], "")  # bound in another way than by a statement of its own: all of the module counts
        texts[place] = source.text(place[1])
        if source.data:
            texts[(place[0], ".json")] = source.data
        waiting += source.reached(place[1])
    digest = hashlib.sha256()
    for (module, name), text in sorted(texts.items()):
        digest.update(f"{module}\0{name}\0{len(text)}\0{text}".encode())
    return digest.hexdigest()[:DIGITS]


def _place(function: Callable[..., Any]) -> Place:
    name = getattr(function, "__qualname__", "")
    return function.__module__, "" if "<" in name else name.partition(".")[0]


@dataclass(frozen=True)
class _Source:
    """A module: its name, its lines, its statements by the names they bind, what its imported names stand for, and
    the text of the .json file of its name, if there is one."""

    module: str
    lines: Sequence[str]
    tree: ast.Module
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, Place] = field(default_factory=dict)
    data: str = ""

    def text(self, name: str) -> str:
        """The statements that bind `name`, without docstrings."""
        if not name:
            return "".join(self.lines)
        return "".join(self._of(node) for node in self.definitions[name])

    def reached(self, name: str) -> Iterator[Place]:
        """What those statements name, as far as it is this module's or imported."""
        nodes: Sequence[ast.AST] = self.definitions[name] if name else [self.tree]
        for node in (inner for outer in nodes for inner in ast.walk(outer)):
            match node:
                case ast.Attribute(value=ast.Name(id=alias), attr=attr) if alias in self.imported:
                    module, bound = self.imported[alias]
                    yield (module, bound or attr)
                case ast.Name(id=used) if used in self.imported:
                    module, bound = self.imported[used]
                    if bound:
                        yield (module, bound)
                case ast.Name(id=used) if used in self.definitions:
                    yield (self.module, used)

    def _of(self, node: ast.stmt) -> str:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        skipped = range(0)
        body = getattr(node, "body", None)
        if isinstance(body, list) and ast.get_docstring(node, clean=False) is not None:  # type: ignore[arg-type]
            skipped = range(body[0].lineno, (body[0].end_lineno or body[0].lineno) + 1)
        last = node.end_lineno or node.lineno
        return "".join(self.lines[i - 1] for i in range(first, last + 1) if i not in skipped)


@cache
def _source(module: str) -> _Source:
    loaded = importlib.import_module(module)
    text = inspect.getsource(loaded)
    tree = ast.parse(text)
    beside = Path(str(loaded.__file__)).with_suffix(".json")
    data = beside.read_text() if beside.is_file() else ""
    found = _Source(module, text.splitlines(keepends=True), tree, data=data)
    package = module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            if any(base == root or base.startswith(f"{root}.") for root in (package, NUMBERS)):
                found.imported.update((a.asname or a.name, _imported(base, a.name)) for a in node.names)
    for statement in tree.body:
        for name in _bound(statement):
            found.definitions.setdefault(name, []).append(statement)
    return found


def _imported(module: str, name: str) -> Place:
    """What `from module import name` binds: a module of its own, or a name inside one."""
    try:
        found = find_spec(f"{module}.{name}")
    except ModuleNotFoundError:  # the module is no package
        found = None
    return (f"{module}.{name}", "") if found else (module, name)


def _bound(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
