import mindspore as ms
import pytest

from gm.backend.runtime import GRAPH_MODE, PYNATIVE_MODE, choose_device, preferred_mode, setup_runtime
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


def test_precision_follows_the_device():
    assert amp_dtype("auto", "Ascend") == amp_dtype("O2", "CPU") == ms.float16
    assert amp_dtype("auto", "CPU") == amp_dtype("O0", "Ascend") == ms.float32
    with pytest.raises(UserError, match="O0"):
        amp_dtype("O1", "CPU")


@pytest.mark.parametrize(("device", "mode"), [("CPU", PYNATIVE_MODE), ("Ascend", GRAPH_MODE)])
def test_a_card_compiles_and_a_cpu_does_not(device, mode):
    assert preferred_mode(device) == mode
