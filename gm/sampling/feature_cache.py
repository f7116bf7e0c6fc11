"""Feature caching between the steps of a sampler: most of the network is evaluated at some of them only.

Ma, Fang & Wang 2024, DeepCache: from one noise level to the next the deep features of a UNet change little. Between
full evaluations only its first convolution and its last stage see the new latents. It trades quality for time.
"""

from typing import Dict, Tuple

from mindspore import Tensor, nn

from gm.networks.conditioner import Conditioning


class WithDeepFeatures(nn.Cell):
    """A full evaluation that returns the deep features too."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, c_noise, context, vector=None):
        """As :meth:`gm.networks.unet.UNet.with_deep_features`."""
        return self.network.with_deep_features(x, c_noise, context, vector)


class FromDeepFeatures(nn.Cell):
    """An evaluation of the last stage."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, deep, x, c_noise, context, vector=None):
        """As :meth:`gm.networks.unet.UNet.from_deep_features`."""
        return self.network.from_deep_features(deep, x, c_noise, context, vector)


class FeatureCache:
    """A network that is evaluated in full every `interval`-th time.

    Args:
        network: a :class:`gm.networks.unet.UNet`.
        interval: 2 or more.
    """

    def __init__(self, network: nn.Cell, interval: int) -> None:
        self.network, self.interval = network, interval
        self._full, self._last = WithDeepFeatures(network), FromDeepFeatures(network)
        self._kept: Dict[int, Tuple[Conditioning, int, Tensor]] = {}

    def clear(self) -> None:
        """Forgets all features, before another clip; what was compiled stays."""
        self._kept.clear()

    def __call__(self, cond: Conditioning, *inputs) -> Tensor:
        """One evaluation.

        Args:
            cond: what the inputs were made from; evaluations with the same object share their features.
            inputs: the network's.
        """
        _, count, deep = self._kept.get(id(cond), (cond, 0, None))
        if count % self.interval:
            out = self._last(deep, *inputs)
        else:
            out, deep = self._full(*inputs)
        self._kept[id(cond)] = (cond, count + 1, deep)
        return out
