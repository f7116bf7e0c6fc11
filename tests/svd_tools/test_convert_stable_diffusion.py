"""`convert.py` between Stable Diffusion's published files and diffusers folders."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from gm.networks.tokenizer import END, START, tokens_of
from gm.weights.diffusers_names import placeless
from svd_tools.conversion.diffusers_layout import diffusers_shapes
from tests import reference
from tests.svd_tools.small_model import assert_same_tensors, read_all, run_convert, save_random

SMALL = Path(__file__).parents[1] / "parity"


@pytest.mark.parametrize("name, without", [("sd15", 0), ("sd21", 14), ("sdxl_base", 1)])
def test_the_published_names_have_one_place_each(name, without):
    published = {key: shape for key, shape in reference.stable_diffusion(name).items() if "position_ids" not in key}
    assert len(placeless(published)) == without
    shapes = diffusers_shapes(published)
    assert len(shapes) > len(published) - without - 1 and not [key for key in shapes if "spatial" in key]


@pytest.mark.parametrize("name", [pytest.param("sd_1_5", marks=pytest.mark.slow), "sd_2_1", "sd_xl_base"])
def test_diffusers_opens_the_folder_and_the_way_back_is_exact(name, tmp_path):
    config = SMALL / f"{name}_small.yaml"
    weights = save_random(tmp_path / f"{name}.safetensors", config)
    run_convert(tmp_path / f"{name}.safetensors", tmp_path / "a", "--to=diffusers", config=config)
    folder = tmp_path / "a" / name
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe) is (StableDiffusionXLPipeline if name == "sd_xl_base" else StableDiffusionPipeline)
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if name == "sd_2_1" else "epsilon")
    assert pipe.tokenizer("a red cat")["input_ids"] == [START, *tokens_of("a red cat"), END]
    unet = pipe.unet.state_dict()
    np.testing.assert_array_equal(unet["conv_out.weight"], weights["model.diffusion_model.out.2.weight"])
    pipe.save_pretrained(tmp_path / "theirs" / name)
    for source, out in ((folder, "b"), (tmp_path / "theirs" / name, "c")):
        run_convert(source, tmp_path / out, "--to=safetensors", config=config)
    assert_same_tensors(read_all(tmp_path / "b" / f"{name}.safetensors"), weights)
    again, without = read_all(tmp_path / "c" / f"{name}.safetensors"), placeless(weights)
    assert again.keys() == weights.keys() and not any(again[key].any() for key in without)
    assert_same_tensors(*({k: v for k, v in tensors.items() if k not in without} for tensors in (again, weights)))
