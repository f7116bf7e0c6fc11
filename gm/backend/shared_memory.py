"""Operators on memory that MindSpore and NumPy share: what runs inside :func:`gm.backend.runtime.eager` on a CPU.

In PyNative mode MindSpore 2.8 copies a view each time an operator reads it, keeps every intermediate result of a chain
of operators, and has no kernel for some of them. Here the same memory is given another shape by NumPy, and chains are
one loop each (:mod:`gm.backend.kernels`). There are no gradients. Should MindSpore copy where it shares today, results
stay right.
"""

from functools import lru_cache
from typing import Any, Callable, Dict, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from gm.backend.kernels import activations, layout, norms, sums
from gm.backend.kernels.threads import spread

BLOCK_BYTES = 1 << 26  # of an input that is worked on by blocks
MANY_ROWS, SOME_ROWS = 4096, 400  # from which on MindSpore's product is the faster one; from the second on if it widens
_PRODUCT = ops.MatMul(transpose_b=True)
_known: Dict[Tuple, Tuple] = {}  # what `remembered` has computed: method and inputs -> result, and what its key names


def remembered(method: Callable, *inputs: Any) -> Any:
    """See :func:`gm.backend.kernels.constant`."""
    values = [value if isinstance(value, int) else id(value) for value in inputs]
    key = (id(method.__self__), method.__name__, *values)
    if key not in _known:
        _known[key] = method(*inputs), method, inputs
    return _known[key][0]


def forget() -> None:
    """What is remembered; parameters may change from here on."""
    _known.clear()


def array_of(x: Tensor) -> np.ndarray:
    """Its memory, in C order: a copy only of a view that is not."""
    return np.ascontiguousarray(x.asnumpy())


def empty(shape: Tuple[int, ...]) -> np.ndarray:
    """Memory for a result, fp32, from MindSpore's pool: NumPy's own would come on top of what the pool keeps."""
    return mint.empty(tuple(shape), dtype=ms.float32).asnumpy()


