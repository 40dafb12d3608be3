"""What a user can get wrong, each kind with the exit code the command line promises.

A message is a sentence that says what, where (ONNX node, operator, shapes), why, and what to do.
"""

from __future__ import annotations


class ConvcError(Exception):
    """Anything convc reports to a person. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(ConvcError):
    """A flag, a target or an argument that convc does not know."""

    exit_code = 2


class BadInputError(ConvcError):
    """The file is missing, is not ONNX, or breaks ONNX's own rules."""

    exit_code = 3


class UnsupportedError(ConvcError):
    """Valid, but not something convc compiles. The message lists every failing node."""

    exit_code = 4


class MissingDependencyError(ConvcError):
    """A package or tool is absent. The message holds the line to run."""

    exit_code = 5


class TargetMismatchError(ConvcError):
    """The artifact was built for another machine than this one."""

    exit_code = 6


class VerifyError(ConvcError):
    """A result lies outside its tolerance."""

    exit_code = 7


class SpeedGateError(ConvcError):
    """`bench --assert` found a slowdown."""

    exit_code = 8


class UntunedError(ConvcError):
    """`--require-tuned`, and a problem has no record."""

    exit_code = 9


class TuneError(ConvcError):
    """No candidate of a problem was right."""

    exit_code = 10


class BudgetError(ConvcError):
    """The error or memory budget cannot be met."""

    exit_code = 11


class BadArtifactError(ConvcError):
    """The artifact is damaged or of an unknown schema."""

    exit_code = 12
