"""`convert.py` to and from diffusers folders, and what such a folder lacks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gm.errors import UserError
from gm.weights.checkpoint import save_safetensors
from gm.weights.diffusers_names import is_unused, placeless
from tests.svd_tools.small_model import (
    CONFIG,
    assert_same_tensors,
    parameters,
    read_all,
    refusal,
    run_convert,
    save_random,
)

ROOT = Path(__file__).resolve().parents[2]
UNET = "model.diffusion_model."


def test_diffusers_opens_the_folder_with_every_tensor_in_its_place(folder):
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionModelWithProjection

    for model, component in (
        (UNetSpatioTemporalConditionModel, "unet"),
        (AutoencoderKLTemporalDecoder, "vae"),
        (CLIPVisionModelWithProjection, "image_encoder"),
    ):
        loaded, info = model.from_pretrained(folder, subfolder=component, output_loading_info=True)
        assert not any(info.values()), (component, info)
        stored = load_file(next((folder / component).glob("*.safetensors")))
        state = loaded.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items() if name in state)


def test_a_unet_saved_by_diffusers_over_a_base(small, folder, tmp_path):
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel.from_config(
        UNetSpatioTemporalConditionModel.load_config(folder, subfolder="unet")
    )
    torch.manual_seed(1)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter)
    unet.save_pretrained(tmp_path / "unet_alone")
    file = tmp_path / "unet_alone" / "diffusion_pytorch_model.safetensors"
    for number, source in enumerate((tmp_path / "unet_alone", file)):
        out = tmp_path / str(number)
        run_convert(source, out, f"--base={small[0]}", "--to=diffusers")
        run_convert(next(out.iterdir()), out, "--to=safetensors")
        result = read_all(next(out.glob("*.safetensors")))
        assert_same_tensors({n: a for n, a in result.items() if not n.startswith(UNET)},
                            {n: a for n, a in small[1].items() if not n.startswith(UNET)})  # fmt: skip
        written = load_file(next(out.glob("*/unet/*.safetensors")))
        state = unet.state_dict()
        assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)


def test_a_bare_unet_over_a_base(small, tmp_path):
    bare = {name[len(UNET) :]: array + 1 for name, array in small[1].items() if name.startswith(UNET)}
    save_safetensors(tmp_path / "unet.safetensors", bare)
    run_convert(tmp_path / "unet.safetensors", tmp_path / "out", f"--base={small[0]}", "--to=safetensors")
    expected = {name: array + 1 if name.startswith(UNET) else array for name, array in small[1].items()}
    assert_same_tensors(read_all(tmp_path / "out" / "unet.safetensors"), expected)


def test_sharded_and_variant_folders(small, folder, tmp_path):
    from diffusers import UNetSpatioTemporalConditionModel

    shutil.copytree(folder, tmp_path / "sharded")
    unet = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet")
    shutil.rmtree(tmp_path / "sharded" / "unet")
    unet.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="4MB")
    assert len(list((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))) > 2
    run_convert(tmp_path / "sharded", tmp_path / "a", "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "a" / "sharded.safetensors"), small[1])

    unet.half().save_pretrained(tmp_path / "sharded" / "unet", variant="fp16", max_shard_size="4MB")
    for component in ("vae", "image_encoder"):
        file = next((tmp_path / "sharded" / component).glob("*.safetensors"))
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_name(file.stem + ".fp16.safetensors"))
    run_convert(tmp_path / "sharded", tmp_path / "b", "--to=safetensors", "--variant=fp16", "--leftovers=drop")
    result = read_all(tmp_path / "b" / "sharded.safetensors")
    without = placeless(small[1])
    for name, array in result.items():
        wanted = array if name in without else small[1][name].astype(np.float16)
        np.testing.assert_array_equal(array, wanted)
    assert "--variant" in refusal(folder, tmp_path / "c", "--variant=fp32")


def test_pickled_component(small, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    file = tmp_path / "old" / "image_encoder" / "model.safetensors"
    tensors = {**load_file(file), "vision_model.embeddings.position_ids": torch.arange(257)[None]}
    torch.save(tensors, file.with_name("pytorch_model.bin"))
    file.unlink()
    run_convert(tmp_path / "old", tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "old.safetensors"), small[1])


def test_the_image_decoder_variant(tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    config = tmp_path / "image_decoder.yaml"
    decoder = "{target: gm.networks.autoencoder.AutoencoderKL, params: {decoder_config: "
    decoder += "{target: gm.networks.autoencoder.Decoder}}}"
    config.write_text(f"base: {CONFIG}\nmodel: {{params: {{first_stage_config: {decoder}}}}}")
    weights = save_random(tmp_path / "plain.safetensors", config)
    assert "image_decoder" in refusal(tmp_path / "plain.safetensors", tmp_path).splitlines()[0]
    run_convert(tmp_path / "plain.safetensors", tmp_path, "--to=diffusers", config=config)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "plain")
    stored = load_file(tmp_path / "plain" / "vae" / "diffusion_pytorch_model.safetensors")
    state = pipeline.vae.state_dict()
    assert stored.keys() == state.keys() and all(torch.equal(state[name], stored[name]) for name in state)
    run_convert(tmp_path / "plain", tmp_path / "back", "--to=safetensors", config=config)
    assert_same_tensors(read_all(tmp_path / "back" / "plain.safetensors"), weights)
    (tmp_path / "plain" / "leftovers.safetensors").unlink()
    run_convert(tmp_path / "plain", tmp_path / "filled", "--to=safetensors", config=config)
    assert read_all(tmp_path / "filled" / "plain.safetensors").keys() == weights.keys()


def test_what_diffusers_cannot_express_is_refused(tmp_path):
    unet = "{params: {model_channels: 48, num_head_channels: 8, num_groups: 16}}"
    text = f"base: {ROOT / 'configs' / 'svd.yaml'}\nmodel: {{params: {{network_config: {unet}}}}}"
    (tmp_path / "narrow.yaml").write_text(text)
    from svd_tools.conversion.diffusers_config import diffusers_texts

    with pytest.raises(UserError, match="norms of 32 groups only"):
        diffusers_texts(tmp_path / "narrow.yaml", parameters(str(tmp_path / "narrow.yaml")))


def test_leftovers_are_filled_where_the_folder_lacks_them(small, folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "theirs")
    (tmp_path / "theirs" / "leftovers.safetensors").unlink()
    run_convert(tmp_path / "theirs", tmp_path, "--to=safetensors")
    result = read_all(tmp_path / "theirs.safetensors")
    assert result.keys() == small[1].keys()
    filled = placeless(result)
    assert f"{len(filled)} tensors that the source lacks were filled in" in caplog.text
    assert_same_tensors({n: a for n, a in result.items() if n not in filled},
                        {n: a for n, a in small[1].items() if n not in filled})  # fmt: skip
    assert not result["conditioner.embedders.0.open_clip.model.token_embedding.weight"].any()
    run_convert(tmp_path / "theirs", tmp_path / "based", "--to=safetensors", f"--base={small[0]}")
    assert_same_tensors(read_all(tmp_path / "based" / "theirs.safetensors"), small[1])


def test_the_filled_encoder_gives_the_conditioners_latents(folder, tmp_path):
    """The first stage has no quant_conv: its stand-in encoder has it multiplied into the last convolution."""
    from diffusers import AutoencoderKLTemporalDecoder

    shutil.copytree(folder, tmp_path / "theirs")
    (tmp_path / "theirs" / "leftovers.safetensors").unlink()
    run_convert(tmp_path / "theirs", tmp_path, "--to=safetensors")
    weights = read_all(tmp_path / "theirs.safetensors")
    vae = AutoencoderKLTemporalDecoder.from_pretrained(folder, subfolder="vae")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(x))
        for kind in ("weight", "bias"):
            stored = torch.from_numpy(weights[f"first_stage_model.encoder.conv_out.{kind}"])
            getattr(vae.encoder.conv_out, kind).copy_(stored)
        torch.testing.assert_close(vae.encoder(x), moments, rtol=1e-4, atol=1e-5)


def test_leftovers_dropped(small, tmp_path):
    run_convert(small[0], tmp_path, "--to=safetensors", "--leftovers=drop")
    result = read_all(tmp_path / "small.safetensors")
    assert_same_tensors(result, {name: array for name, array in small[1].items() if not is_unused(name)})
    run_convert(small[0], tmp_path, "--to=diffusers", "--leftovers=drop")
    assert not (tmp_path / "small" / "leftovers.safetensors").exists()
