"""Training from scratch: the image autoencoder, then the temporal decoder that starts from it."""

import mindspore as ms
import numpy as np
import pytest

from gm.errors import UserError
from modules.video_unet import is_temporal
from tests.e2e.training import GRAPH, PYNATIVE, changed_names, checkpoints, losses, read

ENCODER = "conditioner.embedders.3.encoder."
FIRST_STAGE = "first_stage_model."


@pytest.fixture(scope="module")
def autoencoder(place):
    """A run of twelve steps on single frames."""
    return place.train(
        place.folder / "autoencoder", "--train.stage=autoencoder", "--train.pretrained=null",
        "--train.temporal_only=False", "--train.dataset.init_args.frames=1", "--train.ema_decay=0", epochs=12,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(autoencoder):
    return checkpoints(autoencoder)[-1] / "model.safetensors"


def decoder_run(place, model, output, *more):
    return place.train(output, "--train.stage=decoder", f"--train.pretrained={model}", "--train.ema_decay=0", *more)


def test_the_autoencoder_learns_and_the_decoder_starts_as_its_copy(autoencoder, model):
    values = list(losses(autoencoder).values())
    assert np.mean(values[-8:]) < 0.9 * np.mean(values[:8])
    changed = changed_names(autoencoder / "initial.safetensors", model)
    weights = read(model)
    trained = {name for name in weights if name.startswith(ENCODER) and ".post_quant_conv." not in name}
    copies = {
        name: name.replace(FIRST_STAGE, ENCODER, 1)
        for name in weights
        if name.startswith(FIRST_STAGE) and not is_temporal(name)
    }
    assert changed <= trained | copies.keys() and len(changed) > 0.9 * len(trained | copies.keys())
    assert all(np.array_equal(weights[copy], weights[name]) for copy, name in copies.items())
    assert len(copies) > 50


@pytest.mark.parametrize("temporal_only", [False, True])
def test_the_temporal_decoder(place, model, tmp_path, temporal_only):
    output = decoder_run(place, model, tmp_path / "decoder", f"--train.temporal_only={temporal_only}")
    changed = changed_names(model, checkpoints(output)[-1] / "model.safetensors")
    decoder = {name for name in read(model) if name.startswith(f"{FIRST_STAGE}decoder.")}
    wanted = {name for name in decoder if is_temporal(name)} if temporal_only else decoder
    assert changed <= wanted and len(changed) > 0.9 * len(wanted)


@pytest.fixture
def strict():
    """Compiling refuses what would be Python in a compiled network (PyExecute)."""
    ms.set_context(jit_syntax_level=ms.STRICT)
    yield
    ms.set_context(jit_syntax_level=ms.LAX)


@pytest.mark.parametrize("stage", ["decoder", pytest.param("unet", marks=pytest.mark.slow)])
def test_compiled_networks_hold_no_python(place, model, tmp_path, strict, stage):
    """And compute what operators one by one do."""
    runs = {}
    for mode in (PYNATIVE, GRAPH):
        flags = (f"--train.stage={stage}", f"--environment.mode={mode}", f"--train.pretrained={model}")
        output = place.train(tmp_path / str(mode), *flags, "--train.ema_decay=0", "--train.max_steps=1")
        runs[mode] = losses(output)[1]
    assert runs[GRAPH] == pytest.approx(runs[PYNATIVE], rel=1e-4)


@pytest.mark.parametrize(
    ("flag", "stage"),
    [
        ("--train.lora.rank=4", "decoder"),
        ("--train.latent_cache.folder=cache", "decoder"),
        ("--train.temporal_only=True", "autoencoder"),
        ("--train.recompute=True", "decoder"),
        ("--train.autoencoder.kl_weight=-1", "autoencoder"),
    ],
)
def test_options_of_another_stage_are_refused(place, tmp_path, flag, stage):
    given = ("--train.temporal_only=False", f"--train.stage={stage}", flag)
    with pytest.raises(UserError, match=flag.partition("=")[0]):
        place.train(tmp_path / "refused", *given)
