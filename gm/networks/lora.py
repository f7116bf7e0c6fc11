"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021): W x + (α/r)·B A x, of which only A and B are trained."""

import re
from typing import Dict, List, Optional

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.nn.utils import no_init_parameters

from gm.backend import operators
from gm.errors import UserError
from gm.networks.layers import Linear
from gm.weights.lora_file import is_lora_name
from gm.weights.parameters import set_parameter

FLAG = "--train.lora."
DEFAULT_RANK = 16
# Layers of the UNet by the patterns of their names. Where the context is one token, as SVD's is, the queries and keys
# of the cross-attention (attn2) have no effect on the result, so only its values and its output are adapted.
TARGETS = {
    "temporal": r"\.time_stack\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)$",
    "spatial": r"\.transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)$",
    "all": r"\.(time_stack|transformer_blocks)\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|attn2\.(to_v|to_out\.0))$",
}
EXAMPLES = 3  # names in an error line


class LoRALinear(Linear):
    """A linear layer over another one's own parameters, with a low-rank branch: W x + b + (α/r)·B A x.

    The names of the base (`weight`, `bias`) stay; the branch adds `lora_A.weight` (r, in) and `lora_B.weight` (out, r).

    Args:
        base: the layer whose parameters are taken over.
        rank: r.
        alpha: α.
    """

    def __init__(self, base: Linear, rank: int, alpha: float) -> None:
        with no_init_parameters():
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
            self.lora_A = Linear(base.in_features, rank, bias=False)
            self.lora_B = Linear(rank, base.out_features, bias=False)
        self.weight = base.weight
        if base.bias is not None:
            self.bias = base.bias
        self.alpha, self.scale = alpha, alpha / rank
        for layer in (self, self.lora_A, self.lora_B):
            layer.compute_dtype = base.compute_dtype

    def construct(self, x: Tensor) -> Tensor:
        return super().construct(x) + self.lora_B(self.lora_A(x)) * self.scale

    def gated(self, x: Tensor) -> Tensor:
        hidden, gate = operators.current.halves(self.construct(x), -1)
        return hidden * operators.current.gelu(gate)


def add_lora(
    net: nn.Cell, rank: int = DEFAULT_RANK, alpha: Optional[float] = None, targets: str = "temporal", seed: int = 42
) -> List[str]:
    """Gives the chosen linear layers a low-rank branch that starts at zero, and freezes all other parameters.

    A is uniform in ±1/√in, B is zero, so the network's result is unchanged at first. Call it once, after the network's
    weights were loaded, before it is compiled and before an optimizer is made.

    Args:
        rank: r, 1 or more.
        alpha: α, above 0; by default r, so that the branch counts once.
        targets: `temporal`, `spatial` or `all` (attention layers), or a regular expression that is searched for in the
            names of the linear layers, such as `time_stack.*(to_q|to_v)$`.
        seed: of A.

    Returns:
        The names of the adapted layers.

    Raises:
        UserError: no regular expression, or no linear layer with such a name.
    """
    alpha = float(rank) if alpha is None else alpha
    names = matching_layers(net, targets)
    rng = np.random.default_rng(seed)
    for parameter in net.get_parameters():
        parameter.requires_grad = False
    for name in names:
        layer = LoRALinear(net.get_sub_cell(name), rank, alpha)
        path, _, child = name.rpartition(".")
        parent = net.get_sub_cell(path)
        if isinstance(parent, (nn.CellList, nn.SequentialCell)):
            parent[int(child)] = layer
        else:
            setattr(parent, child, layer)
        limit = layer.in_features**-0.5
        set_parameter(layer.lora_A.weight, rng.uniform(-limit, limit, (rank, layer.in_features)))
        set_parameter(layer.lora_B.weight, np.zeros((layer.out_features, rank)))
    for name, parameter in net.parameters_and_names():
        parameter.name = name
    return names


def matching_layers(net: nn.Cell, targets: str) -> List[str]:
    """The names of the linear layers that `targets` chooses, in the network's order; see :func:`add_lora`.

    Raises:
        UserError: no regular expression, or no layer with such a name.
    """
    try:
        pattern = re.compile(TARGETS.get(targets, targets))
    except re.error as error:
        raise UserError(f"{FLAG}targets: {targets!r} is no regular expression ({error})") from error
    linear = [name for name, cell in net.cells_and_names() if isinstance(cell, Linear)]
    names = [name for name in linear if pattern.search(name)]
    if not names:
        raise UserError(
            f"{FLAG}targets: no linear layer's name matches {targets!r}; choose one of {', '.join(TARGETS)}, or a "
            f"regular expression for names such as {', '.join(linear[:EXAMPLES])}"
        )
    return names


def lora_parameters(net: nn.Cell) -> Dict[str, Parameter]:
    """Name → every A and B."""
    return {name: parameter for name, parameter in net.parameters_and_names() if is_lora_name(name)}