def reshape(x: Tensor, shape: Tuple[int, ...]) -> Tensor:
    return Tensor.from_numpy(x.asnumpy().reshape(shape))


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, row_bytes: int) -> Tensor:
    """See :func:`gm.backend.kernels.in_blocks`."""
    source = x.asnumpy()
    rows = max(1, BLOCK_BYTES // row_bytes)
    if rows >= len(source):
        return function(x)
    result = None
    for first in range(0, len(source), rows):
        block = function(Tensor.from_numpy(source[first : first + rows]))
        if result is None:
            result = empty((len(source),) + block.shape[1:])
        result[first : first + rows] = block.asnumpy()
    return Tensor.from_numpy(result)


def gather_rows(x: Tensor, order: Tuple[int, ...]) -> Tensor:
    """The axes of `x` in another order, of which the last stays the last: a seventh of the time of a strided copy."""
    rows = ops.gather(reshape(x, (-1, x.shape[-1])), _row_order(x.shape[:-1], order[:-1]), 0)
    return reshape(rows, tuple(x.shape[axis] for axis in order))


@lru_cache(maxsize=64)
def _row_order(shape: Tuple[int, ...], order: Sequence[int]) -> Tensor:
    """Where each row of an array of rows, (…), is found before its axes are put into this order."""
    rows = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return Tensor(np.ascontiguousarray(rows.transpose(order)).reshape(-1))


def swap_last(x: Tensor) -> Tensor:
    """… a b -> … b a, fp32."""
    a, b = x.shape[-2:]
    source = array_of(x).reshape(-1, a, b)
    out = empty((len(source), b, a))
    spread(layout.transpose, len(source) * -(-a // layout.SQUARE), source.size, source, out)
    return Tensor.from_numpy(out.reshape(x.shape[:-2] + (b, a)))


def silu(x: Tensor) -> Tensor:
    return _elementwise(activations.silu, x)


def gelu(x: Tensor) -> Tensor:
    return _elementwise(activations.gelu, x)


def _elementwise(function: Callable, x: Tensor) -> Tensor:
    source, out = array_of(x).reshape(-1), empty((x.size,))
    spread(function, source.size, source.size, source, out)
    return Tensor.from_numpy(out.reshape(x.shape))


def geglu(x: Tensor, bias: Tensor) -> Tensor:
    """(n, 2c), (2c,) -> (n, c)."""
    source, c = array_of(x), x.shape[1] // 2
    out = empty((len(source), c))
    spread(activations.geglu, len(source), source.size, source, array_of(bias), out)
    return Tensor.from_numpy(out)


def group_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See :func:`gm.backend.kernels.group_norm`."""
    b, c = x.shape[:2]
    source = array_of(x).reshape(b * num_groups, c // num_groups, -1)
    scale, shift = (array_of(parameter).reshape(num_groups, -1) for parameter in (weight, bias))
    out = empty(source.shape)
    spread(norms.group_norm, len(source), source.size, source, scale, shift, eps, out)
    return Tensor.from_numpy(out.reshape(x.shape))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See :func:`gm.backend.kernels.layer_norm`."""
    source = array_of(x).reshape(-1, x.shape[-1])
    out = empty(source.shape)
    spread(norms.layer_norm, len(source), source.size, source, array_of(weight), array_of(bias), eps, out)
    return Tensor.from_numpy(out.reshape(x.shape))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """See :func:`gm.backend.kernels.product`: by whichever is faster for the shape, MindSpore or NumPy's BLAS."""
    rows, inner, outputs = x.size // x.shape[-1], x.shape[-1], weight.shape[0]
    if rows >= MANY_ROWS or (rows >= SOME_ROWS and outputs > 2 * inner):
        return _PRODUCT(reshape(x, (rows, inner)), weight)
    out = empty((rows, outputs))
    np.matmul(array_of(x).reshape(rows, inner), weight.asnumpy().T, out=out)
    return Tensor.from_numpy(out)


def add_scaled(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """See :func:`gm.backend.kernels.add_scaled`: into the memory of `y`."""
    values = array_of(y)
    spread(sums.add_to_scaled, y.size, y.size, array_of(x).reshape(-1), values.reshape(-1), np.float32(scale.asnumpy()))
    return Tensor.from_numpy(values)


def mix(x: Tensor, y: Tensor, share: Tensor) -> Tensor:
    """See :func:`gm.backend.kernels.mix`: into the memory of `y`."""
    values = array_of(y)
    spread(sums.mix_in, y.size, y.size, array_of(x).reshape(-1), values.reshape(-1), np.float32(share.asnumpy()))
    return Tensor.from_numpy(values)


def add_bias(y: Tensor, bias: Tensor) -> Tensor:
    """See :func:`gm.backend.kernels.add_bias`: into the memory of `y`."""
    values, shift = array_of(y), array_of(bias)
    if values.ndim == 2:
        spread(sums.add_vector_in_place, len(values), values.size, values, shift)
    else:
        rows = values.reshape(values.shape[0] * values.shape[1], -1)
        spread(sums.add_numbers_in_place, len(rows), rows.size, rows, shift)
    return Tensor.from_numpy(values)


def add_broadcast(x: Tensor, y: Tensor) -> Tensor:
    """See :func:`gm.backend.kernels.add_broadcast`; y is of size 1 along axes at the end, or whole in the last."""
    source, term = array_of(x), array_of(y)
    term = term.reshape((1,) * (source.ndim - term.ndim) + term.shape)
    out = empty(source.shape)
    if term.shape[-1] == source.shape[-1]:
        rows, vectors = source.reshape(-1, source.shape[-1]), term.reshape(-1, source.shape[-1])
        which = np.broadcast_to(np.arange(len(vectors)).reshape(term.shape[:-1]), source.shape[:-1]).reshape(-1)
        spread(sums.add_vectors, len(rows), source.size, rows, vectors, which, out.reshape(rows.shape))
    else:
        kept = max(axis + 1 for axis, size in enumerate(term.shape) if size > 1 or axis == 0)
        numbers = np.broadcast_to(term.reshape(term.shape[:kept]), source.shape[:kept]).reshape(-1)
        rows = source.reshape(len(numbers), -1)
        spread(sums.add_numbers, len(rows), source.size, rows, numbers, out.reshape(rows.shape))
    return Tensor.from_numpy(out)
