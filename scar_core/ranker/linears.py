"""The encoder's linear layers: which library multiplies the matrices, and in which precision.

In bf16 only the products are in bfloat16: what a layer returns is bfloat16, and an encoder that
adds it to its fp32 residual is back in fp32, for the LayerNorm too.

Measured, one thread, 1,024 tokens, widths 384 to 3,072, GFLOP/s:

                          torch fp32  oneDNN fp32   torch bf16  oneDNN bf16
    AMD Zen 4                     85          103          183          203
    Intel with AMX               171          178        1,130        1,370

So on a CPU with AVX-512 oneDNN is taken without a measurement at start, which would make the
scores' last bits depend on how busy the machine was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from collections.abc import Mapping

Library = Literal["torch", "onednn"]

_HINT_TOKENS = 1024  # oneDNN lays weights out for a number of rows; others run as well


class OneDnnLinear(nn.Module):
    """A linear layer whose weights oneDNN has laid out ahead, for a CPU; returns `dtype`."""

    activation = ("none", "")
    """What is done to a product before it is stored: its name, and how it is computed."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        weight = layer.weight.detach().to(dtype)
        # The operators that torch's own compiler emits for a frozen linear layer. The public
        # to_mkldnn copies input and output: slower than plain torch on the Intel above.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _HINT_TOKENS)  # noqa: SLF001
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as the layer did."""
        name, algorithm = self.activation
        y: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            x.to(self.dtype), self.weight, self.bias, name, [], algorithm
        )
        return y


class OneDnnLinearGelu(OneDnnLinear):
    """The same and a GELU in one go: a fifth less time than both for 384 wide texts in fp32."""

    activation = ("gelu", "none")  # "none": by the error function, not by tanh


class TorchLinear(nn.Module):
    """A linear layer in torch's own kernels, on any device; returns `dtype`."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as the layer did."""
        return linear(x.to(self.dtype), self.weight, self.bias)


def fastest_library(device: torch.device) -> Library:
    """Give the faster one for this kind of processor, the same each time."""
    built_in: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "onednn" if built_in and device.type == "cpu" and cpu_has("avx512_f") else "torch"


def bf16_is_native(device: torch.device) -> bool:
    """Tell whether this device multiplies bfloat16 in hardware; else fp32 is faster and better."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return cpu_has("avx512_bf16") or cpu_has("amx_bf16") or cpu_has("bf16")


def cpu_has(feature: str) -> bool:
    """Tell whether torch sees this feature in the CPU, by torch's name for it."""
    capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    return bool(capabilities.get(feature))


def use_linears(encoder: nn.Module, *, library: Library, dtype: torch.dtype) -> None:
    """Replace the linear layers of the encoder's blocks, which are those inside a ModuleList.

    A projection of the embeddings and the pooler stay as they are: they are little work, and the
    residual must start in fp32.
    """
    kind = OneDnnLinear if library == "onednn" else TorchLinear
    blocks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    for module in [inner for block in blocks for inner in block.modules()]:
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            if library == "onednn" and name == "dense" and _ends_in_gelu(module):
                module.dense = OneDnnLinearGelu(child, dtype)
                module.intermediate_act_fn = nn.Identity()
            else:
                setattr(module, name, kind(child, dtype))


def _ends_in_gelu(module: nn.Module) -> bool:
    """Tell whether a block is BERT's widening layer, which its relatives share."""
    activation = getattr(module, "intermediate_act_fn", None)
    return type(activation).__name__ == "GELUActivation" and isinstance(activation, nn.Module)
