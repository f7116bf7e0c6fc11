"""The one door to the machine: every operator whose best form depends on the device, the mode, the type or the shape.

Networks call `operators.current`, which is one of the implementations below and in the modules beside this one. It is
chosen once per use, by :func:`inference` or :func:`training`; outside of these it is :class:`Operators`, MindSpore's
own. Whatever an implementation does not support it hands to its parent class.
"""

from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, Callable, Iterator, Optional, Sequence, Tuple

import mindspore as ms
from mindspore import Tensor, nn, ops

GRAPH_MODE, PYNATIVE_MODE = 0, 1

Padding = Tuple[int, int, int, int]  # zeros at the top, the bottom, the left and the right
NO_PADDING: Padding = (0, 0, 0, 0)

_MATMUL = ops.MatMul(transpose_b=True)
_SCORES, _VALUES, _SOFTMAX = ops.BatchMatMul(transpose_b=True), ops.BatchMatMul(), ops.Softmax(axis=-1)
_BIAS_ADD, _ADAMW = ops.BiasAdd(), ops.AdamWeightDecay()


@ms.jit_class
class Operators:
    """MindSpore's own operators, for graph and PyNative mode and with gradients: what all others are tested against.

    `x` may be of any floating-point type; the result has the same. Norms and activations compute in fp32. An argument
    that is said to be given up may be changed: nobody else needs it.
    """

    def linear(self, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        """`x @ weightᵀ + bias`: (…, i), (o, i), (o,) or None -> (…, o)."""
        y = _MATMUL(self.reshape(x, (-1, x.shape[-1])), weight)
        if bias is not None:
            y = self.add_bias(y, bias)
        return self.reshape(y, x.shape[:-1] + (weight.shape[0],))

    def geglu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """h · gelu(g), (h, g) = `x @ weightᵀ + bias` (Shazeer 2020): (…, i), (2o, i), (2o,) -> (…, o)."""
        hidden, gate = self.halves(self.linear(x, weight, bias), -1)
        return hidden * self.gelu(gate)

    def conv2d(
        self,
        direct: ops.Conv2D,
        x: Tensor,
        weight: Tensor,
        bias: Optional[Tensor],
        stride: int = 1,
        padding: Padding = NO_PADDING,
    ) -> Tensor:
        """A convolution over (n, i, h, w).

        Args:
            direct: the layer's own operator, which knows stride and padding.
            weight: (o, i, k, k).
            bias: (o,), or None.
            stride, padding: of `direct`; zeros at the top, the bottom, the left and the right.
        """
        return self.add_bias(direct(x, weight), bias)

    def conv2d_doubled(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A 3x3 convolution over the picture with each pixel doubled both ways: (n, i, h, w) -> (n, o, 2h, 2w)."""
        n, c, h, w = x.shape
        x = ops.broadcast_to(x.reshape(n * c, h, 1, w, 1), (n * c, h, 2, w, 2)).reshape(n, c, 2 * h, 2 * w)
        return self.conv2d(direct, x, weight, bias, 1, same_padding(3))

    def conv_over_time(self, direct: ops.Conv2D, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A convolution of three frames, one frame of zeros at each end: (b, i, t, n), (o, i, 3, 1, 1) -> (b, o, t, n).

        Args:
            direct: the same as a (3, 1) convolution.
        """
        return self.add_bias(direct(x, self.late(weight, weight.shape[:4], x)), bias)

    def add_bias(self, y: Tensor, bias: Optional[Tensor]) -> Tensor:
        """A number added to each place of axis 1: (n, c, …), given up, (c,) or None -> (n, c, …)."""
        return y if bias is None else _BIAS_ADD(y, bias.astype(y.dtype))

    def group_norm(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Group normalisation (Wu & He 2018) of (b, c, …), weight and bias (c,)."""
        x32, weight, bias = x.astype(ms.float32), weight.astype(ms.float32), bias.astype(ms.float32)
        return ops.group_norm(x32, groups, weight, bias, eps).astype(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Layer normalisation (Ba et al. 2016) over the last axis of (…, c), weight and bias (c,)."""
        norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)
        return norm(x.astype(ms.float32), weight.astype(ms.float32), bias.astype(ms.float32))[0].astype(x.dtype)

    def silu(self, x: Tensor) -> Tensor:
        """x·sigmoid(x)."""
        return ops.silu(x.astype(ms.float32)).astype(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """x·Φ(x), Φ being the standard normal distribution function (Hendrycks & Gimpel 2016), exact."""
        return ops.gelu(x.astype(ms.float32), approximate="none").astype(x.dtype)

    scores_budget = 1 << 26  # bytes: the largest block of attention scores that is ever held

    def attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """softmax(q kᵀ / √d + bias) v: (b, h, n, d), (b, h, m, d) twice, (n, m) or None -> (b, h, n, d).

        All scores are never held at once: it runs over blocks of heads and, if one head's scores exceed the budget, of
        queries.
        """
        b, h, n, d = q.shape
        m = k.shape[2]
        q = self.reshape(q * (d**-0.5), (b * h, n, d))
        k, v = self.reshape(k, (b * h, m, d)), self.reshape(v, (b * h, m, d))
        heads = max(1, self.scores_budget // (n * m * 4))
        queries = n if heads > 1 else max(1, min(n, self.scores_budget // (m * 4)))
        blocks = []
        for first in range(0, b * h, heads):
            q_block, k_block = self.narrow(q, 0, first, heads), self.narrow(k, 0, first, heads)
            v_block = self.narrow(v, 0, first, heads)
            if queries == n:
                blocks.append(self.attention_block(q_block, k_block, v_block, bias))
                continue
            rows = []
            for start in range(0, n, queries):
                rows_bias = None if bias is None else self.narrow(bias, 0, start, queries)
                rows.append(self.attention_block(self.narrow(q_block, 1, start, queries), k_block, v_block, rows_bias))
            blocks.append(ops.cat(rows, axis=1))
        return self.reshape(joined(blocks), (b, h, n, d))

    def attention_block(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        """softmax(q kᵀ + bias) v of (bh, n, d), all scores at once, softmax and its sum in fp32."""
        scores = _SCORES(q, k).astype(ms.float32)  # bh n m
        weights = _SOFTMAX(scores if bias is None else scores + bias)
        return _VALUES(weights.astype(v.dtype), v)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """`x + y`, y broadcast to the shape of x."""
        return x + y

    def add_scaled(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """`x + scale·y`, y given up; scale: (), fp32."""
        return x + y * scale.astype(y.dtype)

    def lerp(self, start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        """`start + weight·(end - start)`, start given up; weight: (), fp32."""
        return start + weight.astype(start.dtype) * (end - start)

    def reshape(self, x: Tensor, shape: Tuple[int, ...]) -> Tensor:
        """The same numbers in another shape."""
        return x.reshape(shape)

    def late(self, weight: Tensor, shape: Tuple[int, ...], x: Tensor) -> Tensor:
        """A weight in another shape, not before `x` is there.

        A compiled network reshapes (that is, copies) all weights before anything else, and holds the copies until they
        are used: 1.6 GB at full size.
        """
        return ops.depend(weight, x).reshape(shape)

    def permute(self, x: Tensor, order: Tuple[int, ...]) -> Tensor:
        """The axes of x in another order."""
        return ops.transpose(x, order)

    def halves(self, x: Tensor, axis: int) -> Tuple[Tensor, Tensor]:
        """The first and the second half along an axis."""
        return ops.chunk(x, 2, axis=axis)

    def entry(self, x: Tensor, axis: int, index: int) -> Tensor:
        """What is at one place of axis 0 or 1, which goes."""
        return x[index] if axis == 0 else x[:, index]

    def narrow(self, x: Tensor, axis: int, start: int, length: int) -> Tensor:
        """So many places of one of the first three or last two axes, or those that there are, from `start` on; all of
        them are no copy. Each axis has a line, because a graph has no gradient for an index that is put together."""
        stop = min(start + length, x.shape[axis])
        if length >= x.shape[axis]:
            return x
        if axis == 0:
            return x[start:stop]
        if axis == 1:
            return x[:, start:stop]
        if axis == 2:
            return x[:, :, start:stop]
        return x[..., start:stop] if axis == x.ndim - 1 else x[..., start:stop, :]

    def mean(self, x: Tensor, axis: Optional[int] = None) -> Tensor:
        """The mean along an axis, which goes, or of all numbers."""
        return ops.mean(x, axis)

    def stack(self, numbers: Sequence[Tensor]) -> Tensor:
        """n numbers, of shape (), as one tensor: (n,)."""
        return ops.stack(numbers)

    def by_rows(self, function: Callable[[Tensor], Tensor], x: Tensor, row_bytes: int) -> Tensor:
        """`function(x)` for one that treats each row of axis 0 by itself, which may be called for some rows at a time.

        Args:
            function: (n, …) -> (n, …), for any n.
            row_bytes: that it needs on the way for one row.
        """
        return function(x)

    batch_bytes = 1 << 27  # of one activation: guidance halves that have more run one after the other

    def images_at_once(self, count: int, numbers: int) -> int:
        """How many of so many images are decoded together where the user does not say; `numbers` is the size of one's
        largest activation."""
        return count

    def memoise(self, method: Callable, *inputs: Any) -> Any:
        """`method(*inputs)`, which may be computed once for as long as parameters do not change.

        Args:
            inputs: numbers, by their value, and tensors, by their identity.
        """
        return method(*inputs)

    keep = False  # whether what `call` compiles is kept for the next process

    def call(self, network: nn.Cell, recipe: Any, inputs: Sequence[Tensor]) -> Any:
        """`network(*inputs)`, called from the host.

        Args:
            recipe: what the network is made from, as JSON can hold it: all that tells its graph from others.
        """
        from gm.backend.compile_cache import kept_compilation

        with kept_compilation(recipe, inputs) if self.keep else nullcontext():
            return network(*inputs)

    updates_from_host = False  # whether the three below are called tensor by tensor from the host, not in a graph

    def adamw(self, parameter, first, second, gradient, scale, lr, beta1, beta2, eps, decay):
        """One AdamW update of a parameter and its moments in place, all fp32 and of one shape: `p -= lr·(m / (√v + ε) +
        decay·p)` with the moments of scale·gradient (:mod:`gm.training.optim`)."""
        return _ADAMW(parameter, first, second, lr, beta1, beta2, eps, decay, gradient * scale)

    def move_average(self, average, parameter, rate):
        """`average + rate·(parameter - average)` in place, both fp32."""
        return ops.assign(average, average + (parameter - average) * rate)

    def square_sum(self, tensor):
        """The sum of all squares."""
        return ops.reduce_sum(ops.square(tensor))


def same_padding(kernel_size: int) -> Padding:
    """With which a convolution of stride 1 and an odd kernel gives a picture of its input's size."""
    return (kernel_size // 2, kernel_size // 2, kernel_size // 2, kernel_size // 2)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after another along axis 0; one alone is not copied."""
    return parts[0] if len(parts) == 1 else ops.cat(parts, axis=0)


current = Operators()  # what networks call; changed by `using` alone


@cache
def _instance(implementation: type, *args: Any) -> Operators:
    return implementation(*args)


@contextmanager
def using(implementation: Operators) -> Iterator[Operators]:
    """Networks that run, or are compiled, inside the block call this implementation."""
    global current
    before, current = current, implementation
    try:
        yield implementation
    finally:
        current = before


@contextmanager
def inference(
    compiled: Optional[bool] = False,
    alone: bool = False,
    network: Optional[nn.Cell] = None,
    fuse_kernels: Optional[bool] = False,
    compile_cache: Optional[bool] = False,
) -> Iterator[None]:
    """Networks run without gradients inside, and their parameters do not change meanwhile.

    Args:
        compiled: in graph mode; False runs operator by operator, whatever the mode outside, None in that mode.
        alone: the process does nothing else meanwhile, so that on a CPU of few cores its threads are given cores.
        network: that is called inside.
        fuse_kernels: what is compiled for a CPU is compiled to fused kernels (:mod:`gm.backend.kernel_fusion`); None
            does where the network is large enough for that to pay.
        compile_cache: what :meth:`Operators.call` compiles is kept for the next process
            (:mod:`gm.backend.compile_cache`); None keeps it on CPU.
    """
    from gm.backend.ascend import AscendOperators
    from gm.backend.host import CompiledOperators, HostOperators
    from gm.backend.kernel_fusion import fused_kernels, worth_fusing
    from gm.backend.thread_placement import threads_placed

    mode, on_host = ms.get_context("mode"), ms.get_context("device_target") == "CPU"
    compiled = mode == GRAPH_MODE if compiled is None else compiled
    ms.set_context(mode=GRAPH_MODE if compiled else PYNATIVE_MODE)
    try:
        fuse = compiled and on_host and (worth_fusing(network) if fuse_kernels is None else fuse_kernels)
        with fused_kernels() if fuse else nullcontext(False) as fused:
            if on_host:
                implementation = _instance(CompiledOperators, fused) if compiled else HostOperators()
            else:
                implementation = _instance(AscendOperators)
            implementation.keep = on_host if compile_cache is None else compile_cache
            with using(implementation), threads_placed() if alone and on_host and not compiled else nullcontext():
                yield
    finally:
        ms.set_context(mode=mode)


@contextmanager
def training(fuse: bool = False) -> Iterator[None]:
    """Gradients are computed and parameters updated inside.

    Args:
        fuse: compiles to fused kernels on CPU in graph mode.
    """
    from gm.backend.ascend import AscendOperators
    from gm.backend.kernel_fusion import fused_kernels
    from gm.backend.training import TrainingOperators

    if ms.get_context("device_target") != "CPU":
        with using(_instance(AscendOperators)):
            yield
        return
    compiled = ms.get_context("mode") == GRAPH_MODE
    fusing = fused_kernels() if fuse and compiled else nullcontext(False)
    with fusing as fused, using(_instance(TrainingOperators, compiled, fused)):
        yield
