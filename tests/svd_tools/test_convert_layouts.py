"""Files of other programs: ComfyUI's checkpoints, fp8 of both kinds and with scales, wrapped models, odd types."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gm.errors import UserError
from gm.weights.checkpoint import open_checkpoint, save_safetensors
from gm.weights.tensor_source import TensorInfo
from svd_tools.conversion.diffusers_layout import assemble
from svd_tools.conversion.lazy_tensor import LazyTensor, infos
from svd_tools.conversion.weight_files import Weights
from tests import reference
from tests.svd_tools.small_model import CONFIG, parameters, read_all, refusal, run_convert

VISUAL = "conditioner.embedders.0.open_clip.model.visual."
IMAGE_VAE, FIRST_STAGE = "conditioner.embedders.3.encoder.", "first_stage_model."
LINEAR = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CODES = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("int64"): "I64", np.dtype("bool"): "BOOL"}
TORCH = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


def write(path, tensors, as_types=()):
    """A safetensors file, byte by byte; `as_types` gives raw bytes another element type."""
    entries, data = {}, b""
    for name, array in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        dtype = dict(as_types).get(name) or CODES[array.dtype]
        shape = list(array.shape) if dtype != "C64" else [*array.shape[:-1], array.shape[-1] // 2]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.fixture(scope="module")
def comfyui(small, folder):
    """The small model's tensors as ComfyUI's node names them."""
    tensors = {n: a for n, a in small[1].items() if n.startswith(("model.diffusion_model.", FIRST_STAGE))}
    clip = load_file(folder / "image_encoder" / "model.safetensors")
    sigmas = {"edm_vpred.sigma_min": np.float32(0.0019999999), "edm_vpred.sigma_max": np.float32(699.99994)}
    return {**tensors, **{VISUAL + n: a for n, a in clip.items()}, **{n: np.array(v) for n, v in sigmas.items()}}


def test_comfyui_s_checkpoint(small, comfyui, tmp_path):
    save_safetensors(tmp_path / "comfy.safetensors", comfyui)
    run_convert(tmp_path / "comfy.safetensors", tmp_path / "out", "--to=safetensors")
    have, want = read_all(tmp_path / "out" / "comfy.safetensors"), small[1]
    assert have.keys() == want.keys()
    for name in want:
        if name.startswith(("model.diffusion_model.", FIRST_STAGE, VISUAL)):
            assert np.array_equal(have[name], want[name]), name
    encoder = {name[len(FIRST_STAGE) :]: a for name, a in want.items() if name.startswith(FIRST_STAGE + "encoder.")}
    assert encoder and all(np.array_equal(have[IMAGE_VAE + name], array) for name, array in encoder.items())
    quant = have[IMAGE_VAE + "quant_conv.weight"]
    assert np.array_equal(quant[:, :, 0, 0], np.eye(len(quant))) and not have[IMAGE_VAE + "quant_conv.bias"].any()


def test_comfyui_s_checkpoint_for_other_noise_levels(comfyui, tmp_path):
    save_safetensors(tmp_path / "x.safetensors", {**comfyui, "edm_vpred.sigma_max": np.array(80, np.float32)})
    assert "was made for sigmas of [" in refusal(tmp_path / "x.safetensors", tmp_path / "out")


def test_all_names_of_a_real_one():
    shapes = reference.comfyui()
    assert len(shapes) == 2322

    def tensor(name):
        number = 0.002 if name.endswith("min") else 700.0
        info = TensorInfo("F32", shapes[name])
        return LazyTensor(info, name, lambda: np.full(info.shape or 1, number, "<f4").tobytes())

    weights = Weights("x.safetensors", [], {name: tensor(name) for name in shapes})
    wanted = reference.published()
    assembled = assemble(weights, wanted, sigmas=(0.002, 700.0))
    assert {name: info.shape for name, info in infos(assembled).items()} == wanted


@pytest.mark.parametrize("kind", TORCH)
def test_fp8_is_widened(small, kind, tmp_path):
    rounded = {}
    types, stored = {}, {}
    for name, array in small[1].items():
        rounded[name] = stored[name] = array
        if name.startswith("model.") and array.ndim > 1:
            eight = torch.from_numpy(array).to(TORCH[kind])
            stored[name], types[name] = eight.view(torch.uint8).numpy(), kind
            rounded[name] = eight.float().numpy()
    path = write(tmp_path / "fp8.safetensors", stored, types)
    run_convert(path, tmp_path / "out", "--dtype=fp16", "--to=ckpt")
    have = read_all(tmp_path / "out" / "fp8_fp16.ckpt")
    assert all(np.array_equal(have[name], rounded[name].astype(np.float16)) for name in types)
    run_convert(path, tmp_path / "out", "--to=safetensors")
    assert all(np.array_equal(array, rounded[n]) for n, array in read_all(tmp_path / "out" / "fp8.safetensors").items())
    assert f"a .ckpt cannot hold {kind}" in refusal(path, tmp_path / "out", "--to=ckpt")


def test_scaled_fp8_and_wrappers(small, tmp_path):
    """ComfyUI's `scale_weight`, in a model that was saved inside PyTorch's compiler and data parallelism."""
    scale = np.array(0.25, np.float32)
    eight = torch.from_numpy(small[1][LINEAR] / scale).to(torch.float8_e4m3fn)
    unet, inside = "model.diffusion_model.", "module.model.diffusion_model._orig_mod."
    layer = LINEAR.replace(unet, inside)
    wrapped = {name.replace(unet, inside): array for name, array in small[1].items()}
    wrapped[layer] = eight.view(torch.uint8).numpy()
    extra = {layer.replace(".weight", ".scale_weight"): scale, layer.replace(".weight", ".scale_input"): scale}
    extra["model.diffusion_model.scaled_fp8"] = np.zeros(0, np.float32)
    path = write(tmp_path / "x.safetensors", {**wrapped, **extra}, {layer: "F8_E4M3"})
    with open_checkpoint(path) as source:
        assert {n: i.shape for n, i in source.info.items()} == parameters(str(CONFIG))
        assert source.info[LINEAR].dtype == "F32"
        assert np.array_equal(source.read(LINEAR), eight.float().numpy() * scale)
        assert bytes(source.read_raw(LINEAR)) == source.read(LINEAR).tobytes()
    run_convert(path, tmp_path / "out", "--to=safetensors")
    assert np.array_equal(read_all(tmp_path / "out" / "x.safetensors")[LINEAR], eight.float().numpy() * scale)


@pytest.mark.parametrize(("kind", "dtype"), [("I64", np.int64), ("BOOL", bool), ("C64", np.float32)])
def test_types_that_weights_have_not_are_refused_by_name(small, kind, dtype, tmp_path):
    array = small[1][LINEAR].astype(dtype)
    array = np.concatenate([array, array], axis=-1) if kind == "C64" else array
    path = write(tmp_path / "x.safetensors", {**small[1], LINEAR: array}, {LINEAR: kind})
    with pytest.raises(UserError, match=rf"1 of a type of no weights .*type: {LINEAR} is stored as {kind}"):
        run_convert(path, tmp_path / "out")
