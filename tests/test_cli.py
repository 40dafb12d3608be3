"""What does a user read? Help, messages, exit codes, and the values of flags."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
from cli_calls import complaint, document, isolate, network, told

from convc.cli import VERBS, main
from convc.cli.failure import KINDS, failure_of
from convc.cli.options import Fraction, Shape, Size
from convc.errors import BadInputError, BudgetError, ConvcError, MissingDependencyError, VerifyError

HEAVY = ("tvm", "tvm_ffi", "onnx", "numpy", "rich", "networkx", "scipy", "torch", "onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.mark.parametrize("code", ["import convc", "from convc.cli import main; main(['--help'])"])
def test_what_is_heavy_is_not_imported(code: str) -> None:
    line = f"import sys; {code}; print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        told(capsys, "--help")
        == """\
Usage: convc [OPTIONS] COMMAND [ARGS]...

  $ convc compile model.onnx -o model.convc
  $ convc run model.convc --fill random --outputs out.npz
  $ convc bench model.convc --model model.onnx --vs ort

  convc compiles convolutional networks from ONNX to artifacts that run without a framework.
  `convc VERB --help` tells more.

  Exit codes: 0 ok, 1 internal error, 2 usage, 3 bad input, 4 unsupported, 5 missing dependency, 6
  target mismatch, 7 verify failed, 8 speed gate failed, 9 untuned, 10 tune failed, 11 budget
  cannot be met, 12 bad artifact, 130 interrupted.

Options:
  -V, --version  Show the version and exit.
  -h, --help     Show this message and exit.

Commands:
  compile  ONNX model to artifact.
  tune     Measure and record the best configs.
  run      One inference, arrays from and to .npz.
  bench    Speed, side by side with other runtimes.
  verify   Results against a reference.
  profile  Time of every kernel.
  explain  Why a layer got its algorithm.
  check    Whether a model compiles, without compiling it.
  inspect  What a model or an artifact holds.
  points   Points of a Winograd F(m, r), and their accuracy.
  records  Tuning logs: merge, count, clean, compare.
  ops      The ONNX operators that convc compiles, with limits.
  targets  What --target takes.
  doctor   Check this machine.
