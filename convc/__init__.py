"""convc: an ahead-of-time tensor compiler for convolutional networks.

`compile` makes an artifact of an ONNX model, `load` runs one. Both import what they need when they are called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convc.pipeline import compile
    from convc.problem import Problem
    from convc.runtime.loader import load

__version__ = "0.1.0"
__all__ = ["Problem", "compile", "load"]

_HOMES = {"compile": "convc.pipeline", "load": "convc.runtime.loader", "Problem": "convc.problem"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convc' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
