"""Memory that MindSpore and NumPy share, on CPU."""

from typing import Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint


def array_of(x: Tensor) -> np.ndarray:
    """A tensor's memory, in C order: a copy only of a view that is not."""
    return np.ascontiguousarray(x.asnumpy())


def empty(shape: Tuple[int, ...]) -> np.ndarray:
    """Memory for a result, fp32, from MindSpore's pool: NumPy's own would come on top of what the pool keeps."""
    return mint.empty(tuple(shape), dtype=ms.float32).asnumpy()


def reshape(x: Tensor, shape: Tuple[int, ...]) -> Tensor:
    """The same memory in another shape."""
    return Tensor.from_numpy(x.asnumpy().reshape(shape))
