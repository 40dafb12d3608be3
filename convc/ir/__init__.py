"""The intermediate representation: a graph of nodes, one frozen dataclass per operation."""

from convc.ir.conv import Conv, ConvTranspose, MatMul, Pads
from convc.ir.elementwise import Binary, Cast, Unary, Where
from convc.ir.graph import Graph
from convc.ir.movement import Broadcast, Concat, Gather, Pad, Reshape, Slice, Transpose
from convc.ir.node import Array, Const, Input, Node, TensorType
from convc.ir.normalize import LRN, Normalize, Softmax
from convc.ir.reduction import ArgReduce, Pool, Reduce
from convc.ir.resize import Resize

__all__ = [
    "LRN",
    "ArgReduce",
    "Array",
    "Binary",
    "Broadcast",
    "Cast",
    "Concat",
    "Const",
    "Conv",
    "ConvTranspose",
    "Gather",
    "Graph",
    "Input",
    "MatMul",
    "Node",
    "Normalize",
    "Pad",
    "Pads",
    "Pool",
    "Reduce",
    "Reshape",
    "Resize",
    "Slice",
    "Softmax",
    "TensorType",
    "Transpose",
    "Unary",
    "Where",
]
