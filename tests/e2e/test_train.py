"""train.py from its command line to what other programs read."""

import json
import signal

import numpy as np
import pytest
import yaml
from PIL import Image

import train
from gm.errors import UserError
from gm.training import checkpoints as checkpoint_files
from modules.video_unet import is_temporal
from tests.e2e.training import (
    changed_names,
    checkpoints,
    losses,
    read,
    same_tensors,
    signal_at_step,
)

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def undisturbed(place):
    """Two epochs of four videos, a checkpoint every three steps."""
    return place.train(place.folder / "undisturbed", "--train.checkpoint_every=3")


def test_temporal_only_changes_exactly_the_temporal_tensors(place, undisturbed):
    model = checkpoints(undisturbed)[-1] / "model.safetensors"
    shapes = read(place.checkpoint)
    temporal = {name for name in shapes if name.startswith(UNET) and is_temporal(name)}
    assert changed_names(place.checkpoint, model) == temporal
    state = read(model.with_name("state.safetensors"))
    names = {name[len(UNET) :] for name in temporal}
    assert state.keys() == {f"{kind}.{name}" for kind in ("weight", "adam_m", "adam_v", "average") for name in names}


def test_the_run_s_folder_tells_what_happened(undisturbed):
    assert [path.name for path in checkpoints(undisturbed)] == ["step_00000003", "step_00000006", "step_00000008"]
    assert sorted(losses(undisturbed)) == list(range(1, 9)) and np.isfinite(list(losses(undisturbed).values())).all()
    config = yaml.safe_load((undisturbed / "config.yaml").read_text())
    assert config["train"]["epochs"] == 2 and config["train"]["dataset"]["init_args"]["frames"] == 2
    assert list((undisturbed / "tensorboard").iterdir())
    log = (undisturbed / "train.log").read_text()
    assert "training 179 tensors" in log and "ended at step 8 of 8" in log
    first = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[0])
    assert {"lr", "grad_norm", "loss_scale", "skipped_updates", "samples_per_second", "memory_gb"} <= set(first)
    assert first["epoch"] == 0.25 and first["lr"] == 5e-4


def test_the_saved_configuration_is_one_to_train_with(place, undisturbed):
    parser = train.build_parser()
    again = parser.parse_args([f"--config={undisturbed / 'config.yaml'}"])
    given = parser.parse_args(place.flags(undisturbed, "--train.checkpoint_every=3"))
    assert train.resolved(again) == train.resolved(given)


def test_killed_and_stopped_and_resumed_is_as_undisturbed(place, undisturbed):
    """SIGTERM at some step saves and ends well; SIGKILL at another does neither; the rest is as if nothing had been."""
    output = place.folder / "disturbed"
    flags = ("--train.checkpoint_every=3", "--train.resume=auto")
    assert signal_at_step(place.start(output, *flags), output, 2, signal.SIGTERM) == 0
    stopped = json.loads((checkpoints(output)[-1] / "state.json").read_text())["step"]
    assert 2 <= stopped < 8
    assert signal_at_step(place.start(output, *flags), output, 5) in (-signal.SIGKILL, 0)
    place.train(output, *flags)
    assert losses(output) == losses(undisturbed)
    for name in ("state.safetensors", "model.safetensors"):
        assert same_tensors(checkpoints(output)[-1] / name, checkpoints(undisturbed)[-1] / name)


def test_a_run_may_be_prolonged_in_another_folder(place, undisturbed):
    source = checkpoints(undisturbed)[-1]
    output = place.train(place.folder / "prolonged", f"--train.resume={source}", "--train.max_steps=9", epochs=3)
    assert list(losses(output)) == [9]


def test_a_finished_run_resumed_has_nothing_to_do(place, undisturbed):
    before = (checkpoints(undisturbed)[-1] / "state.json").stat().st_mtime_ns
    place.train(undisturbed, "--train.checkpoint_every=3", "--train.resume=auto")
    assert (checkpoints(undisturbed)[-1] / "state.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_accumulated_batches_see_the_clips_of_one_large_batch(place):
    large = place.train(place.folder / "large", "--train.dataloader.batch_size=4", epochs=1)
    flags = ("--train.dataloader.batch_size=2", "--train.settings.gradient_accumulation_steps=2")
    small = place.train(place.folder / "small", *flags, epochs=1)
    assert losses(small)[1] == pytest.approx(losses(large)[1], rel=1e-5)


def test_encoded_clips_train_as_videos_do_and_without_encoders(place, monkeypatch):
    """But for the conditioning noise, of which the cache has draws of its own: here there is none."""
    cache = f"--train.latent_cache.folder={place.folder / 'cache'}"
    quiet = ("--train.cond_aug.mean=-20", "--train.cond_aug.std=0")
    videos = place.train(place.folder / "uncached", *quiet, epochs=1)
    first = place.train(place.folder / "cached", cache, *quiet, epochs=1)
    assert losses(first) == pytest.approx(losses(videos), rel=1e-5) and len(losses(first)) == 4
    monkeypatch.setattr("gm.weights.model_part.ModelPart.__enter__", None)  # no stage may be loaded for a batch now
    again = place.train(place.folder / "cached_again", cache, *quiet, epochs=1)
    assert losses(first) == losses(again)


def test_from_random_weights_single_frames_first(place):
    flags = ("--train.pretrained=", "--train.temporal_only=False", "--train.dataset.init_args.frames=1")
    output = place.train(place.folder / "scratch", *flags, "--train.max_steps=2", "--train.ema_decay=0")
    changed = changed_names(output / "initial.safetensors", checkpoints(output)[-1] / "model.safetensors")
    assert all(name.startswith(UNET) for name in changed) and len(changed) > 10
    state = read(checkpoints(output)[-1] / "state.safetensors")
    assert not any(name.startswith("average.") for name in state)
    other = place.train(place.folder / "scratch2", *flags, "--train.max_steps=1", "--train.ema_decay=0")
    assert same_tensors(output / "initial.safetensors", other / "initial.safetensors")
    assert losses(other)[1] == losses(output)[1]


def test_validation_videos_are_made_while_training(place, undisturbed):
    flags = ("--train.validation.every=1", f"--train.validation.images={place.folder / 'image.png'}",
             "--train.validation.clips=1")
    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(place.folder / "image.png")
    output = place.train(
        place.folder / "validated", *flags, "--train.validation.sampling_steps=1", "--train.max_steps=2"
    )
    names = [f"{name}_step{step:08d}.mp4" for name in ("clip_0000", "image_seed42") for step in (0, 1, 2)]
    assert sorted(path.name for path in (output / "validation").iterdir()) == names
    figures = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in figures] == [0, 1, 2]
    assert all(0 < line["validation/loss"] < 100 and 0 < line["validation/psnr"] < 60 for line in figures)
    want = losses(undisturbed)
    assert losses(output) == {step: want[step] for step in (1, 2)}  # validation changes nothing


