"""Import and export of networks: PyTorch, scikit-learn, ONNX and StableHLO.

Weights are copied, never shared. An import is compared with the original on random inputs, and an error is raised if
they differ. A network that the other library does not have cannot be exported; the error names the part.
"""

from funcnet.exchange.from_onnx import from_onnx
from funcnet.exchange.onnx import to_onnx
from funcnet.exchange.sklearn import from_sklearn, to_sklearn
from funcnet.exchange.stablehlo import to_stablehlo
from funcnet.exchange.torch import from_torch, to_torch

__all__ = ["from_onnx", "from_sklearn", "from_torch", "to_onnx", "to_sklearn", "to_stablehlo", "to_torch"]
