"""The fingerprint of a run: everything that its losses depend on. A checkpoint is resumed by the same run only."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

from gm.config.targets import TARGETS
from gm.files import PathLike, open_input
from gm.weights.checkpoint import open_checkpoint
from gm.weights.model_part import ModelPart
from modules.training.options import TrainingOptions

SAMPLES, SAMPLE_BYTES = 1024, 1 << 16  # of a weights file, for its fingerprint; up to 64 MiB it is read whole
NOT_OF_CONTENT = ("data_dir", "metadata", "max_broken_share", "holdout", "held_out")  # of a data set: the rows count
# Fingerprints name classes as they were called when the first ones were made: the last alias of each.
FORMER_NAMES = {name: alias for alias, name in TARGETS.items()}
GROUPS = ("scheduler", "optimizer", "settings", "sigma", "cond_aug", "dropout", "autoencoder", "lora")


def run_fingerprint(
    options: TrainingOptions,
    model: Mapping[str, Any],
    weights: PathLike,
    rows: Sequence[Any],
    world_size: int,
    amp: str,
) -> Dict[str, Any]:
    """Flag -> value, or a hash of the content that a flag names.

    Where files are, how long the run is and how it is watched do not count: a run may be moved, prolonged, and spread
    over another number of devices with the same number of clips in each update.

    Args:
        model: the model's part of its YAML file.
        weights: the file that training starts from.
        rows: of the data set.
        world_size: number of processes.
        amp: O0, O2 or bf16.
    """
    cache = asdict(options.latent_cache)
    folder = cache.pop("folder")
    fingerprint = {
        "--svd_config": digest({key: value for key, value in model["params"].items() if key != "sampler_config"}),
        "--train.stage": options.run.stage,
        "--train.pretrained": file_fingerprint(weights),
        "--train.dataset.init_args.metadata": digest([[value for value in row if value is not None] for row in rows]),
        "--train.latent_cache.folder": cache if folder else None,
        "--environment.seed": options.environment.seed,
        "--train.amp_level": amp,
        "--train.ema_decay": options.run.ema_decay,
        "--train.dataloader.batch_size x devices": options.dataloader.batch_size * world_size,
        "--train.dataloader.shuffle": options.dataloader.shuffle,
        "--train.dataloader.drop_remainder": options.dataloader.drop_remainder,
        "--train.temporal_only": options.run.temporal_only,
        "--train.layers": options.run.layers,
    }
    groups = {f"train.{name}": asdict(getattr(options, name)) for name in GROUPS}
    if options.lora.pretrained:
        groups["train.lora"]["pretrained"] = file_fingerprint(options.lora.pretrained)
    groups["train.dataset.init_args"] = {k: v for k, v in options.dataset.items() if k not in NOT_OF_CONTENT}
    if amp == "O2":
        groups["LossScale"] = asdict(options.loss_scale)
    fingerprint.update({f"--{group}.{name}": value for group in groups for name, value in groups[group].items()})
    return fingerprint


def file_fingerprint(path: PathLike) -> str:
    """A hash of a file's size, beginning and samples all over it: for telling files apart without reading them."""
    size = Path(path).stat().st_size
    sha256 = hashlib.sha256(str(size).encode())
    with open_input(path) as file:
        for index in range(SAMPLES):
            file.seek(size * index // SAMPLES)
            sha256.update(file.read(SAMPLE_BYTES))
    return sha256.hexdigest()


def encoder_fingerprint(stage: ModelPart) -> str:
    """The SHA-256 of the conditioner's configuration and of the weights that it uses, in hexadecimal."""
    sha256 = hashlib.sha256(json_bytes(stage.build.node))
    with open_checkpoint(stage.path) as source:
        for name in stage.shapes():
            if stage.needed is None or stage.needed(name[len(stage.prefix) :]):
                info = source.info[name]
                sha256.update(f"{name} {info.dtype} {info.shape}".encode())
                sha256.update(source.read_raw(name))
                source.release(name)
    return sha256.hexdigest()


def digest(value: Any) -> str:
    """The SHA-256 of plain values, in hexadecimal; of a configuration, whatever its classes are called today."""
    return hashlib.sha256(json_bytes(value)).hexdigest()


def json_bytes(value: Any) -> bytes:
    """Plain values as JSON with sorted keys, a configuration's `target`s under their former names."""
    return json.dumps(_with_former_names(value), sort_keys=True).encode()


def _with_former_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: FORMER_NAMES.get(item, item) if key == "target" else _with_former_names(item)
            for key, item in value.items()
        }
    return [_with_former_names(item) for item in value] if isinstance(value, (list, tuple)) else value
