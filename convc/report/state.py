"""Where convc keeps what it measured of this machine, and the tracebacks of its bugs. Safe to delete."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def state_dir() -> Path:
    """~/.local/state/convc, or where XDG_STATE_HOME says; it need not exist."""
    return Path(platformdirs.user_state_dir("convc", appauthor=False))
