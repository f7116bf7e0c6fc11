"""Conditioning dropout: clips trained without their picture, so that classifier-free guidance has both halves."""

from typing import NamedTuple, Sequence

import numpy as np

from gm.errors import UserError
from gm.networks.conditioner import Conditioning

FLAG = "--train.dropout."


class ConditioningDropout(NamedTuple):
    """How often the picture's CLIP token and latent are zeroed; the vector always stays, as in sampling.

    Attributes:
        both: probability that both are dropped: what sampling's unconditional half sees.
        token: that only the CLIP token is.
        latent: that only the latent is.
    """

    both: float = 0.1
    token: float = 0.05
    latent: float = 0.05

    def check(self) -> "ConditioningDropout":
        """Itself, if its probabilities are some.

        Raises:
            UserError: one is outside 0..1, or their sum is above 1.
        """
        for name, value in self._asdict().items():
            if not 0 <= value <= 1:
                raise UserError(f"{FLAG}{name} is {value}; it is a probability, 0 to 1")
        if sum(self) > 1:
            raise UserError(f"{FLAG}both + token + latent is {sum(self):g}; they exclude each other: at most 1")
        return self

    def __call__(self, cond: Conditioning, chances: Sequence[float]) -> Conditioning:
        """Zeroes what is dropped.

        Args:
            cond: of b clips.
            chances: (b,), uniform in 0..1.
        """
        u = np.asarray(chances)
        both, token_only = u < self.both, u < self.both + self.token
        latent_only = ~token_only & (u < sum(self))
        no_token, no_latent = token_only, both | latent_only
        return Conditioning(
            cond.vector,
            np.where(no_token[:, None, None], np.float32(0), cond.crossattn),
            np.where(no_latent[:, None, None, None], np.float32(0), cond.concat),
        )
