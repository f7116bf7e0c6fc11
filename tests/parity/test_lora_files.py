"""LoRA files as PEFT, diffusers and kohya's scripts write them, merged here, against PEFT's own network."""

import copy
import re
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from gm.errors import UserError
from gm.weights.checkpoint import open_checkpoint
from gm.weights.diffusers_names import UNET, diffusers_places
from gm.weights.lora_file import MergedSource, read_lora, write_lora
from gm.weights.model_kind import PROJECT
from svd_tools.convert_lora import main as convert_lora
from tests.parity.peers import CONFIG, relative_error

RANK, ALPHA = 4, 10.0
PATTERNS = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"attn1.to_v": 3, r"^down_blocks\.0\..*\.to_k": 1}}


def adapted(peer, **options):
    """PEFT's network over the peer's UNet, every A and B random, and its configuration."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["to_q", "to_k", "to_v"], **options)
    unet = copy.deepcopy(peer.unet)
    peft.inject_adapter_in_model(config, unet)
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return unet, config


def output(unet):
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 2, 8, 8, 8, generator=generator), torch.randn(1, 1, 48, generator=generator)
    with torch.no_grad():
        return unet(x, 1.5, context, torch.tensor([[6.0, 127.0, 0.02]]), return_dict=False)[0].numpy()


def merged(peer, path, alpha=None):
    """The peer's UNet with a file's LoRA merged by this toolkit into its checkpoint; and what was said of alpha."""
    with open_checkpoint(peer.checkpoint) as source:
        lora = read_lora(path, {name: info.shape for name, info in source.info.items()}, alpha)
        places = diffusers_places(source.info)
        weights = MergedSource(source, lora)
        state = {
            places[name].names[0]: torch.from_numpy(np.array(weights.read(name)))
            for name in weights.deltas
            if places[name].component == UNET
        }
        unet = copy.deepcopy(peer.unet)
        assert len(state) == len(lora.layers) and not unet.load_state_dict(state, strict=False).unexpected_keys
        return unet, lora.note


def as_peft_folder(unet, config, folder):
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(1, 1)), peft.LoraConfig(target_modules=["0"]))
    model.save_pretrained(folder)  # for the names of its files; the weights and their configuration are the UNet's
    state = peft.get_peft_model_state_dict(unet)
    save_file({f"base_model.model.{name}": t for name, t in state.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(folder)
    return folder


def as_diffusers(unet, config, folder, metadata=True):
    told = {"unet_lora_adapter_metadata": config.to_dict()} if metadata else {}
    StableDiffusionPipeline.save_lora_weights(folder, peft.get_peft_model_state_dict(unet), **told)
    return folder / "pytorch_lora_weights.safetensors"


def as_plain_diffusers(unet, config, folder):
    return as_diffusers(unet, config, folder, metadata=False)


def as_state_dict(unet, config, folder):
    save_file(peft.get_peft_model_state_dict(unet), folder / "lora.safetensors")
    return folder / "lora.safetensors"


def as_diffusers_kohya(unet, config, folder):
    state = {f"unet.{name}": t for name, t in peft.get_peft_model_state_dict(unet).items()}
    kohya = {name: t for name, t in convert_state_dict_to_kohya(state).items() if not name.endswith(".alpha")}
    save_file(kohya, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def as_kohya(unet, config, folder):
    tensors = {}
    for name, tensor in peft.get_peft_model_state_dict(unet).items():
        layer, part = re.match(r"(.*)\.lora_([AB])\.weight", name).groups()
        stem = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{stem}.lora_{'down' if part == 'A' else 'up'}.weight"] = tensor
        tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("write", [as_peft_folder, as_diffusers])
def test_alpha_patterns_and_rslora_from_where_each_keeps_them(peer, tmp_path, write, rslora):
    unet, config = adapted(peer, use_rslora=rslora, **PATTERNS)
    ours, note = merged(peer, write(unet, config, tmp_path))
    assert relative_error(output(ours), output(unet)) <= 1e-4 < relative_error(output(peer.unet), output(unet))
    assert "alpha is " in note and ("adapter_config.json" in note or "lora_adapter_metadata" in note)


@pytest.mark.parametrize("write", [as_plain_diffusers, as_state_dict, as_diffusers_kohya])
def test_files_without_an_alpha_take_the_given_one_or_the_rank(peer, tmp_path, write):
    unet, config = adapted(peer)
    path = write(unet, config, tmp_path)
    ours, note = merged(peer, path, ALPHA)
    assert relative_error(output(ours), output(unet)) <= 1e-4 and note == "alpha is 10, from what was given"
    other, note = merged(peer, path)
    assert relative_error(output(other), output(unet)) > 1e-2
    assert note.startswith("alpha is 4, from the rank; the file keeps none")


def test_kohya_s_alpha_is_among_the_tensors_as_ours_is(peer, tmp_path):
    unet, config = adapted(peer)
    path = as_kohya(unet, config, tmp_path)
    ours, note = merged(peer, path)
    assert relative_error(output(ours), output(unet)) <= 1e-4 and note == ""
    with open_checkpoint(peer.checkpoint) as source:
        lora = read_lora(path, {name: info.shape for name, info in source.info.items()})
    write_lora(tmp_path / "own.safetensors", lora.layers, {})
    again, _ = merged(peer, tmp_path / "own.safetensors")
    assert relative_error(output(again), output(unet)) <= 1e-4


def test_an_alpha_from_two_sides_and_unknown_keys_are_refused(peer, tmp_path):
    unet, config = adapted(peer)
    with pytest.raises(UserError, match=r"adapter_config\.json says what alpha is; leave yours \(8\) out"):
        merged(peer, as_peft_folder(unet, config, tmp_path), 8.0)
    state = load_file(as_state_dict(unet, config, tmp_path))
    layer = next(iter(state)).partition(".lora_")[0]
    save_file({**state, f"{layer}.lora_magnitude_vector": torch.ones(4)}, tmp_path / "dora.safetensors")
    with pytest.raises(UserError, match=rf"1 tensors that are no LoRA's: {re.escape(layer)}\.lora_magnitude_vector"):
        merged(peer, tmp_path / "dora.safetensors")


def test_readme_s_lines_bring_a_lora_into_diffusers(peer, tmp_path, monkeypatch):
    unet, config = adapted(peer)
    path = as_kohya(unet, config, tmp_path)
    monkeypatch.chdir(tmp_path)
    convert_lora([f"--lora={path}", "--to=diffusers", "--out=pytorch_lora_weights.safetensors", f"--config={CONFIG}"])
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    pipe = SimpleNamespace(unet=copy.deepcopy(peer.unet))
    exec(code, {"pipe": pipe})
    assert relative_error(output(pipe.unet), output(unet)) <= 1e-4
