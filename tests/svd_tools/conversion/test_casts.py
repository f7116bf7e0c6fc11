"""Casts are PyTorch's, and values that are not numbers are counted."""

import numpy as np
import pytest
import torch

from gm.weights.safetensors_file import array_info
from gm.weights.tensor_source import TensorInfo, decode
from svd_tools.conversion.lazy_tensor import LazyTensor, cast, count_not_finite, to_bfloat16

EDGES = np.array(
    [0, -0.0, 1e-40, -1e-45, 1.0039062, 1.01171875, 3.4e38, 6.6e4, 65519.9, 65520, 1e-8, np.inf, -np.inf, np.nan],
    np.float32,
)


@pytest.fixture
def values():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    return np.concatenate([EDGES, bits.view(np.float32)])


def test_bfloat16_rounds_as_torch_does(values):
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    ours = torch.from_numpy(to_bfloat16(values).view(np.int16).copy()).view(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours[~ours.isnan()].view(torch.int16), theirs[~theirs.isnan()].view(torch.int16))


def lazy(array, dtype=None):
    info = array_info(array) if dtype is None else TensorInfo(dtype, array.shape)
    return LazyTensor(info, "test", array.tobytes)


@pytest.mark.parametrize("dtype, torch_type", [("F16", torch.float16), ("F32", torch.float32)])
def test_float_casts_are_torchs(values, dtype, torch_type):
    result = cast(lazy(values), dtype)
    theirs = torch.from_numpy(values).to(torch_type).numpy()
    np.testing.assert_array_equal(decode(result.load(), result.info, ""), theirs)


def test_bfloat16_to_float32_and_back_is_exact(values):
    stored = to_bfloat16(values)
    wide = cast(lazy(stored, "BF16"), "F32")
    assert wide.info == TensorInfo("F32", values.shape)
    back = cast(LazyTensor(wide.info, "", wide.load), "BF16")
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(np.frombuffer(back.load(), np.uint16)[numbers], stored[numbers])


def test_whole_numbers_and_equal_types_are_left_alone():
    ints = lazy(np.arange(3))
    assert cast(ints, "F16") is ints
    floats = lazy(np.ones(3, np.float32))
    assert cast(floats, "F32") is floats


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_are_counted_wherever_they_are(dtype):
    values = np.full(700_001, np.finfo(dtype).max, dtype)
    assert count_not_finite(values.tobytes(), array_info(values)) == (0, 0)
    values[[0, 300_000]] = np.nan
    values[-1] = -np.inf
    assert count_not_finite(values.tobytes(), array_info(values)) == (2, 1)


def test_nan_in_bfloat16_and_in_nothing():
    stored = to_bfloat16(EDGES)
    assert count_not_finite(stored.tobytes(), TensorInfo("BF16", EDGES.shape)) == (1, 3)  # 3.4e38 is beyond bfloat16
    assert count_not_finite(b"", TensorInfo("F32", (0,))) == (0, 0)
    assert count_not_finite(b"\xff" * 8, TensorInfo("I64", (1,))) == (0, 0)
