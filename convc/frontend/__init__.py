"""From files to graphs."""

from convc.frontend.onnx import Failure, UnsupportedModelError, import_onnx
from convc.frontend.operators import OperatorRow, operators
from convc.frontend.shapes import OpenBatchWarning
from convc.frontend.summary import ModelSummary, summary

__all__ = [
    "Failure", "ModelSummary", "OpenBatchWarning", "OperatorRow", "UnsupportedModelError", "import_onnx", "operators",
    "summary",
]  # fmt: skip
