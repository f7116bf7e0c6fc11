"""Files that were answered with a traceback, a hang, much memory or by running what they ask for: what is right now."""

import re
import shutil
from pathlib import Path

import pytest

from gm.config.factory import load_model
from gm.errors import UserError, shown
from svd_tiny import make_clips
from tests.e2e.training import PROJECT
from tests.safety.doors import DOORS, animate, files_in, merge, score
from tests.svd_tools.small_model import run_convert

CORPUS = Path(__file__).with_name("corpus")
NO_CLASS = "is not a class of this project that it may name"
NO_HEADER = r"cannot be read: its safetensors header cannot be read \("
ANSWERS = {
    "c/dim_zero_big.ckpt": "it has a tensor of more than 16 axes or",
    "csv/len_19.csv": "row 2: no file 0.mp4 in",
    "csv/url.csv": "row 2: no file http://127.0.0.1:8765/x.mp4 in",
    "img/big_grey1.png": "it has more than 100 million pixels; shrink it",
    "img/big_rgba.png": "it has more than 100 million pixels; shrink it",
    "l/alpha_complex.safetensors": "other values than floating-point numbers and one alpha",
    "l/alpha_inf.safetensors": "has NaN or infinite values",
    "l/alpha_only.safetensors": "holds no LoRA|1 layers without an A or a B",
    "l/bool.safetensors": "other values than floating-point numbers",
    "l/cut.safetensors": "it is truncated: 5394 bytes, and its header says 5444",
    "l/f8.safetensors": "is a LoRA of another model: 1 of its 1 layers do not fit",  # fp8 is read
    "l/floats.safetensors": NO_HEADER,
    "l/int.safetensors": "other values than floating-point numbers",
    "l/misfit.safetensors": r"A \(2, 64\) and B \(64, 3\)",
    "l/neg.safetensors": NO_HEADER,
    "l/no_b.safetensors": r"1 layers without an A or a B: model\.diffusion_model\.input_blocks",
    "l/rank0.safetensors": r"A \(0, 64\) and B \(64, 0\)",
    "l/three_d.safetensors": r"A \(1, 64, 1\) and B \(64, 1, 1\)",
    "l/zero_huge.safetensors": NO_HEADER,
    "p/byteskey.pt": "holds no dictionary of tensors by their names",
    "p/p2_dot.pt": "cannot be read as a PyTorch file",
    "p/p2_only.pt": "cannot be read as a PyTorch file",
    "s/deep.safetensors": "it is nested too deep",
    **{f"s/{name}.safetensors": NO_HEADER for name in (
        "dtype_list", "dtype_null", "dtype_unknown", "off_bool", "off_half", "off_huge", "off_negbig", "off_one",
        "metadata_list", "shape_bool", "shape_float", "shape_infinity", "shape_many", "shape_neg1", "shape_nullonly",
        "shape_strs",
    )},
    "s/off_past.safetensors": "does not start where the tensor before it ends",
    "s/off_swapped.safetensors": "its header gives a -4 bytes, its shape takes 4",
    "v/avi_lie": "how it moves cannot be told",
    "x/jump_avi": "how it moves cannot be told",  # three frames: its writer stopped at the jump
    "x/jump_mp4": "has no frame rate",
    "x/nocodec": None,  # one of its two files is sound
    "x/photo_1x5000": "a side is more than 20 times the other; crop it",
    "x/photo_2x3000": "a side is more than 20 times the other; crop it",
    "x/sar_max": "more than 20 times as wide as high",
    "y/bomb_flags.yaml": "has more than 100000 values, its aliases written out",
    "y/config_flags.yaml": "names another file as `config`",
    "y/m_blocks.yaml": "num_res_blocks=100000; expected a whole number from 1 to 32",
    "y/m_cfgneg.yaml": "max_scale=-5; expected a number from 0 to 100",
    "y/m_embed0.yaml": "it needs embedders, one or more",
    "y/m_frames.yaml": "num_frames=-1; expected a whole number from 1 to 1024",
    "y/m_groups0.yaml": "num_groups=0; expected a whole number from 1",
    "y/m_heads0.yaml": "num_head_channels=0; expected a whole number from 1",
    "y/m_list.yaml": "Cannot merge incompatible container types",
    "y/m_mult2.yaml": r"channel_mult=\[0,0\]; expected a list",
    "y/m_netlist.yaml": "Cannot merge incompatible container types",
    "y/m_netstr.yaml": "needs `target: package.module.Class` in unet",
    "y/m_odd.yaml": "num_groups=16 does not divide the 63 channels",
    "y/m_sampcls.yaml": "has no option discretization, guider, num_steps",
    "y/m_scale0.yaml": "scale_factor=0; expected a number from",
    "y/m_stepsbig.yaml": "num_steps=1000000000000; expected a whole number from 1 to 10000",
    "y/m_str.yaml": "model_channels=many; expected a whole number",
    "y/m_wrongclass.yaml": "cannot have network=.*LinearPredictionGuider; expected a UNet",
    "y/nested2.yaml": NO_CLASS,
    **{f"y/t_{name}.yaml": NO_CLASS for name in (
        "check", "exec", "import", "nodots", "ownfunc", "pipes", "private", "remove", "sysexit", "unlink", "viaproject"
    )},
    "y/wide10.yaml": "no file at .*wide9.yaml",
    "y/wide23.yaml": "no file at .*wide22.yaml",
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model configurations, with the files that they are based on beside them."""
    folder = tmp_path_factory.mktemp("models")
    for path in [*(CORPUS / "y").iterdir(), *(PROJECT / "configs" / f"{name}.yaml" for name in ("svd", "svd_tiny"))]:
        shutil.copy(path, folder)
    return folder


def test_every_file_has_an_answer():
    there = {path.relative_to(CORPUS).as_posix() for path in CORPUS.rglob("*") if path.is_file()}
    assert {name if name[0] not in "vx" else name.rpartition("/")[0] for name in there} == set(ANSWERS)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer(kit, models, tmp_path, name):
    path, out, (kind, _, last) = CORPUS / name, tmp_path / "out", name.partition("/")
    ways = {
        "c": [lambda: DOORS[".ckpt"].enter(kit, path, out), lambda: run_convert(path, out)],
        "csv": [lambda: DOORS["training CSV"].enter(kit, path, out)],
        "img": [lambda: animate(kit, out, image=path)],
        "l": [lambda: merge(kit, path, out), lambda: animate(kit, out, **{"SVD.lora": path})],
        "p": [lambda: run_convert(path, out)],
        "s": [lambda: DOORS["safetensors"].enter(kit, path, out), lambda: run_convert(path, out)],
        "v": [lambda: score(path, out)],
        "x": [lambda: score(path, out)],
        "y": [lambda: load_model(models / last, flag="--SVD.config").parameter_shapes()],
    }[kind]
    if "photo" in name:
        ways = [lambda: make_clips.main([f"--photos={path}", "--split=all", f"--output_dir={out}", "--workers=1"])]
    if "flags" in name:
        ways = [lambda: DOORS["flags file"].enter(kit, path, out)]
    for way in ways:
        if ANSWERS[name] is None:
            way()
            continue
        with pytest.raises(UserError) as error:
            way()
        line = shown(str(error.value))
        assert re.search(ANSWERS[name], line) and len(line) < 500 and line.isprintable()
        assert not files_in(out)
    if kind == "y" and "flags" not in name:
        with pytest.raises(UserError) as error:  # the command looks at the weights first
            animate(kit, out, **{"SVD.config": models / last})
        assert len(shown(str(error.value))) < 500


def test_what_a_video_cannot_be_decoded_is_named_and_left_out(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        score(CORPUS / "x" / "nocodec", tmp_path)
    assert "left out mp4-04bed7.mp4" in caplog.text and "holds no video of a known kind" in caplog.text
    assert (tmp_path / "v.csv").read_text().count("\n") == 2
