"""The command line: `main`, and one file per verb. What is heavy is imported when a verb runs, not before."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from convc.cli.failure import report

VERBS = (
    "compile", "tune", "run", "bench", "verify", "profile", "explain", "check", "inspect", "points", "records", "ops",
    "targets", "doctor",
)  # fmt: skip
PACKAGE = Path(__file__).parent.parent
HELP = """\b
$ convc compile model.onnx -o model.convc
$ convc run model.convc --fill random --outputs out.npz
$ convc bench model.convc --model model.onnx --vs ort

convc compiles convolutional networks from ONNX to artifacts that run without a framework.
`convc VERB --help` tells more.

Exit codes: 0 ok, 1 internal error, 2 usage, 3 bad input, 4 unsupported, 5 missing dependency, 6 target mismatch,
7 verify failed, 8 speed gate failed, 9 untuned, 10 tune failed, 11 budget cannot be met, 12 bad artifact,
130 interrupted."""


class Verbs(click.Group):
    """Imports a verb's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        found: click.Command = importlib.import_module(f"convc.cli.{cmd_name}").command
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"'{args[0]}' is no verb of convc; there are {', '.join(VERBS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(None, "-V", "--version", package_name="convc", message="convc %(version)s")
def verbs() -> None:
    pass


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line on `args` (default: the process's own) and return its exit code."""
    argv = list(sys.argv[1:] if args is None else args)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = verbs.main(argv, prog_name="convc", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # the boundary: whatever happens is told to a person
        return report(error, argv)
    return code if isinstance(code, int) else 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, *_more: object, **_rest: object
) -> None:
    """Only what convc itself has to say; warnings of libraries are for their developers."""
    if category.__module__.startswith("convc") or Path(filename).is_relative_to(PACKAGE):
        click.echo(f"note: {message}", err=True)
