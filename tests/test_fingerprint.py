"""What makes the records of an algorithm stale? An edit of what its code is made by, and no other."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from convc.tune import fingerprint as module

SOURCES = {
    "_tile": """
WIDTH = 4
OTHER = 5
def used(n):
    "words"
    return n * WIDTH
def unused(n):
    return n * OTHER
""",
    "one": """
from plug import _tile
from plug._tile import used as helper
def define(x):
    return _tile.used(x) + _inner(x)
def pack(w):
    return helper(w)
def _inner(x):
    return [LIMIT for _ in x]
LIMIT = 3
def seconds(p):
    return _tile.unused(p)
""",
    "two": """
def define(x):
    from . import _late
    return _late.f(x)
def pack(w):
    return w
""",
    "_late": """
def f(x):
    return x
""",
    "three": """
def make():
    return lambda x: x
define = make()
def pack(w):
    return w
""",
}
EDITS = (
    ("_tile", "return n * WIDTH", "return WIDTH * n", {"one"}),
    ("_tile", "WIDTH = 4", "WIDTH = 8", {"one"}),
    ("_tile", "OTHER = 5", "OTHER = 6", set()),
    ("_tile", "return n * OTHER", "return OTHER", set()),
    ("_tile", '"words"', '"other words"', set()),
    ("one", "LIMIT = 3", "LIMIT = 4", {"one"}),
    ("one", "return helper(w)", "return w", {"one"}),
    ("one", "return _tile.unused(p)", "return 1.0", set()),
    ("_late", "return x", "return -x", {"two"}),
    ("three", "lambda x: x", "lambda x: 2", {"three"}),
)


def hashes(folder: Path, sources: dict[str, str]) -> dict[str, str]:
    """Write the modules of a package of algorithms anew; the fingerprint of each."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    for name in [n for n in sys.modules if n == "plug" or n.startswith("plug.")]:
        del sys.modules[name]
    module._digest.cache_clear()
    module._source.cache_clear()
    importlib.invalidate_caches()
    found = {}
    for name in (n for n in sources if not n.startswith("_")):
        loaded = importlib.import_module(f"plug.{name}")
        found[name] = module.fingerprint([loaded.define, loaded.pack])
    return found


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "plug"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    return folder


@pytest.mark.parametrize(("edited", "old", "new", "stale"), EDITS)
def test_an_edit_makes_stale_what_it_changes(plug: Path, edited: str, old: str, new: str, stale: set[str]) -> None:
    before = hashes(plug, SOURCES)
    assert len(set(before.values())) == 3 and all(len(value) == 12 for value in before.values())
    assert old in SOURCES[edited]
    after = hashes(plug, {**SOURCES, edited: SOURCES[edited].replace(old, new)})
    assert {name for name in before if after[name] != before[name]} == stale
    assert hashes(plug, SOURCES) == before


def test_the_data_beside_a_module_counts(plug: Path) -> None:
    before = hashes(plug, SOURCES)
    (plug / "_late.json").write_text("[1]")
    after = hashes(plug, SOURCES)
    assert {name for name in before if after[name] != before[name]} == {"two"}
