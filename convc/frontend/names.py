"""Names from a model as text for people: escaped, shortened, and in front of the reason of an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from convc.errors import BadInputError, UnsupportedError

LONGEST = 80
LONGEST_REASON = 600


def shown(name: str) -> str:
    """`name` in printable ASCII, LONGEST characters at most: it may be a megabyte of terminal escapes."""
    text = name[: LONGEST + 1].encode("unicode_escape").decode("ascii")
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def brief(reason: object) -> str:
    """A reason may print a list from the model; only its beginning is worth reading."""
    text = str(reason)
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def quoted(name: str) -> str:
    return f"'{shown(name)}'"


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` in front of the reason. A ValueError is a rule that the model breaks, an ArithmeticError a number."""
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(f"{where}: {brief(error)}") from error
    except (BadInputError, ValueError, ArithmeticError) as error:
        raise BadInputError(f"{where}: {brief(error)}") from error
