"""What a user can get wrong: one line that names the flag and the remedy, exit code 2, before anything is trained."""

import json
import os
import subprocess
import sys

import pytest

import train
from gm.errors import UserError
from tests.e2e.training import PROJECT, Workplace

CLIPS, VIDEOS = "--train.dataset.init_args.", "--train.validation."


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--train.epohcs=3"], "unknown flag --train.epohcs; did you mean --train.epochs"),
        (["--train.epochs=0"], "--train.epochs: 0 cannot be used; expected a whole number from 1 to"),
        (["--train.epochs=many"], "--train.epochs: many cannot be used; expected a whole number"),
        ([f"{CLIPS}data_dir=/nowhere"], "/nowhere"),
        ([f"{CLIPS}metadata=/nowhere.csv"], "--train.dataset.init_args.metadata: cannot read /nowhere.csv"),
        ([f"{CLIPS}frames=100"], "(100 - 1) x 2 + 1 = 199, and the longest of its 4 videos has 12"),
        ([f"{CLIPS}height=70"], f"{CLIPS}height: 70 cannot be used; expected a multiple of 64"),
        (["--train.dataset.class_path=my.Videos"], "--train.dataset.class_path: my.Videos cannot be used"),
        (["--train.dataloader.batch_size=5"], "4 usable videos do not fill one batch of 5"),
        (["--train.settings.gradient_accumulation_steps=9"], "are not enough for one update"),
        (["--train.settings.clip_norm=0"], "--train.settings.clip_norm: 0 cannot be used; expected a number from"),
        (["--train.pretrained=/nowhere.safetensors"], "there is no checkpoint /nowhere.safetensors"),
        (["--train.pretrained="], "--train.pretrained is empty: random layers would stay frozen"),
        ([f"--svd_config={PROJECT / 'configs/svd_tiny.yaml'}"], "does not fit the network of the configuration"),
        (["--svd_config=/nowhere.yaml"], "--svd_config: no file at /nowhere.yaml"),
        (["--train.output_dir=/proc/run"], "--train.output_dir: cannot write in /proc/run"),
        (["--train.pretrained={folder}"], "is a folder; name a file of weights"),
        (["--train.amp_level=bf16"], "--train.amp_level=bf16: MindSpore has no bf16 operators for a CPU"),
        (["--train.layers=nothing"], "--train.layers: 'nothing' is in no name of what may be trained"),
        (["--train.layers=("], "--train.layers: '(' is no regular expression"),
        (["--train.resume=/nowhere"], "--train.resume: /nowhere is neither a checkpoint's folder"),
        (["--train.scheduler.name=linear"], "--train.scheduler.name: linear cannot be used"),
        (["--train.scheduler.end_lr=1"], "--train.scheduler.end_lr: 1 cannot be used; expected at most lr, 0.001"),
        (["--train.optimizer.betas=[0.9,1.0]"], "--train.optimizer.betas"),
        (["--train.dropout.both=2"], "--train.dropout.both: 2 cannot be used; expected a number from 0 to 1"),
        (["--train.sigma.P_std=-1"], "--train.sigma.P_std: -1 cannot be used; expected a number from 0 to"),
        (["--train.ema_decay=1"], "--train.ema_decay: 1 cannot be used; expected a number from 0 to 0.999999999999"),
        (["--train.lora.rank=2", "--train.lora.targets=all"], "--train.lora.targets=all has spatial layers"),
        (["--train.lora.dropout=0.1"], "--train.lora.dropout is of a LoRA"),
        (["--train.lora.rank=2", "--train.lora.targets=nothing"], "no linear layer's name matches 'nothing'"),
        (["--train.validation.images=/nowhere"], "--train.validation.images needs --train.validation.every"),
        (["--train.validation.every=5", "--train.validation.images=/nowhere"], "--train.validation.images"),
        ([f"{VIDEOS}decode_chunk_size=-1"], "decode_chunk_size: -1 cannot be used; expected a whole number from 0"),
        ([f"{VIDEOS}motion_bucket_id=999"], "bucket_id: 999 cannot be used; expected a whole number from 0 to 255"),
        ([f"{VIDEOS}noise_aug_strength=-1"], f"{VIDEOS}noise_aug_strength: -1 cannot be used; expected"),
        ([f"{VIDEOS}seeds=[3,-2]"], f"{VIDEOS}seeds: [3,-2] cannot be used; expected a list such as [1,2]"),
        (["--train.cond_aug.std=-1"], "--train.cond_aug.std: -1 cannot be used; expected a number from 0 to"),
        (["--environment.device_target=Ascend"], "--environment.device_target=Ascend: MindSpore finds no Ascend card"),
        (["--environment.seed=-1"], "--environment.seed: -1 cannot be used; expected a whole number from 0"),
        (["--environment.distributed=True"], "not started by msrun; start it with msrun"),
        (["--environment.shard_optimizer=True"], "over several Ascend cards only"),
        (["--environment.enable_modelarts=True"], "--environment.enable_modelarts: True cannot be used"),
        (["--train.sink_size=100"], "--train.sink_size: 100 cannot be used"),
        (["--LossScale.window=3"], "unknown flag --LossScale.window; did you mean --LossScale.scale_window"),
    ],
)
def test_a_flag_that_cannot_be_used(place, tmp_path, flags, line):
    with pytest.raises(UserError) as caught:
        place.train(tmp_path / "run", *(flag.format(folder=tmp_path) for flag in flags))
    text = str(caught.value)
    assert line in text and "\n" not in text.split("tensors;")[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("csv", "line"),
    [
        ("path,length\n0.mp4,12\n", "no column motion_bucket_id .*; `python svd_tools/score_motion.py"),
        ("path,length,motion_bucket_id\n0.mp4,many,3\n", "many"),
        ("path,length,motion_bucket_id\n0.mp4,12,256\n", "256"),
        ("path,length,motion_bucket_id\n9.mp4,12,3\n", "9.mp4"),
        ("path,length,motion_bucket_id\n", "holds no video below its header"),
        ("path,length,motion_bucket_id\n0.mp4,2,3\n", "no usable row"),
    ],
)
def test_a_csv_that_cannot_be_used(place, tmp_path, csv, line):
    metadata = tmp_path / "videos.csv"
    metadata.write_text(csv)
    with pytest.raises(UserError, match=line) as caught:
        place.train(tmp_path / "run", f"{CLIPS}metadata={metadata}")
    assert str(metadata) in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("*.safetensors")) and not (tmp_path / "run" / "checkpoints").exists()


