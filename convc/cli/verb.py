"""What makes a function a verb: its examples first in the help, --json, and a console to write to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import click

from convc.cli.console import Console


def verb(*examples: str, summary: str) -> Callable[[Callable[..., None]], click.Command]:
    """The command of a verb's file. The function gets a Console, then its parameters by name; its docstring is the
    help below the examples, `summary` the line in `convc --help`."""

    def wrap(function: Callable[..., None]) -> click.Command:
        name = function.__module__.rpartition(".")[2]

        def invoke(*, as_json: bool, **given: Any) -> None:
            function(Console(name, as_json), **given)

        invoke.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        lines = "\n".join(f"$ {example}" for example in examples)
        text = f"\b\n{lines}\n\n{inspect.cleandoc(function.__doc__ or summary)}"
        json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
        return click.command(name, help=text, short_help=summary)(json_option(invoke))

    return wrap
