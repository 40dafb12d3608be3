"""Is the artifact file what it promises: the same bytes each time, readable by common tools, refused when damaged?"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from convc.errors import (
    BadArtifactError,
    BadInputError,
    ConvcError,
    MissingDependencyError,
    TargetMismatchError,
    UsageError,
)
from convc.ir import Const
from convc.runtime import artifact as artifact_file
from convc.runtime import container, features, glue, host, link, loader, package
from convc.runtime.artifact import GOLDEN, HEADER, LIBRARY, MANIFEST, WEIGHTS, Artifact
from convc.runtime.loader import load
from convc.runtime.memory import address
from convc.runtime.weights import safetensors as weights_file

HOSTILE = '*/ #include "/etc/passwd" /* ??/ \\\n"); system("touch pwned"); // %s ../../x \u202e'


def test_the_same_bytes_every_time() -> None:
    again = handmade.artifact.__wrapped__()
    assert again.to_bytes() == handmade.artifact().to_bytes()
    assert again.to_bytes() != handmade.artifact(seed=2).to_bytes()


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.convc"
    made = handmade.artifact()
    made.save(path)
    opened = Artifact.open(path)
    assert {name: bytes(data) for name, data in opened.entries.items()} == made.entries
    assert opened.to_bytes() == path.read_bytes()
    assert opened.inputs[0].name == "x" and opened.outputs[0].type.shape == handmade.SHAPE
    assert np.frombuffer(opened.weights, np.uint8).ctypes.data % 64 == 0


def test_common_zip_tools_read_it() -> None:
    data = handmade.artifact().to_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        assert file.namelist() == [MANIFEST, LIBRARY, HEADER, WEIGHTS, GOLDEN]
        for info in file.infolist():
            assert info.compress_type == zipfile.ZIP_STORED and info.date_time == (1980, 1, 1, 0, 0, 0)
            assert data.index(file.read(info)) % 64 == 0


@given(st.dictionaries(st.from_regex(r"\A[a-z]{1,9}(/[a-z]{1,9})?\.x\Z"), st.binary(max_size=200), max_size=5))
def test_container_round_trip(entries: Mapping[str, bytes]) -> None:
    data = container.pack(entries)
    assert container.unpack(data, "x") == entries
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert {name: file.read(name) for name in file.namelist()} == entries and file.testzip() is None


def test_manifest_says_what_was_built() -> None:
    manifest = handmade.artifact().manifest
    assert manifest["memory"] == {"weights": 88, "packed": 88, "arena": 1664, "scratch_per_thread": 192}
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": list(handmade.SHAPE)}]
    assert manifest["golden"] == {"seed": 0, "source": "run"}
    first, second = manifest["calls"]
    assert first["symbol"] == "k_scale" and first["reads"] == ["plain", "plain"]
    place = {"space": "arena", "at": 64}
    assert first["result"] == {"dtype": "float32", "shape": list(handmade.SHAPE), "block": 4, **place}
    assert second["origin"] == ["second", "third"] and second["args"][1] == {"space": "weights", "at": 64}


def test_weights_are_real_safetensors() -> None:
    file = bytes(handmade.artifact().entries[WEIGHTS])
    found = safetensors.numpy.load(file)
    w, b = handmade.weights(1)
    assert np.array_equal(found["w"], w) and np.array_equal(found["b"], b)
    offset = handmade.artifact().manifest["weights"]["offset"]
    assert offset % 64 == 0 and file[offset : offset + w.nbytes] == w.tobytes()
    assert file[offset + 64 :] == b.tobytes()


def test_weights_of_every_dtype_and_name() -> None:
    values = [np.ones(3, dtype) for dtype in ("float16", "int8", "uint8", "bool", "int64")]
    values += [np.zeros((0, 2), np.float32), np.array(2.5)]
    names = ["__metadata__", "", "a", "a", "filler_3", "b", "c"]
    rows = [(name, 64 * i, Const(value)) for i, (name, value) in enumerate(zip(names, values, strict=True))]
    file, start = weights_file(replace(handmade.plan(), weights=tuple(rows), weight_bytes=64 * 7))
    found = safetensors.numpy.load(bytes(file))
    kept = [found[key] for key in ("__metadata__.1", "unnamed", "a", "a.1", "filler_3", "b", "c")]
    assert all(np.array_equal(one, two) for one, two in zip(kept, values, strict=True))
    assert start % 64 == 0 and len(file) == start + 64 * 7


def test_weights_are_read_where_they_lie() -> None:
    artifact = handmade.artifact()
    data = np.frombuffer(artifact.weights, np.uint8)
    assert address(data) % 64 == 0 and not data.flags.writeable
    assert np.shares_memory(load(artifact).side.weights, data)


def test_golden_holds_without_pickle() -> None:
    with np.load(io.BytesIO(handmade.artifact().entries[GOLDEN]), allow_pickle=False) as file:
        x, z = file["input_0"], file["output_0"]
    w, b = handmade.weights(1)
    assert np.array_equal(z, np.maximum(x * w + b, 0)) and np.unique(x).size > 250


def test_golden_of_another_machine_comes_from_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "runs_here", lambda _: False)
    made = handmade.artifact.__wrapped__()
    assert made.manifest["golden"]["source"] == "reference"
    assert made.entries[GOLDEN] == handmade.artifact().entries[GOLDEN]


def never_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("code was mapped")

    monkeypatch.setattr(host, "Library", refuse)


def refused(data: bytes) -> bool:
    try:
        Artifact.from_bytes(data)
    except BadArtifactError:
        return True
    return False


def test_every_flipped_byte_is_found() -> None:
    data = bytearray(handmade.artifact().to_bytes())
    library = data.index(b"\x7fELF")
    spans = [range(library), range(library, len(data) - 10_000, 11), range(len(data) - 10_000, len(data))]
    for at in (at for span in spans for at in span):
        data[at] ^= 1 << at % 8
        assert refused(bytes(data)), f"byte {at}"
        data[at] ^= 1 << at % 8
    assert not refused(bytes(data))


def test_every_truncation_and_addition_is_found() -> None:
    data = handmade.artifact().to_bytes()
    for length in [*range(0, len(data), 101), len(data) - 1]:
        assert refused(data[:length]), f"length {length}"
    assert refused(data + b"\0") and refused(b"\0" + data) and refused(data + data)


def entries() -> dict[str, bytes]:
    return {name: bytes(data) for name, data in handmade.artifact().entries.items()}


def with_manifest(change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    made = entries()
    manifest = json.loads(made[MANIFEST])
    change(manifest)
    return {**made, MANIFEST: json.dumps(manifest).encode()}


def listed(manifest: dict[str, Any], name: str) -> None:
    manifest["entries"][name] = {"bytes": 0, "sha256": artifact_file._sha256(b"")}


EMPTY: dict[str, bytes] = {"../x.so": b""}
DAMAGED: list[tuple[dict[str, bytes], str]] = [
    ({**entries(), LIBRARY: bytes(handmade.artifact(seed=2, name="other").entries[LIBRARY])}, "'lib/model.so' has not"),
    ({**entries(), "extra.bin": b"x"}, "other entries"),
    ({name: data for name, data in entries().items() if name != GOLDEN}, "other entries"),
    (dict(reversed(entries().items())), "first entry"),
    ({}, "first entry"),
    ({**with_manifest(lambda m: listed(m, "../x.so")), **EMPTY}, "'../x.so' is not one"),
    ({**entries(), MANIFEST: b"{"}, "manifest cannot be read"),
    ({**entries(), MANIFEST: b"[" * 100_000}, "manifest cannot be read"),
    (with_manifest(lambda m: m.update(schema=1)), "has schema 1, this convc reads 2"),
    (with_manifest(lambda m: m.pop("inputs")), "'inputs'"),
    (with_manifest(lambda m: m["inputs"][0].update(shape=[1 << 62, 1 << 62])), "the shape"),
    (with_manifest(lambda m: m["inputs"][0].update(shape=[-1])), "the shape"),
    (with_manifest(lambda m: m["inputs"][0].update(dtype="no")), "manifest lacks or misstates"),
    (with_manifest(lambda m: m["weights"].update(offset=-64)), "offset of the weights"),
    (with_manifest(lambda m: m["target"].update(features=[1])), "the target"),
]


@pytest.mark.parametrize(("made", "text"), DAMAGED)
def test_wrong_artifacts_are_named_before_code_is_mapped(
    made: dict[str, bytes], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_maps(monkeypatch)
    path = tmp_path / "x.convc"
    path.write_bytes(container.pack(made))
    with pytest.raises(BadArtifactError, match=re.escape(text)):
        loader.load(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.convc"
    with pytest.raises(BadInputError, match="cannot be read: No such file"):
        Artifact.open(path)
    for content, text in [(b"", "is empty"), (b"x" * 10, "is no artifact"), (b"x" * 99, "does not end as one")]:
        path.write_bytes(content)
        with pytest.raises(BadArtifactError, match=text):
            Artifact.open(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(MANIFEST, "{}")
    with pytest.raises(BadArtifactError, match="does not fit its contents"):
        Artifact.open(path)


def test_an_artifact_for_another_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.convc"
    handmade.artifact(features=("sse4.2", "avx512vnni", "neon")).save(path)
    never_maps(monkeypatch)
    monkeypatch.setattr(features, "host_features", lambda: frozenset({"asimd", "sse4_2"}))
    with pytest.raises(TargetMismatchError, match=r"cpu/generic and needs a CPU with avx512_vnni; .*--target native"):
        loader.load(path)
    monkeypatch.setattr(features, "host_machine", lambda: "riscv64")
    with pytest.raises(TargetMismatchError, match=r"a machine of type .*; this one is riscv64"):
        loader.load(path)


def test_hostile_names_reach_no_code(tmp_path: Path) -> None:
    made = handmade.artifact(label=HOSTILE, name="model")
    made.extract(tmp_path)
    header = tmp_path / HEADER
    text = header.read_text()
    assert text.isascii() and HOSTILE not in text
    source = tmp_path / "name.c"
    source.write_text('#include <stdio.h>\n#include "model.h"\nint main(void) { fputs(MODEL_INPUT_0_NAME, stdout); }\n')
    flags = ["-std=c99", "-trigraphs", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{header.parent}"]
    subprocess.run(["cc", *flags, str(source), "-o", str(tmp_path / "name")], check=True)
    shown = subprocess.run([str(tmp_path / "name")], check=True, capture_output=True, cwd=tmp_path).stdout
    assert shown.decode() == HOSTILE and not (tmp_path / "pwned").exists()
    x, z = handmade.example()
    assert np.array_equal(loader.load(made).run({HOSTILE: x})["z"], z)


def test_prefix_must_be_an_identifier() -> None:
    with pytest.raises(UsageError, match="'a-b' cannot be the prefix of C functions; 'a_b' can"):
        handmade.artifact(name="a-b")
    words = ["ResNet 50.onnx", "3x3", "", "int", "x" * 99, "ß"]
    assert [glue.identifier(w) for w in words] == ["resnet_50_onnx", "model_3x3", "model", "int", "x" * 40, "model"]
    assert all(glue.identifier(glue.identifier(w)) == glue.identifier(w) for w in words)


def test_library_shows_its_functions_and_needs_only_libc(tmp_path: Path) -> None:
    handmade.artifact().extract(tmp_path)
    library = str(tmp_path / LIBRARY)
    shown = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    assert sorted(line.split()[-1] for line in shown.splitlines()) == sorted(f"tiny_{name}" for name in glue.ABI)
    dynamic = subprocess.run(["readelf", "-dS", library], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[([\w-]+)\.so", dynamic))
    assert {name for name in needed if not name.startswith("ld-linux")} <= {"libc", "libm", "libpthread"}
    assert "build-id" not in dynamic and "TEXTREL" not in dynamic


def test_save_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.convc"
    path.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            handmade.artifact().save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    handmade.artifact().save(path)
    assert path.read_bytes() == handmade.artifact().to_bytes() and list(tmp_path.iterdir()) == [path]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CONVC_CC", raising=False)
    with pytest.raises(MissingDependencyError, match="found none of cc, gcc, clang; run `apt-get install gcc`"):
        handmade.artifact.__wrapped__()
    foreign = replace(handmade.target(), triple="s390x-unknown-linux-gnu")
    with pytest.raises(MissingDependencyError, match="none of s390x-linux-gnu-gcc; run `apt-get install gcc-s390x"):
        link.find_compiler(foreign)
    monkeypatch.setenv("CONVC_CC", "/nowhere/cc -m64")
    with pytest.raises(MissingDependencyError, match="CONVC_CC is '/nowhere/cc'"):
        handmade.artifact.__wrapped__()
    monkeypatch.setenv("CONVC_CC", f"{sys.executable} -x")
    assert link.find_compiler(foreign) == (sys.executable, "-x")


def test_a_failing_compiler_shows_command_and_reason() -> None:
    made = handmade.plan()
    broken = replace(handmade.objects(made), objects=(b"not an object",))
    with pytest.raises(ConvcError, match=r"(?s)failed with code 1: cc -shared .*k0000\.o"):
        package.package(broken, made, handmade.target(), b"model")
