"""Linear layers in 8 bits, for a critic on a CPU that has no bf16.

Each row of the weights and each token has a scale of its own, and products are summed as integers (LLM.int8(),
arXiv:2208.07339, section 2.1). Both are rotated before they are rounded, so that no feature is much larger than the
others; the rotation cancels in the product (QuaRot, arXiv:2404.00456, section 3).
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from pipeline.core.errors import ConfigError

WEIGHT_STEPS = 127  # -127 to 127
TOKEN_STEPS = 63  # 7 bits: AVX2 adds two products in 16 bits, and 2 * 127 * 127 is the largest sum that fits
TOKEN_ZERO = 64  # tokens are unsigned: 1 to 127
MOST_ROTATED = 64  # 256 halves the error that is left, and takes a third of the speed in generation
KERNELS = "fbgemm"


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with x and W rotated and rounded.

    Args:
        linear: the layer to round; its weights are (features out, features in).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self._rotation = hadamard(block_size(self.in_features))
        self._packed = _packed(rotated(linear.weight.detach().float(), self._rotation))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, …, features in) to (tokens, …, features out), in fp32."""
        turned = rotated(tokens, self._rotation)
        scales = torch.linalg.vector_norm(turned, ord=torch.inf, dim=-1, keepdim=True)
        scales.clamp_min_(torch.finfo(turned.dtype).tiny)
        products: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            turned.div_(scales), 1 / TOKEN_STEPS, TOKEN_ZERO, self._packed
        )
        products.mul_(scales)
        return products if self.bias is None else products.add_(self.bias)


def block_size(num_features: int) -> int:
    """The largest power of 2 that divides the number of features, at most ``MOST_ROTATED``."""
    return min(num_features & -num_features, MOST_ROTATED)


def hadamard(size: int) -> torch.Tensor:
    """The orthogonal Hadamard matrix, (size, size): its own inverse, and all values are ±size^-½."""
    from scipy.linalg import hadamard as of_ones

    return torch.tensor(of_ones(size), dtype=torch.float32) / size**0.5


def rotated(values: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate each block of the last dimension: (…, features) to the same shape."""
    return (values.unflatten(-1, (-1, len(rotation))) @ rotation).flatten(-2)


def _packed(weights: torch.Tensor) -> torch.ScriptObject:
    """Round each row of the weights (features out, features in) by its largest value, and lay them out for the CPU."""
    scales = (weights.abs().amax(1) / WEIGHT_STEPS).clamp_min(torch.finfo(torch.float32).tiny)
    zeros = torch.zeros(len(weights), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch wants to remove it, and has no other way to these kernels
        rounded = torch.quantize_per_channel(weights, scales.double(), zeros, axis=0, dtype=torch.qint8)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = KERNELS
    try:
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(rounded, None)
        return packed
    finally:
        torch.backends.quantized.engine = before


def check_int8(field: str) -> None:
    """Raises ConfigError where this machine can't compute in 8 bits."""
    if torch.cuda.is_available():
        raise ConfigError(f"{field} is int8, which is for CPUs, and this machine has a GPU: leave {field} out.")
    if KERNELS not in torch.backends.quantized.supported_engines or not hasattr(torch, "quantize_per_channel"):
        raise ConfigError(f"{field} is int8, and torch has no 8-bit kernels for this CPU: leave {field} out.")


def round_to_int8(model: nn.Module) -> None:
    """Replace each linear layer of a model in fp32 by one in 8 bits, in place. Embeddings stay as they are."""
    for name in [name for name, layer in model.named_modules() if type(layer) is nn.Linear]:
        layer = model.get_submodule(name)  # one at a time, so that the memory of each can be used by the next
        assert isinstance(layer, nn.Linear)
        model.set_submodule(name, Int8Linear(layer))
