"""Which type the networks compute in, and how it is set."""

from typing import Optional

import mindspore as ms
from mindspore import nn

from gm.errors import UserError

AMP_LEVELS = ("auto", "O0", "O2")


def amp_dtype(amp_level: str, device: Optional[str] = None) -> ms.Type:
    """fp32 for O0, fp16 for O2; `auto` is O2 on Ascend and O0 on CPU, which computes fp16 slowly.

    Args:
        device: by default MindSpore's.

    Raises:
        UserError: an unknown level.
    """
    device = device or ms.get_context("device_target")
    if amp_level not in AMP_LEVELS:
        raise UserError(f"--SVD.amp_level: {amp_level!r} is none of {', '.join(AMP_LEVELS)}")
    if amp_level == "auto":
        amp_level = "O2" if device == "Ascend" else "O0"
    return ms.float16 if amp_level == "O2" else ms.float32


def set_compute_dtype(net: nn.Cell, dtype: Optional[ms.Type]) -> None:
    """Makes every product of the network (linear, convolution, attention) compute in `dtype`; norms stay in fp32.

    None: in the type of the parameters.
    """
    for _, cell in net.cells_and_names():
        if hasattr(cell, "compute_dtype"):
            cell.compute_dtype = dtype
