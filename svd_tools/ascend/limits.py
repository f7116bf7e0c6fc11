"""What CANN documents of its kernels for Ascend 910B, and MindSpore of those that it calls: rules for graphs.

The dry run checks none of it by itself: CANN does, on a card, when a kernel is first called.
"""

import re
from math import prod
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence

from svd_tools.ascend.kernels import Kernel, Operand

Check = Callable[[Kernel], Optional[str]]  # what is wrong, or None
MAX_ELEMENTS, MAX_AXES, MAX_SIZE = 2**31 - 1, 8, 1_000_000
HALF = ("Float16", "BFloat16")


class Limit(NamedTuple):
    """One rule."""

    operators: str  # a regular expression of the names
    rule: str
    source: str
    broken: Check


def tensors(operands: Sequence[Operand]) -> List[Operand]:
    """Those with axes."""
    return [operand for operand in operands if operand.shape]


def _too_many_elements(kernel: Kernel) -> Optional[str]:
    operands = kernel.inputs + kernel.outputs
    return _first(f"{o.shape} has {prod(o.shape):.3g} elements" for o in operands if prod(o.shape) > MAX_ELEMENTS)


def _too_many_axes(kernel: Kernel) -> Optional[str]:
    operands = kernel.inputs + kernel.outputs
    return _first(f"{o.shape} has {len(o.shape)} axes" for o in operands if len(o.shape) > MAX_AXES)


def _too_wide(kernel: Kernel) -> Optional[str]:
    pictures = [o for o in tensors(kernel.inputs + kernel.outputs) if len(o.shape) >= 4]
    return _first(f"{o.shape} is {o.shape[-1]} wide" for o in pictures if o.shape[-1] > 4096)


def _too_large_axis(kernel: Kernel) -> Optional[str]:
    return _first(f"{o.shape} has an axis of {max(o.shape)}" for o in tensors(kernel.inputs) if max(o.shape) > MAX_SIZE)


def _types_differ(kernel: Kernel) -> Optional[str]:
    types = {operand.dtype for operand in tensors(kernel.inputs) if operand.dtype.startswith(("Float", "BFloat"))}
    return f"its operands are of {', '.join(sorted(types))}" if len(types) > 1 else None


def _large_filter(kernel: Kernel) -> Optional[str]:
    weight = tensors(kernel.inputs)[2 if kernel.name.endswith("Grad") else 1]
    return f"its weight is {weight.shape}" if max(weight.shape[-2:]) > 255 else None


def _small_eps(kernel: Kernel) -> Optional[str]:
    eps = float(re.findall(r"F32\(([-\d.e]+)\)", kernel.arguments)[-1])
    return f"its eps is {eps:g}" if eps < 0.999e-5 else None


def _many_channels(kernel: Kernel) -> Optional[str]:
    channels = kernel.inputs[0].shape[1]
    return f"{channels} channels" if channels > 240_000 else None


def _flash(kernel: Kernel) -> Optional[str]:
    query, key = kernel.inputs[:2]
    if query.dtype not in HALF:
        return f"its query is {query.dtype}"
    if len(query.shape) != 4 or '"' in kernel.arguments and "BNSD" not in kernel.arguments:
        return None  # of another layout
    (b, n, s, d), keys = query.shape, key.shape[2]
    right = b <= 2_000_000 and n <= 256 and max(s, keys) <= 2**19 and d <= 512 and d % 16 == 0
    return None if right else f"(b, n, s, d) is {query.shape} over {keys} keys"


def _first(problems: Iterator[str]) -> Optional[str]:
    return next(iter(problems), None)


CONVOLUTIONS = r"Conv[23]D\w*|Convolution\w*"
LIMITS = (
    Limit(r"\w+", "fewer than 2³¹ elements in a tensor", "none documented; offsets of 32 bits are common in kernels",
          _too_many_elements),
    Limit(r"\w+", "at most 8 axes", "CANN 8.5, aclnn operators: ND tensors of 0 to 8 axes", _too_many_axes),
    Limit(CONVOLUTIONS, "width up to 4096", "CANN 8.5, operator list: Conv2D, input of width 1 to 4096", _too_wide),
    Limit(CONVOLUTIONS, "axes up to 1,000,000", "CANN 8.5, aclnnConvolution: constraints on A2", _too_large_axis),
    Limit(CONVOLUTIONS, "one type of all operands", "CANN 8.5, aclnnConvolution: constraints on A2", _types_differ),
    Limit(CONVOLUTIONS, "kernels up to 255 high and wide", "CANN 8.5, aclnnConvolution: 255 transposed, 511 else",
          _large_filter),
    Limit(r"GroupNorm", "eps from 1e-5", "CANN 8.5, aclnnGroupNorm: to keep its accuracy", _small_eps),
    Limit(r"GroupNorm(Grad)?", "one type of all operands", "CANN 8.5, aclnnGroupNorm and …Backward", _types_differ),
    Limit(r"GroupNorm(Grad)?", "up to 240,000 channels", "CANN 8.5, aclnnGroupNormBackward", _many_channels),
    Limit(r"FlashAttentionScore(Grad)?", "half precision; B to 2M, N to 256, S to 512k, D to 512 by 16",
          "CANN 8.5, aclnnFlashAttentionScoreV2 (B); MindSpore 2.8, flash_attention_score (the others)", _flash),
)  # fmt: skip


def violations(kernels: Sequence[Kernel], project: Path) -> List[str]:
    """One line for each kernel that breaks a limit: the place, the operator, the rule."""
    found = []
    for kernel in kernels:
        for limit in LIMITS:
            problem = limit.broken(kernel) if re.fullmatch(limit.operators, kernel.name) else None
            if problem:
                found.append(f"{kernel.place(project)}: {kernel.name}: {problem}; {limit.rule} ({limit.source})")
    return found
