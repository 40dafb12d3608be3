"""Arrays in and out of files, and made up."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from convc.errors import BadInputError

if TYPE_CHECKING:
    from convc.ir import Array, TensorType

BYTES_BEYOND = 1 << 20  # what an archive may hold beside the arrays that are asked for


def inputs_for(
    types: Mapping[str, TensorType], *, path: Path | None = None, fill: str | None = None, seed: int = 0
) -> dict[str, Array]:
    """An array for each of `types`: from the archive at `path`, or random (the default), or zeros."""
    if path is not None:
        return read_arrays(path, types)
    import numpy as np

    if fill == "zeros":
        return {name: np.zeros(type_.shape, type_.dtype) for name, type_ in types.items()}
    random = np.random.default_rng(seed)
    return {name: random_array(type_, random) for name, type_ in types.items()}


def random_array(type_: TensorType, random: object) -> Array:
    """Standard normal; the whole range of 8-bit integers; 0 and 1 for wider ones, which are mostly indices."""
    import numpy as np

    assert isinstance(random, np.random.Generator)
    dtype = np.dtype(type_.dtype)
    if dtype.kind in "iu" and dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, type_.shape, dtype, endpoint=True)
    if dtype.kind in "iub":
        return random.integers(0, 2, type_.shape).astype(dtype)
    return random.standard_normal(type_.shape).astype(dtype)


def read_arrays(path: Path, types: Mapping[str, TensorType]) -> dict[str, Array]:
    """The arrays of an .npz by input name; the only array of an archive goes to the only input, whatever its name.

    Raises BadInputError where names, shapes or dtypes differ from `types`.
    """
    import numpy as np

    _check_archive(path, most=sum(type_.bytes for type_ in types.values()) + BYTES_BEYOND)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadInputError(f"{path}: not an archive of arrays as numpy.savez writes ({error})") from error
    if len(found) == len(types) == 1:
        found = dict(zip(types, found.values(), strict=True))
    _check_arrays(path, found, types)
    return {name: np.ascontiguousarray(found[name]) for name in types}


def _check_archive(path: Path, *, most: int) -> None:
    """Refuse what would unpack to far more than the inputs need."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise BadInputError(f"{path}: not an .npz archive, as numpy.savez writes") from error
    if size > most:
        raise BadInputError(f"{path}: holds {size} bytes, the inputs of the network are at most {most}")


def _check_arrays(path: Path, found: Mapping[str, Array], types: Mapping[str, TensorType]) -> None:
    wanted = ", ".join(f"{name!a} {type_}" for name, type_ in types.items())
    if set(found) != set(types):
        given = ", ".join(ascii(name) for name in sorted(found)) or "nothing"
        raise BadInputError(f"{path}: holds {given}; the inputs are {wanted}")
    for name, type_ in types.items():
        array = found[name]
        if tuple(array.shape) != type_.shape or array.dtype.name != type_.dtype:
            shape = "x".join(map(str, array.shape))
            raise BadInputError(f"{path}: {name!a} is {array.dtype.name}[{shape}], the network takes {type_}")


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """An .npz; what was under `path` stays until all is written."""
    import numpy as np

    from convc.runtime.artifact import write_atomically

    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **dict(arrays))
    write_atomically(path, file.getvalue())
