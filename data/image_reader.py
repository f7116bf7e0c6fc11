"""Input images: any file that Pillow decodes becomes an upright, opaque, 8-bit sRGB array of the size asked for."""

import io
import logging
import re
import struct
import warnings
import zlib
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, BinaryIO, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from gm.errors import UserError
from gm.files import PathLike, open_input, reason

logger = logging.getLogger(__name__)

# What a file may be by its content. Not among them are formats that start other programs (EPS, PostScript) or that name
# other files; Pillow's older releases lack some.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
ANIMATIONS = ("AVIF", "GIF", "PNG", "WEBP")  # those of them that may move
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
UINT16_MAX = 65535
MAX_PIXELS = 100_000_000  # of an image: twice those of most cameras, and below 2 GiB whatever its samples are
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")  # what the picture depends on
MAX_PROFILE_BYTES = 1 << 24
MAX_HEAD_BYTES = 1 << 16  # of an AVIF or HEIC file, in which its properties lie
HDR = {16: "PQ", 18: "HLG"}  # transfer functions, ISO/IEC 23091-2
SAME_COLOUR = 2  # levels, of 255, by which an sRGB profile's colours may differ from sRGB's
EXIF_ORIENTATION = 0x0112
TURNS = {  # EXIF orientation -> how the stored image becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    with explained(path), open_input(path) as file, open_image(file) as image:
        return to_rgb(image, path, background)


@contextmanager
def explained(path: PathLike) -> Iterator[None]:
    """Turns what goes wrong in the block with the image at `path` into a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large files and odd tags; both are dealt with here
            yield
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


def open_image(file: BinaryIO, formats: Sequence[str] = FORMATS) -> Image.Image:
    """An image file of one of some formats, not decoded yet; the errors are those of :func:`PIL.Image.open`.

    Of a PNG file's metadata only what the picture depends on is read.
    """
    Image.init()
    TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader refuses uncompressed YCbCr
    head, info = file.read(MAX_HEAD_BYTES), {}
    if head.startswith(PNG_SIGNATURE):
        file, info = _picture_chunks(file)
    elif head[4:8] == b"ftyp":
        info = {"transfer": _shared_transfer(head)}
        if _is_heic(head):
            _register_heif()
    file.seek(0)
    image = Image.open(file, formats=[name for name in formats if name in Image.OPEN])
    image.info.update(info)
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if image.format == "WEBP" and image.is_animated:  # transparent is, too, what none of its opaque frames covers
        image._mode = image.rawmode = "RGBA"
    return image


def is_animation(path: PathLike) -> bool:
    """Whether an image file moves; False for one that cannot be read."""
    try:
        with explained(path), open_input(path) as file:
            return bool(getattr(open_image(file, ANIMATIONS), "is_animated", False))
    except UserError:
        return False


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


@lru_cache(maxsize=1)
def _register_heif() -> None:
    """Makes Pillow read HEIC, where that package is installed."""
    with suppress(ImportError):
        import pillow_heif  # optional

        pillow_heif.register_heif_opener()


def _picture_chunks(file: BinaryIO) -> Tuple[BinaryIO, Dict[str, Any]]:
    """A PNG file without metadata: text and the like may be damaged or of any size.

    Returns:
        the file with the chunks that the picture depends on, and what else is known of its colours: a sound ICC profile
        (icc_profile), the code of its transfer function (transfer).
    """
    file.seek(len(PNG_SIGNATURE))
    chunks, info = [PNG_SIGNATURE], {}
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        content = file.read(size + 4)
        if kind in PNG_CHUNKS:
            chunks += head, content
        elif kind == b"eXIf":
            chunks += head, content[:size], struct.pack(">I", zlib.crc32(kind + content[:size]))
        elif kind == b"iCCP":
            with suppress(zlib.error):  # name, 0, compression method, compressed profile
                packed = content.partition(b"\0")[2][1:-4]
                info["icc_profile"] = zlib.decompressobj().decompress(packed, MAX_PROFILE_BYTES)
        elif kind == b"cICP":
            info["transfer"] = content[1]
    return io.BytesIO(b"".join(chunks)), info


def _shared_transfer(head: bytes) -> Optional[int]:
    """The code of the transfer function (ISO/IEC 23091-2) of all images in an AVIF or HEIC file, None if they differ.

    An image with a gain map (`tmap`) has an SDR base, whatever the other ones are.
    """
    codes = set(re.findall(rb"colrnclx..\0(.)", head, re.DOTALL))
    return codes.pop()[0] if len(codes) == 1 and b"tmap" not in head else None


def _is_heic(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _not_an_image(path: PathLike) -> str:
    with open_input(path) as file:
        head = file.read(len(PNG_SIGNATURE) + 4)
    if not head:
        return "the file is empty"
    if _is_heic(head):
        return "it is HEIC, which needs `pip install pillow-heif`; or save it as JPEG"
    return "it is not an image, or of a kind that is not supported; save it as PNG or JPEG"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def to_rgb(image: Image.Image, path: PathLike, background: Tuple[int, int, int] = BACKGROUNDS["white"]) -> np.ndarray:
    """The present frame of an opened image file as :func:`read_image` gives it, (h, w, 3) uint8."""
    if image.info.get("transfer") in HDR:
        kind = HDR[image.info["transfer"]]
        raise UserError(
            f"cannot read the image {path}: it is HDR ({kind}) and would look pale; convert it to SDR (sRGB)"
        )
    image.load()
    profile = image.info.get("icc_profile")
    transparency = image.info.get("transparency")
    turn = TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
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


def _orientation(image: Image.Image) -> object:
    """EXIF's tag, 1 to 8 where it is sound; the rest of the EXIF data may be anything."""
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except (OSError, *DECODER_ERRORS) as error:
        logger.warning("the EXIF data are ignored: %s", _one_line(error))
        return None


def _from_deep_grey(image: Image.Image, transparency: object, path: PathLike) -> Image.Image:
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
    """Converts from an embedded ICC profile; one that does not fit the image is ignored."""
    try:
        transform = _colour_transform(profile, image.mode)
        return image if transform is None else transform.apply(image)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        logger.warning("the embedded colour profile is ignored: %s", _one_line(error))
        return image


@lru_cache(maxsize=8)
def _colour_transform(profile: bytes, mode: str) -> Optional[ImageCms.ImageCmsTransform]:
    """From an ICC profile to sRGB; None for a profile whose colours, whatever its name is, are sRGB's."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, mode, "RGBA" if mode == "RGBA" else "RGB")
    if mode not in ("RGB", "RGBA"):
        return transform
    colours = np.indices((6, 6, 6), np.uint8).reshape(3, 1, -1).T * np.uint8(51)
    probe = Image.fromarray(colours).convert(mode)
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe)
    return None if np.abs(change).max() <= SAME_COLOUR else transform
