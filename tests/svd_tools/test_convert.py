"""`convert.py` at small width: every layout and back, bit for bit, and every failure in one line."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gm.checkpoint import file_sha256, open_checkpoint, save_safetensors
from gm.errors import UserError
from gm.names import to_reference
from svd_tools import convert, targets
from svd_tools.key_map import has_no_place, is_unused
from tests.svd_tools.small_model import CONFIG, assert_same_tensors, parameters, read_all, save_random

ROOT = Path(__file__).resolve().parents[2]
UNET = "model.diffusion_model."


@pytest.fixture(autouse=True)
def networks_built_once(monkeypatch):
    monkeypatch.setattr(convert, "expected_parameters", parameters)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(file, weights) of a random published single file."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    return path, save_random(path)


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """A diffusers folder of the same weights."""
    out = tmp_path_factory.mktemp("diffusers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "expected_parameters", parameters)
        run(small[0], out, "--to=diffusers")
    return out / "small"


def run(source, out_dir, *flags, config=CONFIG):
    convert.main([f"--pt_weights_file={source}", f"--config={config}", f"--out_dir={out_dir}", *flags])


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as error:
        run(*args, **kwargs)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- round trips


def test_safetensors_to_ckpt_and_back(small, tmp_path):
    run(small[0], tmp_path)
    loaded = ms.load_checkpoint(str(tmp_path / "small.ckpt"))
    assert loaded.keys() == {to_reference(name) for name in small[1]}
    assert_same_tensors({n: loaded[to_reference(n)].asnumpy() for n in small[1]}, small[1])
    run(tmp_path / "small.ckpt", tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "small.safetensors"), small[1])


def test_a_ckpt_that_mindspore_saved_is_converted(small, tmp_path):
    saved = [{"name": to_reference(n), "data": ms.Tensor(a)} for n, a in small[1].items()]
    ms.save_checkpoint(saved, str(tmp_path / "theirs.ckpt"))
    run(tmp_path / "theirs.ckpt", tmp_path, "--to=safetensors")
    assert_same_tensors({n: t.numpy() for n, t in load_file(tmp_path / "theirs.safetensors").items()}, small[1])


def test_safetensors_to_diffusers_and_back(small, folder, tmp_path):
    run(folder, tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "small.safetensors"), small[1])


def test_one_content_gives_one_hash(small, folder, tmp_path):
    run(folder, tmp_path / "a", "--to=safetensors")
    run(small[0], tmp_path / "b", "--to=safetensors")
    hashes = {open_checkpoint(tmp_path / x / "small.safetensors").metadata["data_sha256"] for x in "ab"}
    assert len(hashes) == 1


@pytest.mark.parametrize("wrapper", ["state_dict", None])
def test_a_pickle(small, tmp_path, wrapper):
    state = {name: torch.from_numpy(array) for name, array in small[1].items()}
    torch.save({wrapper: state, "global_step": 7} if wrapper else state, tmp_path / "svd.pt")
    run(tmp_path / "svd.pt", tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "svd.safetensors"), small[1])


# ------------------------------------------------------------------------------------------------- diffusers


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
        run(source, out, f"--base={small[0]}", "--to=diffusers")
        run(next(out.iterdir()), out, "--to=safetensors")
        result = read_all(next(out.glob("*.safetensors")))
        assert_same_tensors({n: a for n, a in result.items() if not n.startswith(UNET)},
                            {n: a for n, a in small[1].items() if not n.startswith(UNET)})  # fmt: skip
        written = load_file(next(out.glob("*/unet/*.safetensors")))
        state = unet.state_dict()
        assert written.keys() == state.keys() and all(torch.equal(written[name], state[name]) for name in state)


def test_a_bare_unet_over_a_base(small, tmp_path):
    bare = {name[len(UNET) :]: array + 1 for name, array in small[1].items() if name.startswith(UNET)}
    save_safetensors(tmp_path / "unet.safetensors", bare)
    run(tmp_path / "unet.safetensors", tmp_path / "out", f"--base={small[0]}", "--to=safetensors")
    expected = {name: array + 1 if name.startswith(UNET) else array for name, array in small[1].items()}
    assert_same_tensors(read_all(tmp_path / "out" / "unet.safetensors"), expected)


def test_sharded_and_variant_folders(small, folder, tmp_path):
    from diffusers import UNetSpatioTemporalConditionModel

    shutil.copytree(folder, tmp_path / "sharded")
    unet = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet")
    shutil.rmtree(tmp_path / "sharded" / "unet")
    unet.save_pretrained(tmp_path / "sharded" / "unet", max_shard_size="4MB")
    assert len(list((tmp_path / "sharded" / "unet").glob("*-of-*.safetensors"))) > 2
    run(tmp_path / "sharded", tmp_path / "a", "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "a" / "sharded.safetensors"), small[1])

    unet.half().save_pretrained(tmp_path / "sharded" / "unet", variant="fp16", max_shard_size="4MB")
    for component in ("vae", "image_encoder"):
        file = next((tmp_path / "sharded" / component).glob("*.safetensors"))
        halves = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(halves, file.with_name(file.stem + ".fp16.safetensors"))
    run(tmp_path / "sharded", tmp_path / "b", "--to=safetensors", "--variant=fp16", "--leftovers=drop")
    result = read_all(tmp_path / "b" / "sharded.safetensors")
    for name, array in result.items():
        wanted = array if has_no_place(name) else small[1][name].astype(np.float16)
        np.testing.assert_array_equal(array, wanted)
    assert "--variant" in refusal(folder, tmp_path / "c", "--variant=fp32")


def test_pickled_component(small, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    file = tmp_path / "old" / "image_encoder" / "model.safetensors"
    tensors = {**load_file(file), "vision_model.embeddings.position_ids": torch.arange(257)[None]}
    torch.save(tensors, file.with_name("pytorch_model.bin"))
    file.unlink()
    run(tmp_path / "old", tmp_path, "--to=safetensors")
    assert_same_tensors(read_all(tmp_path / "old.safetensors"), small[1])


def test_the_image_decoder_variant(tmp_path):
    from diffusers import StableVideoDiffusionPipeline

    config = tmp_path / "image_decoder.yaml"
    decoder = "{target: gm.autoencoder.AutoencoderKL, params: {decoder_config: {target: gm.autoencoder.Decoder}}}"
    config.write_text(f"base: {CONFIG}\nmodel: {{params: {{first_stage_config: {decoder}}}}}")
    weights = save_random(tmp_path / "plain.safetensors", config)
    assert "image_decoder" in refusal(tmp_path / "plain.safetensors", tmp_path).splitlines()[0]
    run(tmp_path / "plain.safetensors", tmp_path, "--to=diffusers", config=config)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "plain")
    stored = load_file(tmp_path / "plain" / "vae" / "diffusion_pytorch_model.safetensors")
    state = pipeline.vae.state_dict()
    assert stored.keys() == state.keys() and all(torch.equal(state[name], stored[name]) for name in state)
    run(tmp_path / "plain", tmp_path / "back", "--to=safetensors", config=config)
    assert_same_tensors(read_all(tmp_path / "back" / "plain.safetensors"), weights)
    (tmp_path / "plain" / "leftovers.safetensors").unlink()
    run(tmp_path / "plain", tmp_path / "filled", "--to=safetensors", config=config)
    assert read_all(tmp_path / "filled" / "plain.safetensors").keys() == weights.keys()


def test_what_diffusers_cannot_express_is_refused(tmp_path):
    unet = "{params: {model_channels: 48, num_head_channels: 8}}"
    text = f"base: {ROOT / 'configs' / 'svd.yaml'}\nmodel: {{params: {{network_config: {unet}}}}}"
    (tmp_path / "narrow.yaml").write_text(text)
    from svd_tools.diffusers_config import diffusers_texts

    with pytest.raises(UserError, match="multiples of 32"):
        diffusers_texts(tmp_path / "narrow.yaml", parameters(str(tmp_path / "narrow.yaml")))


# ------------------------------------------------------------------------------------------------- leftovers


def test_leftovers_are_filled_where_the_folder_lacks_them(small, folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "theirs")
    (tmp_path / "theirs" / "leftovers.safetensors").unlink()
    run(tmp_path / "theirs", tmp_path, "--to=safetensors")
    result = read_all(tmp_path / "theirs.safetensors")
    assert result.keys() == small[1].keys()
    filled = [name for name in result if has_no_place(name)]
    assert f"{len(filled)} tensors that the source lacks were filled in" in caplog.text
    assert_same_tensors({n: a for n, a in result.items() if n not in filled},
                        {n: a for n, a in small[1].items() if n not in filled})  # fmt: skip
    assert not result["conditioner.embedders.0.open_clip.model.token_embedding.weight"].any()
    run(tmp_path / "theirs", tmp_path / "based", "--to=safetensors", f"--base={small[0]}")
    assert_same_tensors(read_all(tmp_path / "based" / "theirs.safetensors"), small[1])


def test_the_filled_encoder_gives_the_conditioners_latents(folder, tmp_path):
    """The first stage has no quant_conv: its stand-in encoder has it multiplied into the last convolution."""
    from diffusers import AutoencoderKLTemporalDecoder

    shutil.copytree(folder, tmp_path / "theirs")
    (tmp_path / "theirs" / "leftovers.safetensors").unlink()
    run(tmp_path / "theirs", tmp_path, "--to=safetensors")
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
    run(small[0], tmp_path, "--to=safetensors", "--leftovers=drop")
    result = read_all(tmp_path / "small.safetensors")
    assert_same_tensors(result, {name: array for name, array in small[1].items() if not is_unused(name)})
    run(small[0], tmp_path, "--to=diffusers", "--leftovers=drop")
    assert not (tmp_path / "small" / "leftovers.safetensors").exists()


# ------------------------------------------------------------------------------------------------- types, metadata


def test_half_precision(small, tmp_path):
    run(small[0], tmp_path, "--to=ckpt", "--dtype=fp16")
    assert_same_tensors(read_all(tmp_path / "small_fp16.ckpt"), {n: a.astype(np.float16) for n, a in small[1].items()})


def test_bfloat16_to_and_from_safetensors_without_loss(small, tmp_path):
    run(small[0], tmp_path, "--to=safetensors", "--dtype=bf16")
    bf16 = load_file(tmp_path / "small_bf16.safetensors")
    for name, array in small[1].items():
        assert torch.equal(bf16[name], torch.from_numpy(array).bfloat16())
    run(tmp_path / "small_bf16.safetensors", tmp_path / "d", "--to=diffusers")
    run(tmp_path / "d" / "small_bf16", tmp_path / "b", "--to=safetensors")
    back = load_file(tmp_path / "b" / "small_bf16.safetensors")
    assert back.keys() == bf16.keys() and all(torch.equal(back[name], bf16[name]) for name in bf16)
    run(tmp_path / "small_bf16.safetensors", tmp_path, "--to=ckpt")
    loaded = ms.load_checkpoint(str(tmp_path / "small_bf16.ckpt"))
    first = next(iter(bf16))
    assert loaded[to_reference(first)].dtype == ms.bfloat16
    np.testing.assert_array_equal(loaded[to_reference(first)].float().asnumpy(), bf16[first].float().numpy())


def test_hashes_and_settings_are_in_the_metadata(small, folder, tmp_path, capsys):
    source = tmp_path / "in" / "small.safetensors"
    source.parent.mkdir()
    save_safetensors(source, small[1], {"note": "mine"})
    run(source, tmp_path, "--to=safetensors")
    with open_checkpoint(tmp_path / "small.safetensors") as result:
        assert result.metadata["source"] == "small.safetensors" and result.metadata["note"] == "mine"
        assert result.metadata["source_sha256"] == file_sha256(source)
        assert result.metadata["data_sha256"] in capsys.readouterr().out
        assert result.metadata["format"] == "pt"
    run(folder, tmp_path / "b", "--to=safetensors")
    with open_checkpoint(tmp_path / "b" / "small.safetensors") as result:
        hashes = json.loads(result.metadata["source_sha256"])
        name = "small/unet/diffusion_pytorch_model.safetensors"
        assert len(hashes) == 4 and hashes[name] == file_sha256(folder.parent / name)


def test_dry_run_prints_the_map_and_writes_nothing(small, tmp_path, capsys):
    run(small[0], tmp_path / "out", "--to=diffusers", "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "out").exists()
    assert (
        "unet/diffusion_pytorch_model.safetensors: conv_in.weight F32 (32, 8, 3, 3) <- "
        "small.safetensors: model.diffusion_model.input_blocks.0.0.weight"
    ) in lines
    assert lines[-1].startswith(f"would write {tmp_path / 'out' / 'small'}")


def test_not_a_number_is_warned_of_by_name(small, tmp_path, caplog):
    weights = dict(small[1])
    name = next(iter(weights))
    weights[name] = np.full_like(weights[name], np.nan)
    save_safetensors(tmp_path / "nan.safetensors", weights)
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "nan.safetensors", tmp_path)
    assert [name in record.message for record in caplog.records] == [True]
    assert (tmp_path / "nan.ckpt").exists()


# ------------------------------------------------------------------------------------------------- failures


def test_missing_extra_and_misshapen_tensors_are_all_listed(small, tmp_path):
    weights = dict(small[1])
    missing = [name for name in weights if "input_blocks.4." in name]
    for name in missing:
        del weights[name]
    weights["surplus"] = np.ones(3, np.float32)
    weights[UNET + "out.2.bias"] = np.ones((4, 1), np.float32)
    save_safetensors(tmp_path / "a.safetensors", weights)
    message = refusal(tmp_path / "a.safetensors", tmp_path)
    assert all(f"missing: {name} " in message for name in missing)
    assert "extra: surplus (3,)" in message and "out.2.bias is (4, 1), (4,) is wanted" in message
    assert len(message.splitlines()) == len(missing) + 3
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_extra_tensors_can_be_left_out(small, tmp_path, caplog):
    save_safetensors(tmp_path / "a.safetensors", {**small[1], "epoch_num": np.array(3)})
    assert "extra: epoch_num" in refusal(tmp_path / "a.safetensors", tmp_path)
    run(tmp_path / "a.safetensors", tmp_path / "out", "--to=safetensors", "--drop_extra")
    assert "epoch_num" in caplog.text
    assert_same_tensors(read_all(tmp_path / "out" / "a.safetensors"), small[1])


def test_a_folder_with_a_foreign_unet(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    file = tmp_path / "bad" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"] = torch.zeros(32, 4, 3, 3)
    del tensors["conv_out.bias"]
    save_file(tensors, file)
    message = refusal(tmp_path / "bad", tmp_path / "out")
    assert "unet/conv_in.weight is (32, 4, 3, 3), (32, 8, 3, 3) is wanted" in message
    assert "missing: unet/conv_out.bias (4,)" in message and len(message.splitlines()) == 3


def test_wrong_architecture(small, tmp_path):
    save_safetensors(tmp_path / "sd.safetensors", {"cond_stage_model.x": np.ones(2, np.float32)})
    assert "another architecture" in refusal(tmp_path / "sd.safetensors", tmp_path).splitlines()[0]
    assert "of another shape" in refusal(small[0], tmp_path, config=ROOT / "configs" / "svd_tiny.yaml")


def test_a_part_alone_asks_for_a_base_and_a_whole_refuses_one(small, tmp_path):
    unet = {name: array for name, array in small[1].items() if name.startswith(UNET)}
    save_safetensors(tmp_path / "unet.safetensors", unet)
    message = refusal(tmp_path / "unet.safetensors", tmp_path)
    assert "only the unet" in message and "--base" in message
    assert "leave --base out" in refusal(small[0], tmp_path, f"--base={small[0]}")


def test_unusable_sources(small, tmp_path):
    assert "there is no checkpoint" in refusal(tmp_path / "no.safetensors", tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(small[0].read_bytes()[:-100])
    assert "truncated" in refusal(tmp_path / "cut.safetensors", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no diffusers folder" in refusal(tmp_path / "empty", tmp_path)
    (tmp_path / "unet").mkdir()
    assert "holds no weights" in refusal(tmp_path, tmp_path / "out")


def test_nothing_is_overwritten(small, tmp_path):
    run(small[0], tmp_path)
    before = (tmp_path / "small.ckpt").read_bytes()
    assert "exists already" in refusal(small[0], tmp_path)
    assert (tmp_path / "small.ckpt").read_bytes() == before
    assert "exists already" in refusal(small[0], small[0].parent, "--to=safetensors")


def test_no_room_and_unwritable_targets(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert "--out_dir" in refusal(small[0], tmp_path / "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    assert "no room" in refusal(small[0], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("target", ["ckpt", "diffusers"])
def test_the_disk_fills_up_while_writing(small, tmp_path, target):
    """A limit on file sizes stands in for a full disk: the write fails half-way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        message = refusal(small[0], tmp_path, f"--to={target}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith("cannot write") and "\n" not in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("target", ["ckpt", "diffusers"])
def test_an_interrupted_run_leaves_nothing(small, tmp_path, monkeypatch, number, target):
    """The signal comes while the 50th tensor is written."""
    calls = []

    def signal_at_50(raw, info):
        calls.append(info)
        if len(calls) == 50:
            assert list(tmp_path.glob(".small.tmp-*"))
            os.kill(os.getpid(), number)
        return 0, 0

    handler = signal.getsignal(number)
    monkeypatch.setattr(targets, "count_not_finite", signal_at_50)
    message = refusal(small[0], tmp_path, f"--to={target}")
    assert message == f"interrupted ({number.name}); nothing was written"
    assert len(calls) == 50 and os.listdir(tmp_path) == []
    assert signal.getsignal(number) is handler


def test_the_command_runs_from_another_folder(small, tmp_path):
    command = [sys.executable, str(ROOT / "svd_tools" / "convert.py"), f"--pt_weights_file={small[0]}"]
    command += [f"--config={CONFIG}", "--out_dir=out"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(f"wrote out/small.ckpt: {len(small[1])} tensors")
