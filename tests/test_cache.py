"""Does the cache give back what was put, and nothing else, whatever happens to its folder?"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from convc.problem import Problem
from convc.report.single import single_convolution
from convc.runtime import cache
from convc.runtime.cache import Cache, open_cache


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVC_CACHE_DIR", str(tmp_path / "user"))
    open_cache.cache_clear()


def test_gives_back_what_was_put(tmp_path: Path) -> None:
    assert cache.get("key") is None
    cache.put("key", b"object")
    cache.put("other", b"")
    assert cache.get("key") == b"object" and cache.get("other") == b"" and cache.get("k") is None
    assert (tmp_path / "user").stat().st_mode & 0o777 == 0o700


COMPILE = """
import sys, convc
from pathlib import Path
convc.compile(Path("model.onnx"), target="cpu/x86-64-v3").save(sys.argv[1])
print("tvm" in sys.modules)
"""


def test_a_filled_cache_gives_the_same_bytes_without_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(single_convolution(Problem.parse("mb1_ic8ih6_oc16oh6_kh3ph1")))
    told = [
        subprocess.check_output([sys.executable, "-c", COMPILE, name], cwd=tmp_path, text=True, timeout=120).strip()
        for name in ("cold.convc", "warm.convc")
    ]
    assert told == ["True", "False"]
    assert (tmp_path / "cold.convc").read_bytes() == (tmp_path / "warm.convc").read_bytes()


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    store.put("key", b"object")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert store.get("key") is None and not path.exists()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert store.get("key") is None


def test_a_file_under_another_key_is_no_hit(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    store.put("key", b"object")
    os.replace(store._path("key"), store._path("other"))
    assert store.get("other") is None


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Cache(tmp_path, limit=8000)
    for i in range(7):
        store.put(f"key{i}", bytes(1000))
        os.utime(store._path(f"key{i}"), (i, i))
    assert store.get("key0") is not None  # now the latest
    store.put("key7", bytes(1000))
    kept = [i for i in range(8) if store.get(f"key{i}") is not None]
    assert kept == [0, 4, 5, 6, 7]  # each is 1076 bytes; three quarters of the limit are left
    store.put("huge", bytes(8000))
    assert store.get("huge") is None and store.get("key7") is not None


def test_folders_of_others_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.warns(UserWarning, match="can be written by others; `chmod 700`"):
        cache.put("key", b"object")
    assert cache.get("key") is None and not list(folder.iterdir())
    folder.chmod(0o700)
    open_cache.cache_clear()
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.warns(UserWarning, match="belongs to user"):
        assert cache.get("key") is None


def test_a_folder_that_cannot_be_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "user").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be used"):
        cache.put("key", b"object")
    assert cache.get("key") is None


def test_full_disk_and_vanished_folder_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    cache.put("first", b"object")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        cache.put("key", b"object")
    assert cache.get("key") is None
    assert len(list((tmp_path / "user").iterdir())) == 1, "no temporary file is left"
    shutil.rmtree(tmp_path / "user")
    cache.put("key", b"object")
    assert cache.get("first") is None


def test_many_threads(tmp_path: Path) -> None:
    store = Cache(tmp_path, limit=20_000)

    def use(i: int) -> bool:
        key, content = f"key{i % 40}", f"{i % 40}".encode() * 300
        store.put(key, content)
        return store.get(key) in (content, None)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(400)))
    files = [path for path in tmp_path.iterdir() if path.name != ".lock"]
    assert 0 < sum(path.stat().st_size for path in files) <= 20_000
