"""Random numbers that depend on a sample's place in the run and on nothing else.

What is drawn for a sample is a function of (seed, stream, epoch, place): neither the number of devices, nor how many
batches make an update, nor where a run was interrupted changes it. Streams with numbers below 3 are the data's
(:mod:`data.dataloader`, :mod:`data.video_dataset`, :mod:`modules.training.latent_cache`).
"""

import numpy as np

SIGMA, NOISE, COND_AUG, COND_NOISE, DROPOUT = range(3, 8)


class SampleRandom:
    """The random numbers of one training sample.

    Args:
        seed: of the run.
        epoch: from 0.
        place: of the sample in the epoch's order.
    """

    def __init__(self, seed: int, epoch: int, place: int) -> None:
        self._seed, self._epoch, self._place = seed, epoch, place

    def stream(self, stream: int) -> np.random.Generator:
        """A generator at the start of one of the sample's streams; they are independent of each other."""
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(stream, self._epoch, self._place)))
