"""Training samples from the latent cache, in the place of :class:`data.video_dataset.VideoDataset`."""

from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np

from data.metadata_csv import VideoRow
from gm.weights.checkpoint import open_checkpoint


class CachedDataset:
    """One encoded clip of each video per epoch; made by :meth:`modules.training.latent_cache.LatentCache.open`.

    A sample is a pure function of (epoch, index). Which window of a video and which draw of conditioning noise an epoch
    takes is said in :mod:`modules.training.latent_cache`.

    Attributes:
        rows: the CSV rows of the videos, those that are broken left out.
        columns: names of what :meth:`read` returns.

    Args:
        rows: one for each video.
        paths: for each video the files of its windows, at least one.
        draws: of conditioning noise in each file.
    """

    columns = (
        "latents", "clip_token", "cond_latent", "cond_aug", "fps_id", "motion_bucket_id", "video", "start",
    )  # fmt: skip
    num_broken = 0  # what is broken was left out when the cache was built

    def __init__(self, rows: List[VideoRow], paths: Sequence[List[Path]], draws: int) -> None:
        self.rows, self._paths, self._draws = rows, paths, draws

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return len(self.rows)

    def sample(self, epoch: int, index: int) -> Dict[str, np.ndarray]:
        """Sample `index` of an epoch.

        Returns:
            latents: float32 (t, 4, h, w), multiplied by the scale factor.
            clip_token: float32 (1, c).
            cond_latent: float32 (4, h, w), of the noised first frame, not multiplied by the scale factor.
            cond_aug: float32, the standard deviation of that noise.
            fps_id, motion_bucket_id, video, start: as in a VideoDataset; the motion bucket is the CSV's of today.

        Raises:
            UserError: the file is gone or damaged.
        """
        return dict(zip(self.columns, self.read(epoch, index)))

    def read(self, epoch: int, index: int) -> Tuple[np.ndarray, ...]:
        """As :meth:`sample`, in the order of `columns`."""
        rounds, window = divmod(epoch, len(self._paths[index]))
        draw = rounds % self._draws
        with open_checkpoint(self._paths[index][window]) as source:
            return (
                np.array(source.read("latents")),
                np.array(source.read("clip_token")),
                np.array(source.read("cond_latents")[draw]),
                np.float32(source.read("cond_augs")[draw]),
                np.float32(source.read("fps_id")),
                np.float32(self.rows[index].motion_bucket_id),
                np.int32(index),
                np.int32(source.read("start")),
            )

    def collate(self, rows: Sequence[Tuple[np.ndarray, ...]]) -> Dict[str, np.ndarray]:
        """What :meth:`read` returned for several samples, as one batch: each value of `sample` with a batch axis."""
        return {name: np.stack(column) for name, column in zip(self.columns, zip(*rows))}
