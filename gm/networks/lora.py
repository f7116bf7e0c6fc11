"""Low-rank adaptation of linear layers (LoRA, Hu et al. 2021): W x + (α/r)·B A x, of which only A and B are trained."""

import re
from typing import Dict, List, Optional, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
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
PLACE, CHANNEL, MIX, LAYER = -1640531535, -2048144777, -1028477379, 668265263  # odd: none loses a bit modulo 2³²


class LoRADropout(nn.Cell):
    """Zeroes a share of what reaches the low-rank branches while training, and scales up the rest (as peft's).

    One for all of a network's branches. Its masks are hashes, modulo 2³², of the clip's key, the layer, the place and
    the channel: neither the device, the other clips of the batch, recomputation nor an interruption changes them, and
    no mask is kept. At first, and after :meth:`rest`, all passes.

    Args:
        rate: the share, 0 to below 1.
        clips: b, of every batch.
    """

    def __init__(self, rate: float, clips: int) -> None:
        super().__init__()
        self.rate = rate
        self.keys = Parameter(Tensor([0] * clips, ms.int32), requires_grad=False)
        self.last_kept = Parameter(Tensor(0, ms.int32), requires_grad=False)
        self.scale = Parameter(Tensor(1.0, ms.float32), requires_grad=False)
        self.rest()

    def rest(self) -> None:
        """Lets all pass: for validation."""
        self._set(np.iinfo(np.int32).max, 1.0)

    def draw(self, keys: Sequence[int]) -> None:
        """Other masks.

        Args:
            keys: of the b clips of the next batch, 0 to 2³¹ - 1.
        """
        self._set(int((1 - self.rate) * 2**32) - 2**31 - 1, 1 / (1 - self.rate))
        self.keys.set_data(Tensor(keys, ms.int32))

    def _set(self, last_kept: int, scale: float) -> None:
        (self.scale + 0).asnumpy()  # waits for what was begun before: a backward pass may still read them
        self.last_kept.set_data(Tensor(last_kept, ms.int32))
        self.scale.set_data(Tensor(scale, ms.float32))

    def construct(self, x: Tensor, layer: int) -> Tensor:
        """(…, c), whose rows are the clips', one after the other -> the same, of a layer's number."""
        channels, clips = x.shape[-1], self.keys.shape[0]
        rows = x.size // channels
        if rows % clips:
            return x  # no batch of training's, and all passes
        place = ops.arange(0, rows // clips, dtype=ms.int32) * PLACE + self.keys.reshape(clips, 1)
        channel = ops.arange(0, channels, dtype=ms.int32) * CHANNEL + layer
        code = _mixed(place.reshape(rows, 1)) + _mixed(channel)
        mask = ops.less_equal(_mixed(_mixed(code) * MIX + layer), self.last_kept)
        return x * (mask.astype(x.dtype) * self.scale.astype(x.dtype)).reshape(x.shape)


def _mixed(x: Tensor) -> Tensor:
    """x·(2x + 1) modulo 2³² (RC6, Rivest et al. 1998), whose high bits depend on all of x."""
    return x * (x + x + 1)


class LoRALinear(Linear):
    """A linear layer over another one's own parameters, with a low-rank branch: W x + b + (α/r)·B A x.

    The names of the base (`weight`, `bias`) stay; the branch adds `lora_A.weight` (r, in) and `lora_B.weight` (out, r).

    Args:
        base: the layer whose parameters are taken over.
        rank: r.
        alpha: α.
        dropout: before A; None for none.
        number: of the layer, for its masks.
    """

    def __init__(
        self, base: Linear, rank: int, alpha: float, dropout: Optional[LoRADropout] = None, number: int = 0
    ) -> None:
        with no_init_parameters():
            super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
            self.lora_A = Linear(base.in_features, rank, bias=False)
            self.lora_B = Linear(rank, base.out_features, bias=False)
        self.weight = base.weight
        if base.bias is not None:
            self.bias = base.bias
        self.alpha, self.scale = alpha, alpha / rank
        self.dropout, self.number = dropout, (number * LAYER + 2**31) % 2**32 - 2**31  # 32 bits with a sign
        for layer in (self, self.lora_A, self.lora_B):
            layer.compute_dtype = base.compute_dtype

    def construct(self, x: Tensor) -> Tensor:
        seen = x if self.dropout is None else self.dropout(x, self.number)
        return super().construct(x) + self.lora_B(self.lora_A(seen)) * self.scale

    def gated(self, x: Tensor) -> Tensor:
        hidden, gate = operators.current.halves(self.construct(x), -1)
        return hidden * operators.current.gelu(gate)


def add_lora(
    net: nn.Cell,
    rank: int = DEFAULT_RANK,
    alpha: Optional[float] = None,
    targets: str = "temporal",
    seed: int = 42,
    dropout: Optional[LoRADropout] = None,
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
        dropout: before every A; None for none.

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
    for number, name in enumerate(names):
        layer = LoRALinear(net.get_sub_cell(name), rank, alpha, dropout, number)
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