def test_a_lora_s_dropout_goes_on_where_it_was_and_spares_validation(place):
    flags = ("--train.lora.rank=2", "--train.scheduler.name=constant", "--train.scheduler.lr=0.1")
    flags += ("--train.validation.every=3", "--train.validation.sampling_steps=1", "--train.validation.clips=1")
    dropped = (*flags, "--train.lora.dropout=0.5")
    plain = place.train(place.folder / "plain_lora", *flags, "--train.max_steps=3")
    whole = place.train(place.folder / "dropped", *dropped, "--train.max_steps=3", "--train.checkpoint_every=2")
    resume = f"--train.resume={checkpoints(whole)[0]}"
    again = place.train(place.folder / "dropped_on", *dropped, "--train.max_steps=3", resume)
    assert same_tensors(*(checkpoints(output)[-1] / "state.safetensors" for output in (whole, again)))
    assert losses(whole)[1] == losses(plain)[1] and losses(whole)[3] != losses(plain)[3]  # at first B is zero
    first = [(output / "validation.jsonl").read_text().splitlines()[0] for output in (plain, whole)]
    assert first[0] == first[1]
    last = [(output / "validation.jsonl").read_text().splitlines()[-1] for output in (whole, again)]
    assert last[0] == last[1]


def test_layers_by_name(place):
    output = place.train(place.folder / "layers", r"--train.layers=output_blocks.*attn1\.to_q", "--train.max_steps=1")
    changed = changed_names(place.checkpoint, checkpoints(output)[-1] / "model.safetensors")
    assert changed and all("output_blocks" in name and "time_stack" in name and "to_q" in name for name in changed)


def test_a_lora_goes_on_from_a_file(place):
    rank = ("--train.lora.rank=2", "--train.max_steps=1", "--train.ema_decay=0")
    first = checkpoints(place.train(place.folder / "lora", *rank))[-1] / "lora.safetensors"
    still = ("--train.scheduler.name=constant", "--train.scheduler.lr=1e-20")
    second = place.train(place.folder / "lora2", *rank, *still, f"--train.lora.pretrained={first}")
    assert same_tensors(first, checkpoints(second)[-1] / "lora.safetensors")
    with pytest.raises(UserError, match=r"of rank 2 and alpha 2; this run's LoRA has \d+ of rank 3 and alpha 3"):
        place.train(place.folder / "lora3", "--train.lora.rank=3", f"--train.lora.pretrained={first}")
    with pytest.raises(UserError, match=r"^--train\.pretrained: .* is a LoRA; name the model that it belongs to"):
        place.train(place.folder / "lora4", f"--train.pretrained={first}")


def test_the_last_checkpoint_takes_the_room_of_the_oldest(place, monkeypatch):
    """Where two are there, a third finds no room."""
    write = checkpoint_files.write_checkpoint

    def write_if_room(path, *args):
        if len(list(path.parent.glob("step_*"))) > 1:
            raise UserError("no room left on the disk")
        write(path, *args)

    monkeypatch.setattr(checkpoint_files, "write_checkpoint", write_if_room)
    output = place.train(place.folder / "full", "--train.checkpoint_every=1", "--train.max_steps=4")
    assert [path.name for path in checkpoints(output)] == ["step_00000002", "step_00000004"]


def test_an_error_in_a_validation_costs_no_step(place, monkeypatch):
    def fail(self, step, trainer):
        if step:
            raise ValueError("an error in the program")

    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(place.folder / "image.png")
    monkeypatch.setattr("modules.training.validation.ValidationVideos.on_validation", fail)
    flags = ("--train.validation.every=2", f"--train.validation.images={place.folder / 'image.png'}",
             "--train.validation.clips=0")
    with pytest.raises(ValueError, match="an error in the program"):
        place.train(place.folder / "failed", *flags, "--train.checkpoint_every=100")
    assert [path.name for path in checkpoints(place.folder / "failed")] == ["step_00000002"]
