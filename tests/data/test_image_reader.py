import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from data import image_reader
from data.file_search import find_images
from data.image_reader import fit_image, read_image
from gm.errors import UserError


@pytest.fixture
def picture():
    """uint8 (60, 80, 3): smooth, coloured, different in every corner."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.png"


def grey_of(picture):
    return np.asarray(Image.fromarray(picture).convert("L"))


@pytest.mark.parametrize(
    ("suffix", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tif", {}, 0),
        ("tiff", {"compression": "tiff_lzw"}, 0),
        ("ppm", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 95, "subsampling": 0}, 8),
        ("gif", {}, 60),
    ],
)
def test_formats(tmp_path, picture, suffix, options, tolerance):
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", **options)
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.dtype == np.uint8 and image.shape == picture.shape
    assert np.abs(image.astype(int) - picture).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK", "YCbCr"])
def test_modes_keep_what_they_hold(tmp_path, picture, mode):
    source = Image.fromarray(picture).convert(mode)
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    source.save(tmp_path / f"a.{suffix}")
    expected = np.asarray(source.convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / f"a.{suffix}") - expected).max() <= (4 if mode == "YCbCr" else 0)


def test_cmyk_jpeg_is_not_inverted(tmp_path, picture):
    Image.fromarray(picture).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture).mean() < 3


def test_16_bit_grey_uses_the_whole_range(path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(path)
    image = read_image(path)
    assert image.shape == (256, 256, 3) and (image == image[..., :1]).all()
    assert np.array_equal(image[..., 0], np.rint(ramp / 257.0).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour(tmp_path, picture, suffix):
    file = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(file), picture[..., ::-1].astype(np.uint16) * 257)
    assert np.array_equal(read_image(file), picture)


def test_16_bit_colour_with_alpha(path, picture):
    deep = np.dstack([picture[..., ::-1], np.full(picture.shape[:2], 255)]).astype(np.uint16) * 257
    deep[:30, :, 3] = 0
    assert cv2.imwrite(str(path), deep)
    image = read_image(path)
    assert (image[:30] == 255).all() and np.array_equal(image[30:], picture[30:])


def test_float_grey_is_0_to_1(tmp_path, picture):
    Image.fromarray(grey_of(picture).astype(np.float32) / 255).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], grey_of(picture))


@pytest.mark.parametrize("values", [np.full((4, 4), 200.0), np.full((4, 4), np.nan), np.full((4, 4), -0.1)])
def test_float_beyond_its_range_is_refused(tmp_path, values):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif.*0 to 1 is expected; save it as"):
        read_image(tmp_path / "a.tif")


def test_alpha_is_composited_over_the_background(path):
    rgba = np.zeros((2, 3, 4), np.uint8)
    rgba[...] = (200, 100, 0, 0)
    rgba[:, 1, 3] = 128
    rgba[:, 2, 3] = 255
    Image.fromarray(rgba).save(path)
    alpha = np.array([0, 128, 255]) / 255
    for background in ((255, 255, 255), (0, 0, 0), (10, 200, 30)):
        expected = alpha[:, None] * (200, 100, 0) + (1 - alpha[:, None]) * np.array(background)
        assert np.abs(read_image(path, background)[0] - expected).max() <= 1
    assert np.array_equal(read_image(path)[0, 0], (255, 255, 255))  # white unless told


def test_transparent_palette_entries_and_key_colours(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "index.png", transparency=1)
    palette.save(tmp_path / "table.png", transparency=bytes([255, 0, 128]))
    white, red = (255, 255, 255), (255, 0, 0)
    assert read_image(tmp_path / "index.png")[0].tolist() == [list(red), list(white), [0, 0, 255]]
    assert read_image(tmp_path / "table.png")[0].tolist() == [list(red), list(white), [127, 127, 255]]

    Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "grey.png", transparency=9)
    assert read_image(tmp_path / "grey.png")[0, :, 0].tolist() == [7, 255]
    Image.fromarray(np.array([[257 * 7, 257 * 9]], np.uint16)).save(tmp_path / "deep.png", transparency=257 * 9)
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [7, 255]


# EXIF orientation -> how the stored image must be turned to be seen upright (the tag's definition)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
    77: lambda a: a,  # undefined: ignored
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)
    assert np.array_equal(read_image(path), UPRIGHT[orientation](picture))


def test_embedded_profile_is_converted_to_srgb(path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    Image.fromarray(picture).save(path, icc_profile=srgb)
    assert np.array_equal(read_image(path), picture)
    # the same profile under another name, with red and blue changing places
    swapped = srgb.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    swapped = swapped.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
    Image.fromarray(picture).save(path, icc_profile=swapped)
    assert np.abs(read_image(path)[0, 0].astype(int) - (0, 0, 255)).max() <= 2
    Image.fromarray(picture).save(path, icc_profile=b"not a profile")
    assert np.array_equal(read_image(path), picture)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(read_image(tmp_path / f"a.{suffix}").astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, picture, suffix, kept):
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UserError, match=rf"^cannot read the image .*a\.{suffix}: ") as error:
        read_image(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\0" * 100, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image.*save it as PNG or JPEG"),
    ],
)
def test_what_is_no_image_is_refused(path, content, reason):
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_image(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match="directory"):
        read_image(tmp_path)


def test_decompression_bombs_are_refused(path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))
    with pytest.raises(UserError, match=r"more than 100 million pixels; shrink it"):
        read_image(path)


def test_damaged_bytes_never_escape_as_another_error(tmp_path, picture):
    rng = np.random.default_rng(1)
    for suffix in ("png", "jpg", "gif", "webp", "bmp"):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
        for _ in range(20):
            damaged = bytearray(buffer.getvalue())
            for position in rng.integers(0, len(damaged), 5):
                damaged[position] = rng.integers(256)
            (tmp_path / f"a.{suffix}").write_bytes(damaged)
            try:
                assert read_image(tmp_path / f"a.{suffix}").dtype == np.uint8
            except UserError as error:
                assert "\n" not in str(error)


def test_find_images_in_a_folder(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp", ".hidden.png", "notes.txt", "d.mp4"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [image.name for image in find_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]
    assert find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]  # named directly: the reader decides


def test_find_images_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"--image: .*nothing does not exist; name an image file or a folder"):
        find_images(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"--image: no image in the folder .*\.png"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="--image: /dev/null is neither a file nor a folder"):
        find_images("/dev/null")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"--image"):
        find_images(tmp_path / "a.png" / "b.png")
    with pytest.raises(UserError, match="--image: cannot read"):
        find_images("x" * 5000)


def position_picture(height, width):
    """uint8 (h, w, 3): red tells the row, green the column, each 0 to 255."""
    rows = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    columns = np.linspace(0, 255, width)[None].repeat(height, 0)
    return np.rint(np.stack([rows, columns, np.zeros_like(rows)], -1)).astype(np.uint8)


def test_an_image_of_the_right_size_is_unchanged(picture):
    assert fit_image(picture, 60, 80, (0.1, 0.9)) is picture


@pytest.mark.parametrize("source", [(576, 1024), (300, 300), (1000, 200), (64, 300), (40, 30), (577, 1023)])
@pytest.mark.parametrize("target", [(128, 192), (192, 128), (64, 64)])
def test_fit_covers_crops_and_never_squashes(source, target):
    fitted = fit_image(position_picture(*source), *target)
    assert fitted.shape == (*target, 3)
    inner = fitted[target[0] // 4 : -target[0] // 4, target[1] // 4 : -target[1] // 4].astype(float)
    # source pixels per target pixel, from the slopes of red and green, are the same down and across
    down = np.diff(inner[..., 0].mean(1)).mean() * (source[0] - 1) / 255
    across = np.diff(inner[..., 1].mean(0)).mean() * (source[1] - 1) / 255
    expected = min(source[0] / target[0], source[1] / target[1])
    assert down == pytest.approx(expected, rel=0.06) and across == pytest.approx(expected, rel=0.06)
    centre = fitted[target[0] // 2 - 1 : target[0] // 2 + 1, target[1] // 2 - 1 : target[1] // 2 + 1, :2]
    assert centre.mean((0, 1)) == pytest.approx([127.5, 127.5], abs=2)


@pytest.mark.parametrize(("offset", "corner"), [(0.0, 0), (1.0, 64), (0.5, 32), (0.25, 16)])
def test_crop_offset_places_the_window(offset, corner):
    tall = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    assert np.array_equal(fit_image(tall, 64, 64, (offset, 0.5)), tall[corner : corner + 64])
    wide = tall.swapaxes(0, 1)
    assert np.array_equal(fit_image(wide, 64, 64, (0.5, offset)), wide[:, corner : corner + 64])


def test_shrinking_is_antialiased():
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    shrunk = fit_image(board, 60, 60)[4:-4, 4:-4].astype(int)
    assert np.abs(shrunk - 127).max() <= 4


@pytest.mark.parametrize("source", [(1, 1), (1, 5000), (5000, 1), (3, 7)])
def test_any_size_of_source_fits(source):
    image = np.full((*source, 3), 77, np.uint8)
    assert (fit_image(image, 64, 128) == 77).all()


@pytest.mark.parametrize("offset", [(-0.1, 0.5), (0.5, 1.5), (float("nan"), 0.5)])
def test_crop_offset_outside_the_image_is_refused(picture, offset):
    with pytest.raises(UserError, match=r"--SVD\.crop_offset.*outside 0 to 1"):
        fit_image(picture, 64, 64, offset)


@pytest.mark.parametrize("suffix", ["eps", "png"])
def test_pictures_that_other_programs_would_run_are_refused(tmp_path, monkeypatch, suffix):
    """A PostScript file, whatever its name: Ghostscript, which Pillow would start for it, is never looked for."""
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    assert b"%!PS-Adobe" in path.read_bytes()
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("PostScript is run"))
    with pytest.raises(UserError, match="it is not an image, or of a kind that is not supported"):
        read_image(path)


@pytest.mark.timeout(20)
def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match="it is a named pipe"):
        read_image(tmp_path / "a.png")


ORIENTED = b"\x12\x01\x03\0\1\0\0\0\6\0\0\0"  # orientation 6


@pytest.mark.parametrize(
    "odd",
    [
        b"\x1a\x01\5\0\1\0\0\0\x26\0\0\0",  # XResolution, a rational of -1/0
        b"\x28\x01\2\0\4\0\0\0abc\0",  # ResolutionUnit as text
        b"\x31\x01\3\0\2\0\0\0\1\0\2\0",  # Software as numbers
        b"\x69\x87\4\0\1\0\0\0\xff\xff\xff\x7f",  # a directory far behind the end
        b"\x7c\x92\7\0\xff\xff\xff\0\x26\0\0\0",  # a note of 16 MB that is not there
    ],
)
def test_odd_exif_costs_neither_the_picture_nor_its_turn(tmp_path, picture, odd):
    entries = sorted([ORIENTED, odd])
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0" + b"".join(entries) + b"\0\0\0\0" + struct.pack("<iI", -1, 0)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=98, subsampling=0, exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (80, 60, 3) and np.abs(image.astype(int) - np.rot90(picture, -1)).max() < 12


@pytest.mark.parametrize("content", [b"", b"Exif\0\0", b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_exif_that_is_none_costs_nothing(tmp_path, picture, content):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=98, subsampling=0)
    jpeg = (tmp_path / "a.jpg").read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture).max() < 12


def png_chunk(kind, content, crc=None):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc or zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(1 << 22))),
        png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(1 << 22))),
        png_chunk(b"iCCP", b"large\0\0" + zlib.compress(bytes(1 << 25))),
        png_chunk(b"iCCP", b"none\0\0junk"), png_chunk(b"tEXt", b"a\0b", crc=1), png_chunk(b"pHYs", b"x"),
        png_chunk(b"eXIf", b"no exif"), png_chunk(b"gAMA", b""), png_chunk(b"tIME", b"1"),
    ],
)  # fmt: skip
def test_a_png_s_metadata_never_cost_the_picture(path, picture, chunk):
    Image.fromarray(picture).save(path)
    png = path.read_bytes()
    path.write_bytes(png[:33] + chunk + png[33:])
    assert np.array_equal(read_image(path), picture)


def profile(curve, columns, description):
    """An ICC profile of three colours (X, Y, Z under D50) and one curve; LittleCMS applies it."""
    def s15(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(description) + 1) + description + bytes(80)}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + s15(0.9642, 1, 0.8249)
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns):
        tags[name] = b"XYZ " + bytes(4) + s15(*column)
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = curve
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(data), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + s15(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + data


SRGB_COLUMNS = [(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
P3_COLUMNS = [(0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)]
LINEAR = b"curv" + bytes(8)
GAMMA_22 = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256))


@pytest.mark.parametrize("description", [b"GIMP built-in Linear sRGB", b"sRGB-elle-V2-g10.icc", b"linear"])
def test_linear_light_becomes_srgb_whatever_its_name(path, description):
    Image.fromarray(np.full((4, 4, 3), (183, 3, 128), np.uint8)).save(
        path, icc_profile=profile(LINEAR, SRGB_COLUMNS, description)
    )
    levels = np.array([183, 3, 128]) / 255
    encoded = 255 * np.where(levels > 0.0031308, 1.055 * levels ** (1 / 2.4) - 0.055, 12.92 * levels)
    assert np.abs(read_image(path)[0, 0] - encoded).max() <= 3


def test_a_wide_gamut_is_converted(path):
    """Display P3's (red 200, green 30, blue 30) by the matrices' definition; transparency is kept on the way."""
    Image.fromarray(np.full((4, 4, 4), (200, 60, 60, 255), np.uint8)).save(
        path, icc_profile=profile(GAMMA_22, P3_COLUMNS, b"Display P3")
    )
    linear = (np.array([200, 60, 60]) / 255) ** 2.2
    linear = np.linalg.solve(np.array(SRGB_COLUMNS).T, np.array(P3_COLUMNS).T @ linear).clip(0, 1)
    encoded = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(read_image(path)[0, 0] - encoded).max() <= 4


@pytest.mark.parametrize("suffix", ["heic", "avif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_phones_formats(tmp_path, picture, suffix, orientation):
    if suffix == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture).save(tmp_path / f"a.{suffix}", quality=100, exif=exif.tobytes())
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == UPRIGHT[orientation](picture).shape
    assert np.abs(image.astype(int) - UPRIGHT[orientation](picture)).mean() < 6


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "HEIF"})
    image_reader._register_heif.cache_clear()
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"IMG_0001\.HEIC: it is HEIC, which needs `pip install pillow-heif`"):
        read_image(tmp_path / "IMG_0001.HEIC")
    image_reader._register_heif.cache_clear()


@pytest.mark.parametrize(("transfer", "code", "name"), [("smpte2084", 16, "PQ"), ("arib-std-b67", 18, "HLG")])
def test_hdr_is_refused_by_name(tmp_path, picture, transfer, code, name):
    Image.fromarray(picture).save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(png[:33] + png_chunk(b"cICP", bytes([9, code, 0, 1])) + png[33:])
    tags = f"format=yuv420p10le,setparams=color_trc={transfer}:color_primaries=bt2020:colorspace=bt2020nc"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "color=red:s=64x48", "-vf", tags]
    command += ["-frames:v", "1", "-c:v", "libaom-av1", "-still-picture", "1", str(tmp_path / "a.avif")]
    subprocess.run(command, check=True)
    for suffix in ("png", "avif"):
        with pytest.raises(UserError, match=rf"a\.{suffix}: it is HDR \({name}\).*convert it to SDR"):
            read_image(tmp_path / f"a.{suffix}")
