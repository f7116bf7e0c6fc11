"""Encodes and decodes pictures with a checkpoint's image autoencoder, and measures what is left of them.

    python svd_tiny/reconstruct.py --images=photos/eval --checkpoint=…/model.safetensors --output=reconstructions.png

For every picture and on average: PSNR, and the energy of fine detail (Laplacian) relative to the picture's. The sheet
shows each picture beside its reconstruction.
"""

import logging
import sys
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.image_reader import find_images, fit_image, read_image
from gm.command_parser import CommandParser
from gm.device.runtime import eager, setup_runtime
from gm.errors import run_command
from gm.files import atomic_file
from svd_tools.video_metrics import contact_sheet, psnr, sharpness

PYNATIVE_MODE = 1


def reconstruct(images: Sequence[np.ndarray], svd_config: Path, checkpoint: Path) -> List[np.ndarray]:
    """Each picture, (h, w, 3) uint8, through the mode of its posterior.

    Raises:
        UserError: the configuration or the weights cannot be used.
    """
    import mindspore as ms

    from gm.config import load_model
    from modules.encoders import image_autoencoder, in_image_autoencoder
    from modules.generation import to_frames, to_pixels

    engine = load_model(svd_config, flag="--svd_config")
    engine.attach(checkpoint, ms.float32)
    results = []
    with engine.conditioner.part("image autoencoder", in_image_autoencoder) as conditioner, eager():
        autoencoder = image_autoencoder(conditioner)
        for image in images:
            decoded = autoencoder.decode(autoencoder.encode(ms.Tensor(to_pixels(image))), 1).asnumpy()
            results.append(to_frames(decoded[None])[0, 0])
    return results


def evenly(paths: Sequence[Path], limit: int) -> List[Path]:
    """At most `limit` of the paths, spread over the list; all for 0."""
    count = min(limit, len(paths)) if limit else len(paths)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Command line; see the module's docstring."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = CommandParser(prog="reconstruct.py", description=__doc__)
    parser.add_argument("--images", type=str, required=True, help="a picture, or a folder of them")
    parser.add_argument("--checkpoint", type=str, required=True, help="the weights")
    parser.add_argument("--svd_config", type=str, default="svd_tiny/configs/svd_tiny.yaml", help="the model")
    parser.add_argument("--height", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--width", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--limit", type=int, default=0, help="how many pictures of the folder, evenly spread; 0: all")
    parser.add_argument("--output", type=str, default="", help="PNG file for the sheet; empty for none")
    args = parser.parse_args(argv)
    paths = evenly(find_images(args.images, "--images"), args.limit)
    images = [fit_image(read_image(path), args.height, args.width) for path in paths]
    setup_runtime(PYNATIVE_MODE, "auto", "--device_target")
    results = reconstruct(images, Path(args.svd_config), Path(args.checkpoint))
    figures = [_measure(result, image) for result, image in zip(results, images)]
    lines = [f"{psnr:6.2f} dB  {detail:5.2f}  {path.name}" for (psnr, detail), path in zip(figures, paths)]
    mean = np.mean(figures, axis=0)
    sys.stdout.write("\n".join([*lines, f"{mean[0]:6.2f} dB  {mean[1]:5.2f}  mean of {len(paths)}"]) + "\n")
    if args.output:
        with atomic_file(args.output) as temporary:
            pairs = [np.stack(pair) for pair in zip(images, results)]
            Image.fromarray(contact_sheet(pairs, 2)).save(temporary, "PNG")


def _measure(result: np.ndarray, image: np.ndarray) -> Tuple[float, float]:
    """PSNR in dB, and the share of the picture's fine detail."""
    return psnr(result[None], image[None]), sharpness(result[None], image)


if __name__ == "__main__":
    run_command(main)
