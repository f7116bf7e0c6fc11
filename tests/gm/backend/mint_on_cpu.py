"""Functions with the signatures of `mint`'s that have no kernel on CPU: these take their place there, so that the
operators for Ascend can be compared with PyTorch. What is left unverified by that is CANN's own kernels.
"""

import mindspore as ms
from mindspore import ops


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """`padding` as a card takes it: the same on both sides of an axis."""
    assert groups == 1 and dilation == 1
    down, across = padding if isinstance(padding, tuple) else (padding, padding)
    direct = ops.Conv2D(weight.shape[0], weight.shape[2:], pad_mode="pad", pad=(down, down, across, across),
                        stride=stride)  # fmt: skip
    y = direct(input, weight)
    return y if bias is None else y + bias.reshape(1, -1, 1, 1)


def conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Of kernels that are one pixel high and wide."""
    assert weight.shape[3:] == (1, 1) and stride == 1 and input.dtype == weight.dtype and input.shape[4] <= 4096
    b, c, t, h, w = input.shape
    y = conv2d(input.reshape(b, c, t, h * w), weight.reshape(weight.shape[:4]), bias, 1, (padding[0], 0))
    return y.reshape(b, -1, t, h, w)


def pad(input, pad, mode="constant", value=0.0):
    """Zeros around (n, c, h, w)."""
    assert mode == "constant" and value == 0
    return ops.pad(input, pad)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Over the last axis; weights in fp32 or in the input's type."""
    assert tuple(normalized_shape) == input.shape[-1:] and weight.dtype == bias.dtype
    norm = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)
    y = norm(input.astype(ms.float32), weight.astype(ms.float32), bias.astype(ms.float32))[0]
    return y.astype(input.dtype)


def gelu(input, *, approximate="none"):
    """x·Φ(x)."""
    assert approximate == "none"
    return ops.gelu(input.astype(ms.float32), approximate="none").astype(input.dtype)


def flash_attention_score(query, key, value, head_num, *, input_layout="BSH", scalar_value=1.0):
    """Attention over (b, n, s, d) in half precision, computed in fp32."""
    b, n, s, d = query.shape
    assert input_layout == "BNSD" and n == head_num <= 256 and d % 16 == 0 and d <= 512 and b <= 2_000_000
    assert query.dtype == key.dtype == value.dtype in (ms.float16, ms.bfloat16)
    q, k, v = (x.astype(ms.float32) for x in (query, key, value))
    weights = ops.softmax(ops.BatchMatMul(transpose_b=True)(q, k) * scalar_value, axis=-1)
    return ops.BatchMatMul()(weights, v).astype(query.dtype)


def stack(tensors, dim=0):
    """Beside each other."""
    return ops.stack(tensors, dim)


def put_in_place(monkeypatch):
    """Everything above, until the test's end."""
    for function in (conv2d, conv3d, pad, layer_norm, gelu):
        monkeypatch.setattr(f"mindspore.mint.nn.functional.{function.__name__}", function)
    monkeypatch.setattr("mindspore.mint.stack", stack)
    monkeypatch.setattr("mindspore.ops.flash_attention_score", flash_attention_score)


def run_as_on_ascend(monkeypatch):
    """Inference takes the operators for Ascend, with everything above."""
    from gm.backend.ascend import AscendOperators

    put_in_place(monkeypatch)
    monkeypatch.setattr("gm.backend.host.HostOperators", AscendOperators)
    monkeypatch.setattr("gm.backend.host.CompiledOperators", lambda fused: AscendOperators())
