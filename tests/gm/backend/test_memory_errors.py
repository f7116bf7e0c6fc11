import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from gm.backend.memory import OutOfMemory, explain_out_of_memory, is_out_of_memory
from gm.errors import UserError

PROJECT = Path(__file__).parents[3]

# As MindSpore 2.8 words it on the CPU in graph and PyNative mode; as its Ascend allocator does; the C++ library's.
MESSAGES = [
    "----\n- Memory not enough:\n----\nMemory isn't enough and alloc failed, kernel name: 16_Default/Conv2D-op4, alloc "
    "size: 671088640B.",
    "Allocate memory failed\n\n----\n- C++ Call Stack: (For framework developers)",
    "Allocate output memory failed, alloc node:Default/Conv2D-op1 alloc size:671088640B",
    "Device(id:0) memory isn't enough and alloc failed, kernel name: Default/MatMul-op1, alloc size: 1048576B.",
    "std::bad_alloc",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_signs_are_known(message):
    assert is_out_of_memory(RuntimeError(message))
    with (
        pytest.raises(OutOfMemory, match=r"^out of memory; in this order, try: a, then b$"),
        explain_out_of_memory("a, then b"),
    ):
        raise RuntimeError(message)


def test_python_and_numpy_run_out_too():
    assert is_out_of_memory(MemoryError())
    with pytest.raises(OutOfMemory), explain_out_of_memory("x"):
        np.empty(1 << 60, np.uint8)


def test_the_cause_counts():
    try:
        try:
            raise RuntimeError("Allocate memory failed")
        except RuntimeError as cause:
            raise RuntimeError("the network failed") from cause
    except RuntimeError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("For 'MatMul', shapes differ"), ValueError("no"), KeyError("bad_alloc")]
)
def test_other_errors_pass(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as raised, explain_out_of_memory("x"):
        raise error
    assert raised.value is error


def test_user_errors_pass():
    with pytest.raises(UserError, match="^out of memory, said already$") as raised, explain_out_of_memory("x"):
        raise UserError("out of memory, said already")
    assert not isinstance(raised.value, OutOfMemory)


@pytest.mark.parametrize("mode", [0, 1])
def test_mindspore_runs_out_for_real(tmp_path, mode):
    script = f"""
        import os, resource
        os.environ["GLOG_v"] = "4"
        import numpy as np, mindspore as ms
        from mindspore import ops
        from gm.errors import UserError
        from gm.backend.memory import explain_out_of_memory
        ms.set_device("CPU")
        ms.set_context(mode={mode})
        class Net(ms.nn.Cell):
            def construct(self, x):
                return ops.concat([x] * 8)
        net = Net()
        net(ms.Tensor(np.ones((2, 8, 8), np.float32))).asnumpy()
        x = ms.Tensor(np.ones((16, 1024, 1024), np.float32))  # 64 MiB, then 512 MiB, 4 GiB, 32 GiB
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000, size + 50_000_000))
        try:
            with explain_out_of_memory("less"):
                net(net(net(x))).asnumpy()
        except UserError as error:
            print(error)
    """
    file = tmp_path / "run_out.py"  # graph mode compiles from files only
    file.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    result = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert result.stdout == "out of memory; in this order, try: less\n", result
