"""What the front end accepts, as numbers, and what it leaves out of each operator, in words that `convc ops` prints."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.defs

OPSETS = (7, int(onnx.defs.onnx_opset_version()))
IR_VERSIONS = (3, int(onnx.IR_VERSION))

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit
MAX_CONSTANT_BYTES = 2**32
MAX_ELEMENTS = 2**31 - 1  # kernels index with int32
MAX_RANK = 32
MAX_SUBGRAPH_DEPTH = 8
MAX_TABLE = 2**26  # elements of a constant that is made from extents and not from data in the model
MAX_FOLDED_BYTES = 2**22  # of one node: shape arithmetic and small tables, weights are the passes' business
MAX_FOLDING_BYTES = 2**28  # of all nodes together

# float16 is here only at the graph's inputs and outputs: in between it is computed in float32.
COMPUTED = ("float32", "int64", "int32", "int8", "uint8", "bool")

INDICES = "its second output, the indices, is not computed"
CONSTANT = "must be known when compiling"

LIMITATIONS: Mapping[str, str] = {
    "": "tensors are " + ", ".join(COMPUTED) + "; float16 is computed in float32; no empty tensors but constants",
    "AveragePool": "1 to 3 spatial axes, padding smaller than the window",
    "BatchNormalization": "inference only",
    "Cast": "float16 is held as float32, so a cast to float16 does not round; no strings, 4-bit or 8-bit floats",
    "CastLike": "as Cast",
    "Constant": "no strings, no sparse tensors",
    "ConstantOfShape": f"the shape {CONSTANT}",
    "Conv": "1 to 3 spatial axes",
    "ConvInteger": "1 to 3 spatial axes; sums must fit int32",
    "ConvTranspose": "1 to 3 spatial axes",
    "DequantizeLinear": f"from 4- and 8-bit and 32-bit integers to float; scale and zero point {CONSTANT}",
    "Dropout": "inference only",
    "Equal": "no strings",
    "Expand": f"the shape {CONSTANT}",
    "Identity": "tensors only",
    "LpPool": "1 to 3 spatial axes, padding smaller than the window",
    "MatMulInteger": "sums must fit int32",
    "MaxPool": "1 to 3 spatial axes, padding smaller than the window; " + INDICES,
    "NonZero": f"the input {CONSTANT}",
    "Pad": f"pads, value and axes {CONSTANT}",
    "QLinearConv": f"1 to 3 spatial axes; scales and zero points {CONSTANT}; sums must fit int32",
    "QLinearMatMul": f"8-bit; scales and zero points {CONSTANT}; sums must fit int32",
    "QuantizeLinear": f"to 8-bit integers; scale and zero point {CONSTANT}",
    "Range": f"its inputs {CONSTANT}",
    "Reshape": f"the shape {CONSTANT}",
    "Resize": f"scales, sizes and roi {CONSTANT}; no tf_half_pixel_for_nn",
    "Slice": f"starts, ends, axes and steps {CONSTANT}",
    "Split": f"the sizes {CONSTANT}",
    "Squeeze": f"the axes {CONSTANT}",
    "Tile": f"the repeats {CONSTANT}",
    "Unsqueeze": f"the axes {CONSTANT}",
    "Upsample": f"the scales {CONSTANT}",
}
