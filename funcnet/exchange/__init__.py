"""Networks of other libraries, in and out: PyTorch, scikit-learn, ONNX and StableHLO.

What is exchanged is copied, never shared, and exact or refused: what comes in is compared, on random inputs, with
what it was there, and a network that the other side cannot have is refused by name.
"""

from funcnet.exchange.from_onnx import from_onnx
from funcnet.exchange.onnx import to_onnx
from funcnet.exchange.sklearn import from_sklearn, to_sklearn
from funcnet.exchange.stablehlo import to_stablehlo
from funcnet.exchange.torch import from_torch, to_torch

__all__ = ["from_onnx", "from_sklearn", "from_torch", "to_onnx", "to_sklearn", "to_stablehlo", "to_torch"]