"""
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_starts_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    usage, _, first, *rest = told(capsys, verb, "--help").splitlines()
    assert usage.startswith(f"Usage: convc {verb} ")
    assert first.startswith("  $ convc ")
    assert any(line.startswith("  --json ") for line in rest)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"convc \d+\.\d+\.\d+\n", told(capsys, "--version"))


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("frob x", 2, f"convc: 'frob' is no verb of convc; there are {', '.join(VERBS)}; see `convc --help`"),
        ("ops --loud", 2, "convc: No such option '--loud'; see `convc ops --help`"),
        ("run", 2, "convc: Missing argument 'X.convc'; see `convc run --help`"),
        ("run no.convc --fill random", 3, "convc: 'no.convc' cannot be read: No such file or directory"),
        ("run no.convc", 2, "convc: run needs its inputs: either --inputs in.npz or --fill random|zeros"),
        ("compile no.onnx -o x.convc", 3, "convc: {cwd}/no.onnx: cannot be read (No such file or directory)"),
        (
            "compile no.onnx",
            2,
            "convc: compile needs the artifact to write: -o OUT.convc (or --stop-after STAGE)",
        ),
        (
            "compile no.onnx -o x.convc --memory-budget much",
            2,
            "convc: Invalid value for '--memory-budget': 'much' is no size, as 64MiB or 65536 is; "
            "see `convc compile --help`",
        ),
        (
            "compile no.onnx -o x.convc --target cpu/znver33",
            2,
            "convc: target 'cpu/znver33': LLVM knows no CPU 'znver33' for x86_64-unknown-linux-gnu; "
            "did you mean znver3 or znver5 or znver4?",
        ),
        ("inspect no.onnx", 3, "convc: no.onnx: no such file"),
        (
            "explain kh3",
            2,
            "convc: 'kh3' is neither a file nor a problem: 'kh3' lacks ic and oc",
        ),
        ("bench ic4oc4 --shape x:1", 2, "convc: --shape applies to models only"),
        (
            "bench ic4oc4 --vs tflite",
            2,
            "convc: Invalid value for '--vs': 'tflite' is none of ort, openvino, torch; see `convc bench --help`",
        ),
        ("bench ic4oc4 --assert no.json", 3, "convc: no.json: no such file or directory"),
        ("verify no.convc", 2, "convc: Missing option '--model'; see `convc verify --help`"),
    ],
)
def test_messages(argv: str, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = complaint(capsys, *argv.split(), code=code)
    assert found == message.replace("{cwd}", str(Path.cwd()))


def test_a_message_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "inspect", "no.onnx", code=3)
    assert found["error"] == {"code": 3, "kind": "bad-input", "message": "no.onnx: no such file"}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BudgetError("needs 5 MiB"), 11, "needs 5 MiB"),
        (VerifyError("off"), 7, "off"),
        (ConvcError("odd"), 1, "odd"),
        (MissingDependencyError("run `pip install x`"), 5, "run `pip install x`"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (MemoryError(), 11, "out of memory"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.npz"), 3, "a.npz: no such file"),
        (OSError(errno.ENOSPC, "No space left on device", "out.npz"), 3, "out.npz: no space left on device"),
        (ModuleNotFoundError("no", name="tvm.te"), 5, "`pip install apache-tvm==0.27.0.post1`"),
        (ModuleNotFoundError("no", name="convc.gone"), 1, "internal error"),
        (RecursionError("maximum depth"), 1, "the model nests deeper than convc can follow"),
        (ValueError("first line\nsecond"), 1, "internal error: ValueError: first line. This is a bug in convc."),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: str) -> None:
    failure = failure_of(error)
    assert failure.code == code and words in failure.message
    assert failure.kind == KINDS[code]


def test_a_bug_saves_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("convc.frontend.operators", fail)
    message = complaint(capsys, "ops", code=1)
    assert message.startswith("convc: internal error: ZeroDivisionError: a bug. This is a bug in convc.")
    (saved,) = tmp_path.rglob("convc-*.txt")
    assert str(saved) in message
    assert "convc ops" in saved.read_text() and "ZeroDivisionError" in saved.read_text()


def test_a_bug_without_a_place_for_its_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    monkeypatch.setattr("convc.frontend.operators", lambda: 1 // 0)
    assert main(["ops"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_message_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" not in complaint(capsys, "inspect", "a\x1b[2J.onnx", code=3)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    onnx_file = tmp_path / "net.onnx"
    onnx_file.write_bytes(network().SerializeToString())
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "convc.cli", "inspect", str(onnx_file)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "convc: no space left on device\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    line = f"set -o pipefail; {sys.executable} -m convc.cli ops --json | head -c 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{", "")
    assert done.returncode in (0, 1, 141)


def test_warnings_become_notes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class OurWarning(UserWarning):
        pass

    OurWarning.__module__ = "convc.frontend"

    def warn() -> list[Any]:
        warnings.warn(OurWarning("take care"), stacklevel=1)
        warnings.warn("from a library", stacklevel=1)
        raise BadInputError("so")

    monkeypatch.setattr("convc.frontend.operators", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert complaint(capsys, "ops", code=3) == "note: take care\nconvc: so"


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Size(), "64MiB", 64 << 20),
        (Size(), "1.5 KB", 1500),
        (Size(), "4096", 4096),
        (Shape(), "in:put:0:1x3x8x8", ("in:put:0", (1, 3, 8, 8))),
        (Shape(), "x:5", ("x", (5,))),
        (Fraction(), "5%", 0.05),
        (Fraction(), "0.25", 0.25),
    ],
)
def test_values_of_flags(kind: click.ParamType[Any], text: str, value: object) -> None:
    assert kind.convert(text, None, None) == pytest.approx(value) if isinstance(value, float) else value
    assert kind.convert(value, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [(Size(), "-1"), (Size(), "1 XB"), (Shape(), "1x2"), (Shape(), "x:1x"), (Shape(), ":1"), (Fraction(), "-5%"),
     (Fraction(), "nan")],
)  # fmt: skip
def test_bad_values_of_flags(kind: click.ParamType[Any], text: str) -> None:
    with pytest.raises(click.BadParameter):
        kind.convert(text, None, None)
