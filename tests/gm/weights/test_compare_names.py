"""A checkpoint that does not fit the network is refused with everything that is wrong with it."""

import pytest

from gm.errors import UserError
from gm.weights.checkpoint import compare_names
from gm.weights.tensor_source import TensorInfo
from tests import reference
from tests.error_line import with_list


def info_of(shapes):
    return {name: TensorInfo("F32", shape) for name, shape in shapes.items()}


def mismatch(wanted, have):
    with pytest.raises(UserError) as error:
        compare_names(wanted, info_of(have), what="x.safetensors")
    return with_list(str(error.value)).splitlines()


def test_few_differences_stand_in_the_line_itself():
    (line,) = mismatch({"a": (1,), "b": (2,)}, {"a": (1,), "b": (3,)})
    assert line.endswith("shape: b is (3,), (2,) is wanted")


def test_equal_names_pass():
    compare_names(reference.published(), info_of(reference.published()), what="x")


def test_every_missing_extra_and_misshapen_name_is_listed():
    wanted = {f"w{i}": (i,) for i in range(60)}
    have = {**{f"w{i}": (i,) for i in range(20, 59)}, "w59": (1, 2), **{f"extra{i}": (1,) for i in range(30)}}
    summary, *lines = mismatch(wanted, have)
    assert summary.startswith("x.safetensors") and "20 missing, 30 extra, 1 of another shape" in summary
    assert len(lines) == 51
    assert lines[0] == "missing: w0 (0,)" and lines[-1] == "shape: w59 is (1, 2), (59,) is wanted"


def test_the_kind_of_a_checkpoint_that_does_not_fit():
    wanted = reference.published()
    unet = {name.split("/", 1)[1]: s for name, s in reference.diffusers().items() if name.startswith("unet/")}
    assert "diffusers layout" in mismatch(wanted, unet)[0]
    image = {name: shape for name, shape in wanted.items() if "time_" not in name}
    assert "without temporal layers" in mismatch(wanted, image)[0]
    image_decoder = {name: s for name, s in wanted.items() if not (name.startswith("first_stage") and "time_" in name)}
    image_decoder["first_stage_model.post_quant_conv.weight"] = (4, 4, 1, 1)
    assert "image_decoder variant" in mismatch(wanted, image_decoder)[0]
    assert "begin with 'network.'" in mismatch(wanted, {f"network.{name}": s for name, s in wanted.items()})[0]
    assert "another width" in mismatch(wanted, {name: (*shape, 2) for name, shape in wanted.items()})[0]
    assert "another architecture" in mismatch(wanted, {"layer.weight": (2, 2)})[0]
    unet_alone = {name: s for name, s in wanted.items() if name.startswith("model.")}
    assert "UNet alone" in mismatch(wanted, unet_alone)[0]
