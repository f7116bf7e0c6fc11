"""Kernels: how they are shared out to threads, the exponential function, adjoints, and memory that is shared."""

import os
import signal

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from gm.backend import operators, training
from gm.backend.host import HostOperators
from gm.backend.kernels import activations, threads
from gm.backend.operators import inference


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_activations_far_out():
    door = HostOperators()
    x = np.array([-np.inf, -1e30, -100, -88, -87, -20, -0.0, 0, 20, 87, 88, 100, 1e30, np.inf], np.float32)
    silu, gelu = door.silu(Tensor(x)).asnumpy(), door.gelu(Tensor(x)).asnumpy()
    for result in (silu, gelu):
        np.testing.assert_array_equal(result[8:], x[8:])
        assert np.abs(result[1:8]).max() < 1e-7
    assert np.isnan(door.silu(Tensor(np.array([np.nan], np.float32))).asnumpy()).all()


def test_the_exponential_function():
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    result = np.array([activations.exp(value) for value in x[::97]], np.float32)
    assert np.abs(result / np.exp(x[::97].astype(np.float64)) - 1).max() < 3e-7


def test_rows_are_shared_out_whole(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 3)
    for count in (1, 2, 3, 10):
        seen = np.zeros(count, int)

        def function(first, last, seen):
            seen[first:last] += 1

        threads.parallel_for(function, count, threads.SMALLEST, seen)
        assert (seen == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 2)
    threads.parallel_for(lambda first, last: None, 2, threads.SMALLEST)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills a process that waits for threads that it has not
        threads.parallel_for(lambda first, last: None, 2, threads.SMALLEST)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_in_a_part_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "_cores", lambda: 2)

    def function(first, last):
        if first:
            raise ValueError("second part")

    with pytest.raises(ValueError, match="second part"):
        threads.parallel_for(function, 2, threads.SMALLEST)


def test_a_kernel_is_compiled_where_nothing_can_be_kept(monkeypatch):
    def unable(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(threads.numba, "njit", unable)
    assert threads.kernel(len) is len


KERNELS = {
    "tiles": ((3, 5, 8, 12), training._tiles_of_pixels, "_to_tiles", "_from_tiles"),
    "pixels": ((36, 5, 3, 2, 4), training._pixels_of_tiles, "_to_pixels", "_from_pixels"),
    "tiles of frames": ((2, 5, 12, 7), training._tiles_of_frames, "_to_time_tiles", "_from_time_tiles"),
    "frames": ((6, 5, 2, 3, 7), training._frames_of_tiles, "_to_frames", "_from_frames"),
}


@pytest.mark.parametrize(("shape", "out_shape", "kernel", "adjoint"), KERNELS.values(), ids=KERNELS)
def test_each_kernel_with_its_adjoint(shape, out_shape, kernel, adjoint):
    """⟨L x, y⟩ = ⟨x, L* y⟩."""
    x, y = numbers(*shape), numbers(*out_shape(shape), seed=1)
    image, back = np.empty_like(y), np.empty_like(x)
    getattr(training, kernel)(x, image)
    getattr(training, adjoint)(y, back)
    assert np.vdot(image.astype(float), y) == pytest.approx(np.vdot(x.astype(float), back), rel=1e-5, abs=1e-3)


def test_shared_memory_outlives_the_tensor_that_it_was():
    results = []
    with inference():
        for value in range(50):
            results.append(operators.current.reshape(ops.full((256, 1024), value, dtype=ms.float32) + 0, (1024, 256)))
            ops.full((256, 1024), -1.0, dtype=ms.float32)
    assert [result.asnumpy().mean() for result in results] == list(range(50))
