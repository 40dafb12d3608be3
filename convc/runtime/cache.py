"""Compiled objects by content: building the same kernel again reads a file. Safe to delete at any time.

The folder is CONVC_CACHE_DIR, else the user's cache folder. Nothing that goes wrong here fails a build: a full or
read-only disk, a damaged file or another process only cost the time to compile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

LIMIT = 2 << 30
DIGEST = hashlib.sha256().digest_size
SUFFIX = ".obj"


@dataclass
class Cache:
    """Files of at most `limit` bytes in `folder`; the least recently used go first.

    A file is named by the hash of its key and holds the hash of what follows, the key, and the content, so that
    neither damage nor a collision is ever taken for an object.
    """

    folder: Path
    limit: int = LIMIT
    _size: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> bytes | None:
        """The content put under `key`, or None."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, body, prefix = data[:DIGEST], data[DIGEST:], _prefix(key)
        if hashlib.sha256(body).digest() != digest or not body.startswith(prefix):
            self._drop(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # its modification time is its last use
        return body[len(prefix) :]

    def put(self, key: str, content: bytes) -> None:
        """Keep `content` under `key`, if the disk permits."""
        body = _prefix(key) + content
        data = hashlib.sha256(body).digest() + body
        if len(data) > self.limit:
            return
        try:
            self._write(self._path(key), data)
        except OSError:
            return
        with self._lock:
            self._size = self._measure() if self._size is None else self._size + len(data)
            if self._size > self.limit:
                self._evict()

    def _path(self, key: str) -> Path:
        return self.folder / (hashlib.sha256(key.encode()).hexdigest() + SUFFIX)

    def _write(self, path: Path, data: bytes) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix="new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError:
            self._drop(Path(temporary))
            raise

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every file, oldest first."""
        found = []
        for path in self.folder.iterdir():
            try:
                status = path.stat()
            except OSError:  # another process has just evicted it
                continue
            found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _measure(self) -> int:
        try:
            return sum(size for _, size, _ in self._files())
        except OSError:
            return 0

    def _evict(self) -> None:
        """Drop the least recently used until three quarters of the limit are left; one process at a time."""
        from filelock import FileLock, Timeout  # noqa: PLC0415  only a full cache needs it

        try:
            with FileLock(self.folder / ".lock", timeout=0):
                files = [row for row in self._files() if row[2].name != ".lock"]
                total = sum(size for _, size, _ in files)
                for _, size, path in files:
                    if total <= self.limit * 3 // 4:
                        break
                    self._drop(path)
                    total -= size
                self._size = total
        except (Timeout, OSError):
            self._size = None  # someone else is at it: count again next time

    def _drop(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def get(key: str) -> bytes | None:
    """The content put under `key` in the user's cache, or None."""
    found = open_cache(cache_folder())
    return found.get(key) if found else None


def put(key: str, content: bytes) -> None:
    """Keep `content` under `key` in the user's cache."""
    found = open_cache(cache_folder())
    if found:
        found.put(key, content)


def cache_folder() -> Path:
    if given := os.environ.get("CONVC_CACHE_DIR"):
        return Path(given)
    from platformdirs import user_cache_dir  # noqa: PLC0415  loading an artifact does without

    return Path(user_cache_dir("convc")) / "objects"


@cache
def open_cache(folder: Path) -> Cache | None:
    """The cache in `folder`, made with mode 0700; None, with a warning, where it is not only ours to write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        warnings.warn(f"no cache of compiled objects: '{folder}' cannot be used ({error.strerror})", stacklevel=2)
        return None
    if reason := _untrusted(status):
        warnings.warn(f"no cache of compiled objects: '{folder}' {reason}; `chmod 700` it or set CONVC_CACHE_DIR",
                      stacklevel=2)
        return None
    return Cache(folder)


def _untrusted(status: os.stat_result) -> str | None:
    """Why others could put code there, or None."""
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    if stat.S_IMODE(status.st_mode) & 0o022:
        return "can be written by others"
    return None


def _prefix(key: str) -> bytes:
    text = key.encode()
    return len(text).to_bytes(8, "little") + text
