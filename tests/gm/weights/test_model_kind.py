"""A checkpoint's model from its header: all published layouts, names that tell, and what is said when nothing tells."""

import re

import numpy as np
import pytest

from gm.config.factory import load_config
from gm.errors import UserError
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.model_kind import (
    CONFIGS,
    architecture_in,
    architecture_of,
    choose_files,
    find_model,
    known_models,
    require_fit,
)
from gm.weights.tensor_source import TensorInfo
from tests import reference


def info_of(shapes):
    return {name: TensorInfo("F32", shape) for name, shape in shapes.items()}


class Header:
    """What is known of an open checkpoint before a tensor is read."""

    def __init__(self, path, shapes, dtype="F16"):
        self.path, self.info, self.metadata = path, {k: TensorInfo(dtype, s) for k, s in shapes.items()}, {}


def header(tmp_path, name, shapes=None, **options):
    return Header(tmp_path / name, shapes or reference.published(), **options)


def test_every_published_layout_has_the_architecture_of_its_yaml():
    svd = architecture_in(load_config(CONFIGS / "svd.yaml"))
    assert None not in svd and svd == architecture_in(load_config(CONFIGS / "svd_xt.yaml"))
    assert architecture_of(info_of(reference.published())) == svd
    assert architecture_of(info_of(reference.diffusers())) == svd
    unet = {n.split("/", 1)[1]: s for n, s in reference.diffusers().items() if n.startswith("unet/")}
    assert architecture_of(info_of(unet))[:5] == svd[:5] and architecture_of(info_of(unet)).fits(svd)


def test_the_bundled_model_is_recognised():
    with open_checkpoint(CONFIGS.parent / "checkpoints" / "svd_tiny.safetensors") as source:
        assert find_model(source).name == "svd_tiny"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("svd.safetensors", "svd"),
        ("svd_fp16.safetensors", "svd"),
        ("SVD-XT.fp8_e4m3fn.safetensors", "svd_xt"),
        ("svd_xt-993f895f.ckpt", "svd_xt"),
        ("svd_xt_1_1.safetensors", "svd_xt"),
    ],
)
def test_names_tell_models_of_one_network_apart(tmp_path, name, model):
    assert find_model(header(tmp_path, name)).name == model


def test_where_the_name_does_not_tell_the_number_of_frames_does(tmp_path):
    source = header(tmp_path, "camera_finetune.safetensors")
    with pytest.raises(UserError, match=r"give --SVD\.num_frames=14 \(svd\) or 25 \(svd_xt\)"):
        find_model(source)
    assert find_model(source, num_frames=14).name == "svd"
    assert find_model(source, num_frames=24).name == "svd_xt"


def test_what_was_made_of_a_published_file_tells_its_name(tmp_path):
    source = header(tmp_path, "model.safetensors")
    source.metadata["source"] = "svd_xt_1_1.safetensors"
    assert find_model(source).name == "svd_xt"


def test_a_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
    digest = next(model.files["svd_xt.safetensors"] for model in known_models() if model.name == "svd_xt")
    monkeypatch.setattr("gm.weights.model_kind.file_sha256", lambda path: digest)
    assert find_model(header(tmp_path, "download", dtype="F32")).name == "svd_xt"


@pytest.mark.parametrize(
    ("table", "file", "model"),
    [
        ("sd15_safetensors_keys.tsv", "any.safetensors", "sd_1_5"),
        ("sd21_safetensors_keys.tsv", "v2-1_768-ema-pruned.safetensors", "sd_2_1"),
        ("sd21_safetensors_keys.tsv", "v2-1_512-ema-pruned_fp16.safetensors", "sd_2_1_base"),
        ("sdxl_base_safetensors_keys.tsv", "any.safetensors", "sd_xl_base"),
    ],
)
def test_models_of_pictures(tmp_path, table, file, model):
    assert find_model(header(tmp_path, file, reference.read_shapes(table)), "--SD.").name == model


def test_two_models_of_pictures_that_nothing_tells_apart(tmp_path):
    source = header(tmp_path, "any.safetensors", reference.read_shapes("sd21_safetensors_keys.tsv"))
    with pytest.raises(UserError, match=r"may be sd_2_1 or sd_2_1_base, .* give --SD\.config$"):
        find_model(source, "--SD.")


def test_a_mismatch_is_one_line_that_names_both_models(tmp_path):
    config = load_config(CONFIGS / "svd.yaml")
    words = r"is svd_tiny; .*svd\.yaml needs svd\.safetensors; .*configs/svd_tiny"
    tiny = CONFIGS.parent / "checkpoints" / "svd_tiny.safetensors"
    with open_checkpoint(tiny) as source, pytest.raises(UserError, match=words):
        require_fit(source, config, CONFIGS / "svd.yaml")
    require_fit(header(tmp_path, "any.safetensors"), config, CONFIGS / "svd.yaml")


def test_a_model_of_pictures_given_for_one_of_videos_and_the_reverse(tmp_path):
    xl = header(tmp_path, "xl.safetensors", reference.stable_diffusion("sdxl_base"))
    paths = {name: CONFIGS / f"{name}.yaml" for name in ("svd", "sd_xl_base")}
    with pytest.raises(UserError, match=r"is sd_xl_base; .*svd\.yaml needs svd\.safetensors; svd_tools/text_to_im"):
        require_fit(xl, load_config(paths["svd"]), paths["svd"])
    with pytest.raises(UserError, match=r"is svd or svd_.*; .*sd_xl_base\.yaml needs sd_xl_base_1.*; image_to_video"):
        require_fit(header(tmp_path, "svd.safetensors"), load_config(paths["sd_xl_base"]), paths["sd_xl_base"], "--SD.")


@pytest.mark.parametrize("config", [None, CONFIGS / "svd.yaml"])
def test_what_is_no_model_is_called_what_it_is(tmp_path, config):
    path = tmp_path / "l.safetensors"
    save_safetensors(path, {"diffusion_model.x.lora_A.weight": np.zeros((1, 2), np.float32)})
    with pytest.raises(UserError, match=r"--SVD\.checkpoint: .* is a LoRA, which goes on top of a checkpoint"):
        choose_files(config, path, "svd_tiny", "--SVD.")


def test_published_hashes_are_hashes_and_files_have_one_model():
    files = [(file, digest) for model in known_models() for file, digest in model.files.items()]
    assert len({file for file, _ in files}) == len(files) >= 6
    assert all(re.fullmatch("[0-9a-f]{64}|", digest) for _, digest in files)
