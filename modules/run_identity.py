"""What a run is: everything that its losses depend on. A checkpoint is resumed by the same run only."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence

from gm.files import PathLike, open_input
from modules.train_options import TrainingOptions

SAMPLES, SAMPLE_BYTES = 1024, 1 << 16  # of a weights file, for its fingerprint; up to 64 MiB it is read whole
NOT_OF_IDENTITY = ("data_dir", "metadata", "max_broken_share")  # a data set may move


def run_identity(
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
        amp: O0 or O2.
    """
    network = {key: value for key, value in model["params"].items() if key != "sampler_config"}
    dataset = {key: value for key, value in options.dataset.items() if key not in NOT_OF_IDENTITY}
    cache = asdict(options.latent_cache)
    folder = cache.pop("folder")
    identity = {
        "--svd_config": _digest(network),
        "--train.stage": options.run.stage,
        "--train.pretrained": file_fingerprint(weights),
        "--train.dataset.init_args.metadata": _digest([list(row) for row in rows]),
        "--train.latent_cache.folder": cache if folder else None,
        "--environment.seed": options.environment.seed,
        "--train.amp_level": amp,
        "--train.ema_decay": options.run.ema_decay,
        "--train.dataloader.batch_size x devices": options.dataloader.batch_size * world_size,
        "--train.dataloader.shuffle": options.dataloader.shuffle,
        "--train.dataloader.drop_remainder": options.dataloader.drop_remainder,
        "--train.temporal_only": options.run.temporal_only,
        **_flags("--train.dataset.init_args.", dataset),
    }
    for group in ("scheduler", "optimizer", "settings", "sigma", "cond_aug", "dropout", "autoencoder", "lora"):
        identity.update(_flags(f"--train.{group}.", asdict(getattr(options, group))))
    if amp == "O2":
        identity.update(_flags("--LossScale.", asdict(options.loss_scale)))
    return identity


def file_fingerprint(path: PathLike) -> str:
    """A hash of a file's size, beginning and samples all over it: for telling files apart without reading them."""
    size = Path(path).stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_input(path) as file:
        for index in range(SAMPLES):
            file.seek(size * index // SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _flags(prefix: str, values: Mapping[str, Any]) -> Dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}
