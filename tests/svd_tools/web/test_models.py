"""What is found in a folder of weights."""

import numpy as np
import pytest

from gm.weights.lora_file import LowRank, write_lora
from gm.weights.safetensors_file import save_safetensors
from svd_tools.web.models import find_files
from tests.svd_tools.web import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / "mine").mkdir()
    (folder / "mine" / "tiny.safetensors").symlink_to(TINY)
    layer = LowRank(np.ones((2, 4), np.float32), np.ones((4, 2), np.float32), 2.0)
    write_lora(folder / "style.safetensors", {"model.diffusion_model.x": layer}, {})
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3),
        "model.diffusion_model.input_blocks.1.1.time_stack.0.attn2.to_k.weight": (320, 1024),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 768),
    }
    save_safetensors(folder / "odd.safetensors", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    del shapes["model.diffusion_model.input_blocks.1.1.time_stack.0.attn2.to_k.weight"]
    shapes["model.diffusion_model.input_blocks.0.0.weight"] = (320, 4, 3, 3)
    shapes["model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"] = (640, 2048)
    shapes["model.diffusion_model.label_emb.0.0.weight"] = (1280, 2816)
    save_safetensors(folder / "xl.safetensors", {name: np.zeros(shape, np.float16) for name, shape in shapes.items()})
    save_safetensors(folder / "<b>x.safetensors", {"a": np.zeros(3, np.float32)})
    (folder / "broken.ckpt").write_bytes(b"no weights")
    (folder / ".hidden.safetensors").symlink_to(TINY)
    (folder / "notes.txt").write_text("no weights either")
    return folder


def test_models_loras_and_the_rest(folder):
    found = find_files(folder)
    assert [title for title in found.videos if "odd" not in title] == ["mine/tiny.safetensors"]
    assert list(found.pictures) == ["xl.safetensors"] and found.pictures["xl.safetensors"].defaults()["width"] == 1024
    assert list(found.loras) == ["style.safetensors"]
    assert list(found.others) == ["<b>x.safetensors", "broken.ckpt"]
    assert "not a checkpoint" in found.others["broken.ckpt"]


def test_a_network_that_several_models_share_is_offered_as_each(folder):
    assert {"odd.safetensors as svd", "odd.safetensors as svd_xt"} <= set(find_files(folder).videos)


def test_a_model_says_what_its_yaml_file_settles(folder):
    found = find_files(folder)
    sampling = {"sampler": "euler", "schedule": "karras", "guider": "linear", "min_cfg": 1.0}
    assert found.videos["mine/tiny.safetensors"].defaults() == {
        "num_frames": 8, "height": 128, "width": 128, "sampling_steps": 10, "max_cfg": 1.0, **sampling
    }  # fmt: skip
    assert found.videos["odd.safetensors as svd_xt"].defaults()["num_frames"] == 25