def test_keys_of_the_yaml_file_are_checked_as_flags_are(place, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("train:\n  scheduler:\n    warmup: 3\n")
    with pytest.raises(UserError, match="--train.scheduler.warmup in the YAML .* --train.scheduler.warmup_steps"):
        place.train(tmp_path / "run", f"--config={path}")


def test_the_reference_toolkits_file_is_understood():
    parser = train.build_parser()
    flags = parser.parse_args([f"--config={PROJECT / 'tests/e2e/reference_svd_train.yaml'}"])
    options = train.read_options(flags)
    assert options.settings.gradient_accumulation_steps == 5 and options.scheduler.name == "cosine_decay"
    assert options.optimizer.betas == (0.9, 0.98) and options.loss_scale.scale_window == 10
    assert options.dataset["frames"] == 4 and options.dataset["step"] == 5


def test_the_exit_code_is_2_with_one_line(place, tmp_path):
    process = place.start(tmp_path / "run", f"{CLIPS}frames=100")
    out, error = process.communicate()
    assert process.returncode == 2 and not out
    *log, line = error.splitlines()
    assert line.startswith("error: --train.dataset.init_args.frames: no usable row") and len(log) <= 1
    assert not (tmp_path / "run").exists()  # a refused run leaves nothing


def test_msrun_without_the_flag_is_refused(place, tmp_path):
    command = [sys.executable, str(PROJECT / "train.py"), *place.flags(tmp_path / "run")]
    environment = {**os.environ, "MS_WORKER_NUM": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "msrun started 2 processes; set it to True" in done.stderr


@pytest.fixture(scope="module")
def run(place):
    """One step, with its checkpoint."""
    return place.train(place.folder / "run", "--train.max_steps=1")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "has the checkpoints of an earlier run; --train.resume=auto"),
        (["--train.resume=auto", "--environment.seed=1"], "--environment.seed=42, this one has 1"),
        (["--train.resume=auto", "--train.temporal_only=False"], "--train.temporal_only=true, this one has false"),
        (["--train.resume=auto", "--train.scheduler.lr=2e-3"], "--train.scheduler.lr=0.001, this one has 0.002"),
        (["--train.resume=auto", f"{CLIPS}step=1"], "init_args.step=2, this one has 1"),
        (["--train.resume=auto", "--train.ema_decay=0"], "--train.ema_decay=0.9999"),
        (["--train.resume=auto", "--train.dataloader.batch_size=2"], "--train.dataloader.batch_size x devices=1"),
    ],
)
def test_another_run_s_checkpoint_is_refused(place, run, flags, line):
    with pytest.raises(UserError) as caught:
        place.train(run, *flags)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_another_models_checkpoint_is_refused(place, run, tmp_path):
    other = Workplace(tmp_path)
    with open(other.checkpoint, "r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(UserError, match="--train.pretrained=.* use the same, or start anew"):
        place.train(run, "--train.resume=auto", f"--train.pretrained={other.checkpoint}")


def test_a_damaged_checkpoint_is_refused(place, run, tmp_path):
    (tmp_path / "step_00000001").mkdir()
    text = (run / "checkpoints" / "step_00000001" / "state.json").read_text()
    (tmp_path / "step_00000001" / "state.json").write_text(json.dumps({**json.loads(text), "format": 0}))
    with pytest.raises(UserError, match="another version of this program"):
        place.train(tmp_path / "new", f"--train.resume={tmp_path / 'step_00000001'}")


def test_a_loss_that_stays_without_a_number_ends_the_run_and_keeps_the_checkpoint(place, tmp_path, monkeypatch):
    original = train.options.TrainingOptions.__post_init__

    def poison(self):
        original(self)
        draw = "gm.training.objective.edm_weight"
        calls = {"count": 0}

        def weight(sigma):
            calls["count"] += 1
            return (1 + sigma**2) / sigma**2 if calls["count"] <= 2 else sigma * float("nan")

        monkeypatch.setattr(draw, weight)

    monkeypatch.setattr(train.options.TrainingOptions, "__post_init__", poison)
    flags = ("--train.checkpoint_every=2", "--train.max_nonfinite=3")
    with pytest.raises(UserError, match="stopped at step 5: .* not finite 3 times in a row .*step_00000004; lower"):
        place.train(tmp_path / "run", *flags, epochs=4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [False, False, True, True, True]
    assert lines[-1]["skipped_updates"] == 3
