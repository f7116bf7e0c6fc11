import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE, check_release, choose_device, preferred_mode, setup_runtime
from gm.errors import UserError
from gm.networks.precision import amp_dtype


def test_auto_takes_the_card_if_there_is_one():
    assert choose_device("auto", ascend_available=True) == "Ascend"
    assert choose_device("auto", ascend_available=False) == "CPU"
    assert choose_device("CPU", ascend_available=True) == "CPU"


def test_a_card_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--device_target=Ascend"):
        choose_device("Ascend", ascend_available=False)
    with pytest.raises(UserError, match="--device_target"):
        setup_runtime(1, "GPU")


def test_a_mindspore_that_is_too_old_is_refused_and_a_newer_one_told_of(caplog):
    with pytest.raises(UserError, match="MindSpore 2.7.1 is too old; install 2.7.2 to 2.10"):
        check_release("2.7.1")
    for version in ("2.7.2", "2.8.0", "2.10.1", "2.9.0rc1"):
        check_release(version)
    assert not caplog.records
    check_release("2.11.0")
    assert "newer" in caplog.text


def test_precision_follows_the_device():
    assert amp_dtype("auto", "Ascend") == amp_dtype("O2", "CPU") == ms.float16
    assert amp_dtype("auto", "CPU") == amp_dtype("O0", "Ascend") == ms.float32
    with pytest.raises(UserError, match="O0"):
        amp_dtype("O1", "CPU")


@pytest.mark.parametrize(("device", "mode"), [("CPU", PYNATIVE_MODE), ("Ascend", GRAPH_MODE)])
def test_a_card_compiles_and_a_cpu_does_not(device, mode):
    assert preferred_mode(device) == mode


@pytest.mark.parametrize("early", [True, False])
def test_an_operator_that_ran_before_is_warned_of(early):
    operator = "(ms.Tensor([1.0]) + 1).asnumpy()"
    setup = "setup_runtime(1, 'CPU')"
    lines = ["import logging, mindspore as ms", "from gm.backend.runtime import setup_runtime", "logging.basicConfig()"]
    lines += [operator, setup] if early else [setup, operator, setup]
    command = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert ("make the pipeline first" in result.stderr) == early
