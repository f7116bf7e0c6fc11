import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gm.errors import UserError
from gm.weights.checkpoint import file_sha256, open_checkpoint, save_safetensors
from gm.weights.lora_file import LowRank, read_lora, write_lora
from gm.weights.safetensors_file import write_safetensors
from gm.weights.tensor_source import TensorInfo
from svd_tools.conversion.lazy_tensor import to_bfloat16
from svd_tools.merge_lora import main
from tests.svd_tools.small_model import read_all

PROJECT = Path(__file__).parents[2]
LAYER = "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q"
NORM = "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1"
RANK, ALPHA = 2, 3.0


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    shapes = {f"{LAYER}.weight": (24, 16), f"{NORM}.weight": (24,), "first_stage_model.decoder.conv_in.bias": (7,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def files(tmp_path, weights):
    """The flags that merge a LoRA into a checkpoint, and what it has to give."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((RANK, 16), (24, RANK)))
    save_safetensors(tmp_path / "model.safetensors", weights, {"title": "base"})
    write_lora(tmp_path / "lora.safetensors", {LAYER: LowRank(a, b, ALPHA)}, {})
    flags = [f"--checkpoint={tmp_path}/model.safetensors", f"--lora={tmp_path}/lora.safetensors"]
    return flags, ALPHA / RANK * (b.astype(np.float64) @ a)


@pytest.mark.parametrize("scale", [1.0, -0.4, 0.0])
def test_only_the_adapted_weight_changes_and_by_the_formula(tmp_path, weights, files, scale, capsys):
    flags, delta = files
    out = tmp_path / "sub" / "merged.safetensors"
    main([*flags, f"--out={out}", f"--scale={scale}"])
    have = read_all(out)
    changed = have.pop(f"{LAYER}.weight")
    assert np.array_equal(changed, (weights.pop(f"{LAYER}.weight") + scale * delta).astype(np.float32))
    assert have.keys() == weights.keys() and all(np.array_equal(have[name], weights[name]) for name in weights)
    printed = capsys.readouterr().out
    assert f"{out}: 1 of 3 tensors merged with scale {scale:g}" in printed
    with open_checkpoint(out) as source:
        assert source.metadata["title"] == "base" and source.metadata["lora_scale"] == str(scale)
        assert source.metadata["lora_sha256"] == file_sha256(tmp_path / "lora.safetensors")
        assert source.metadata["data_sha256"] in printed


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "F16"), ("bf16", "BF16")])
def test_a_half_precision_checkpoint_stays_so(tmp_path, weights, files, dtype, stored):
    flags, delta = files
    main([*flags, f"--out={tmp_path}/half.safetensors", "--scale=0", f"--dtype={dtype}"])
    main([f"--checkpoint={tmp_path}/half.safetensors", flags[1], f"--out={tmp_path}/merged.safetensors"])
    half, out = open_checkpoint(tmp_path / "half.safetensors"), open_checkpoint(tmp_path / "merged.safetensors")
    with half, out:
        assert {info.dtype for info in out.info.values()} == {stored}
        want = (half.read(f"{LAYER}.weight") + delta).astype(np.float32)
        bits = to_bfloat16(want) if stored == "BF16" else want.astype(np.float16)
        assert bytes(out.read_raw(f"{LAYER}.weight")) == bits.tobytes()
        assert bytes(out.read_raw(f"{NORM}.weight")) == bytes(half.read_raw(f"{NORM}.weight"))


def test_the_reference_toolkits_ckpt_in_and_out(tmp_path, weights, files):
    flags, delta = files
    main([*flags, f"--out={tmp_path}/once.ckpt"])
    assert b"norm1.gamma" in (tmp_path / "once.ckpt").read_bytes()
    main([f"--checkpoint={tmp_path}/once.ckpt", flags[1], f"--out={tmp_path}/back.safetensors", "--scale=-1"])
    back = read_all(tmp_path / "back.safetensors")
    assert all(np.abs(back[name] - weights[name]).max() < 1e-6 for name in weights)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--scale=inf"], r"^--scale: inf cannot be used"),
        (["--out=merged.bin"], r"^--out: merged\.bin should end in \.safetensors or \.ckpt"),
        (["--lora=nowhere.safetensors"], r"there is no checkpoint nowhere\.safetensors"),
    ],
)
def test_unusable_flags(tmp_path, files, extra, message):
    with pytest.raises(UserError, match=message):
        main([*files[0], f"--out={tmp_path}/merged.safetensors", *extra])
    assert not (tmp_path / "merged.safetensors").exists()


def test_nothing_is_overwritten(tmp_path, files):
    with pytest.raises(UserError, match=r"^--out: .*lora\.safetensors exists already"):
        main([*files[0], f"--out={tmp_path}/lora.safetensors"])
    assert read_lora(tmp_path / "lora.safetensors").layers


def test_a_lora_of_another_model_from_anywhere(tmp_path, weights, files):
    weights[f"{LAYER}.weight"] = np.zeros((24, 8), np.float32)
    save_safetensors(tmp_path / "model.safetensors", weights)
    command = [sys.executable, str(PROJECT / "svd_tools" / "merge_lora.py"), *files[0], "--out=x/merged.safetensors"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    (line,) = result.stderr.strip().splitlines()
    assert result.returncode == 2 and not (tmp_path / "x").exists()
    assert line.startswith("error: ") and "LoRA of another model: 1 of its 1 layers do not fit" in line
    assert line.endswith(f"; shape: {LAYER}.weight is (24, 8), the LoRA is for (24, 16)")


def test_fp32_keeps_a_small_change_of_fp16_weights_and_a_loss_is_said(tmp_path, weights, files, caplog):
    flags, delta = files
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    save_safetensors(tmp_path / "half.safetensors", half)
    flags, scale = [f"--checkpoint={tmp_path}/half.safetensors", flags[1]], 1e-3
    main([*flags, f"--out={tmp_path}/wide.safetensors", "--dtype=fp32", f"--scale={scale}"])
    change = read_all(tmp_path / "wide.safetensors")[f"{LAYER}.weight"] - half[f"{LAYER}.weight"].astype(np.float64)
    assert np.linalg.norm(change - scale * delta) < 1e-4 * np.linalg.norm(scale * delta) and not caplog.records
    main([*flags, f"--out={tmp_path}/narrow.safetensors", f"--scale={scale}"])
    assert "of what the LoRA changes" in caplog.text and "--dtype=fp32 keeps it" in caplog.text


def test_merged_fp8_weights_need_another_type(tmp_path, weights, files):
    info = {name: TensorInfo("F8_E4M3" if name.startswith(LAYER) else "F32", a.shape) for name, a in weights.items()}
    write_safetensors(tmp_path / "8.safetensors", info, lambda name: bytes(info[name].num_bytes), {})
    with pytest.raises(UserError, match=r"--dtype: a merged .*to_q\.weight cannot be stored as F8_E4M3"):
        main([f"--checkpoint={tmp_path}/8.safetensors", files[0][1], f"--out={tmp_path}/m.safetensors"])
