"""Input images: any file that Pillow decodes becomes an upright, opaque, 8-bit sRGB array of the size asked for."""

import io
import logging
import struct
import warnings
from pathlib import Path
from typing import BinaryIO, List, Tuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from gm.errors import UserError
from gm.files import PathLike, open_input, reason

logger = logging.getLogger(__name__)

# Suffixes that a folder is searched for; a file named directly may have any.
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What a file may be by its content. Not among them are formats that start other programs (EPS, PostScript) or that name
# other files; Pillow's older releases lack some.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
UINT16_MAX = 65535
MAX_PIXELS = 100_000_000  # of an image: twice those of most cameras, and below 2 GiB whatever its samples are

# What Pillow's decoders raise on damaged files, beside OSError.
DECODER_ERRORS = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)


def find_images(path: PathLike, flag: str = "--image") -> List[Path]:
    """The images that `path` stands for: itself if a file, those directly inside (sorted by name) if a folder.

    Hidden files and files whose suffix is not in `IMAGE_SUFFIXES` are passed over in a folder.

    Args:
        path: a file or a folder; a leading `~` is the home folder.
        flag: the command-line flag that named it, for the error line.

    Raises:
        UserError: `path` does not exist, is no regular file or folder, cannot be listed, or holds no image.
    """
    path = Path(path).expanduser()
    try:
        if path.is_file():
            return [path]
        if not path.exists():
            raise UserError(f"{flag}: {path} does not exist; name an image file or a folder of images")
        if not path.is_dir():
            raise UserError(f"{flag}: {path} is neither a file nor a folder; name an image file or a folder of images")
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"{flag}: cannot read {path}: {reason(error)}; name an image file or a folder") from error
    images = [entry for entry in entries if _looks_like_image(entry)]
    if not images:
        raise UserError(f"{flag}: no image in the folder {path}; it needs a file ending in {' '.join(IMAGE_SUFFIXES)}")
    return images


def read_image(path: PathLike, background: Tuple[int, int, int] = BACKGROUNDS["white"]) -> np.ndarray:
    """Reads an image as it is meant to be seen.

    EXIF rotation is applied, an embedded colour profile converted to sRGB, transparency composited over `background`;
    1-bit, grey, palette, 16-bit, CMYK and 0-to-1 float images become 8-bit RGB; of an animation the first frame counts.

    Args:
        path: the file.
        background: red, green and blue, 0 to 255, shown where the image is transparent.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        UserError: the file is missing, empty, no image, damaged, too large to decode safely, or of a sample format
            without an agreed range.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large files and odd tags; both are dealt with here
            with open_input(path) as file, open_image(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return _decode(image, path, background)
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read the image {path}: {_not_an_image(path)}") from error
    except Image.DecompressionBombError as error:
        problem = f"it has more than {MAX_PIXELS // 10**6} million pixels; shrink it"
        raise UserError(f"cannot read the image {path}: {problem}") from error
    except MemoryError as error:
        raise UserError(f"cannot read the image {path}: not enough memory to decode it; shrink it") from error
    except OSError as error:
        problem = reason(error) if error.errno else f"the file is damaged or cut short ({error})"
        raise UserError(f"cannot read the image {path}: {problem}") from error
    except DECODER_ERRORS as error:
        raise UserError(f"cannot read the image {path}: the file is damaged ({_one_line(error)})") from error


def open_image(file: BinaryIO) -> Image.Image:
    """An image file of one of the known formats, not decoded yet; the errors are those of :func:`PIL.Image.open`."""
    Image.init()
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def fit_image(image: np.ndarray, height: int, width: int, crop_offset: Tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """Scales an image until it covers `height` x `width` and crops what is over: never squashed, never padded.

    Scaling and cropping are one antialiased Lanczos resampling of a sub-pixel box. An image that has the size already
    is returned unchanged.

    Args:
        image: (h, w, 3) uint8.
        height: rows of the result, at least 1.
        width: columns of the result, at least 1.
        crop_offset: (vertical, horizontal) place of the crop, each 0 to 1: 0 keeps the top or left, 1 the bottom or
            right, 0.5 the centre. Only one of them matters for any one image.

    Returns:
        (height, width, 3) uint8.

    Raises:
        UserError: `crop_offset` lies outside 0 to 1.
    """
    if not all(0 <= offset <= 1 for offset in crop_offset):
        raise UserError(f"--SVD.crop_offset: {tuple(crop_offset)} is outside 0 to 1; 0.5 0.5 is the centre")
    source_height, source_width = image.shape[:2]
    if (source_height, source_width) == (height, width):
        return image
    scale = max(height / source_height, width / source_width)
    box_height = min(height / scale, source_height)
    box_width = min(width / scale, source_width)
    top = (source_height - box_height) * crop_offset[0]
    left = (source_width - box_width) * crop_offset[1]
    box = (left, top, min(left + box_width, source_width), min(top + box_height, source_height))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box))


def _looks_like_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _not_an_image(path: Path) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    return "it is not an image, or of a kind that is not supported; save it as PNG or JPEG"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _decode(file: Image.Image, path: Path, background: Tuple[int, int, int]) -> np.ndarray:
    """An opened image file -> (h, w, 3) uint8 sRGB."""
    file.load()
    profile = file.info.get("icc_profile")
    transparency = file.info.get("transparency")
    ImageOps.exif_transpose(file, in_place=True)
    image = file
    if image.mode.startswith("I") or image.mode == "F":
        image = _from_deep_grey(image, transparency, path)
    elif image.mode in ("LA", "La", "PA", "RGBa") or transparency is not None:
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, background + (255,)), image)
    return np.asarray(image.convert("RGB"))


def _from_deep_grey(image: Image.Image, transparency: object, path: Path) -> Image.Image:
    """16-bit integer or 0-to-1 float grey -> 8-bit grey ("L"), or "RGBA" if one grey level is marked transparent.

    Raises:
        UserError: samples beyond that range; how bright they are meant to be is anyone's guess.
    """
    values = np.asarray(image)
    top = 1 if image.mode == "F" else UINT16_MAX
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= top):
        raise UserError(
            f"cannot read the image {path}: its samples run from {values.min():g} to {values.max():g} "
            f"where 0 to {top} is expected; save it as 8-bit or 16-bit PNG"
        )
    scaled = values.astype(np.float32)
    scaled *= 255 / top
    grey = Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    if not isinstance(transparency, int):
        return grey
    alpha = Image.fromarray(np.where(values == transparency, 0, 255).astype(np.uint8))
    return Image.merge("RGBA", (grey, grey, grey, alpha))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts from an embedded ICC profile; sRGB itself and profiles that do not fit the image change nothing."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("the embedded colour profile is ignored: %s", _one_line(error))
        return image
