"""What every test shares: the tools folder on the path, silent oracles, and no records but those it makes itself."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ["CONVC_TUNING_LOGS"] = os.environ["CONVC_RECORDS"] = tempfile.mkdtemp(prefix="no-records-")
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
