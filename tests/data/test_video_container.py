"""Videos as people have them, against what the ffmpeg command (another build of another release) decodes of them."""

import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest

from data.video_reader import VideoError, VideoReader
from tests.data.synthetic_videos import frame_number, numbered_frame, write_numbered, write_video

FRAMES, HEIGHT, WIDTH = 40, 48, 64
GROUP = {"g": "12", "bf": "2", "crf": "10", "preset": "veryfast"}
OPEN_GROUPS = {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0", "crf": "10"}


def ffmpeg(*arguments):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def decoded(path, size, *filters):
    """All frames, as the ffmpeg command shows them: (t, h, w, 3) uint8."""
    chosen = ["-vf", ",".join(filters)] if filters else []
    raw = ffmpeg("-i", path, *chosen, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, *size, 3)


def assert_reads_as_ffmpeg(path, fps, *filters):
    """Count, rate and frames, read in one pass and each by a seek of its own."""
    with VideoReader(path) as reader:
        expected = decoded(path, reader.size, *filters)
        assert (reader.num_frames, reader.fps) == (len(expected), pytest.approx(float(fps), rel=1e-3))
        clip = reader.read_clip(0, len(expected))
        for i in range(0, len(expected), 5):
            assert np.array_equal(reader.read_clip(i, 1)[0], clip[i])
    return clip, expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder):
    return write_numbered(folder / "plain.mp4", FRAMES, HEIGHT, WIDTH, options=GROUP)


@pytest.fixture(scope="module")
def open_groups(folder):
    return write_numbered(folder / "open.mkv", FRAMES, HEIGHT, WIDTH, options=OPEN_GROUPS)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts"])
@pytest.mark.parametrize(("start", "length"), [(0.0, 0.9), (0.35, 0.83), (0.51, 5), (0.4, 1.01), (0.777, 0.3)])
def test_a_cut_without_recoding_has_the_frames_that_are_shown(folder, plain, suffix, start, length):
    path = folder / f"cut.{suffix}"
    ffmpeg("-ss", start, "-t", length, "-i", plain, "-c", "copy", path)
    clip, expected = assert_reads_as_ffmpeg(path, 25)
    wrong = [i for i in range(len(clip)) if frame_number(clip[i]) != frame_number(expected[i])]
    assert all(i >= len(clip) - 4 for i in wrong)  # the end of a cut may lack frames; there the one before is shown


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_cut_in_an_open_group_of_pictures(folder, open_groups, suffix):
    path = folder / f"open_cut.{suffix}"
    ffmpeg("-ss", 0.8, "-i", open_groups, "-c", "copy", path)
    clip, expected = assert_reads_as_ffmpeg(path, 25)
    assert np.array_equal(clip, expected)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "h264.avi"), ("libx265", "h265.avi"), ("libx264", "raw.h264")])
def test_frames_without_presentation_times_come_in_the_decoders_order(folder, codec, name):
    options = {**GROUP, "x265-params": "log-level=none"} if codec == "libx265" else GROUP
    source = write_numbered(folder / "source.mp4", FRAMES, HEIGHT, WIDTH, codec=codec, options=options)
    ffmpeg("-i", source, "-c", "copy", folder / name)
    with VideoReader(folder / name) as reader:
        assert (reader.num_frames, reader.fps) == (FRAMES, 25)
        assert [frame_number(f) for f in reader.read_clip(0, FRAMES)] == list(range(FRAMES))
        assert [frame_number(f) for f in reader.read_clip(7, 4, step=9)] == [7, 16, 25, 34]


@pytest.mark.parametrize(
    "options",
    [
        ["-display_hflip"], ["-display_vflip"], ["-display_rotation", "90", "-display_hflip"],
        ["-display_rotation", "-90", "-display_vflip"], ["-display_rotation", "180"],
    ],
)  # fmt: skip
def test_the_whole_display_matrix_is_applied(folder, plain, options):
    path = folder / "displayed.mp4"
    ffmpeg(*options, "-i", plain, "-c", "copy", path)
    clip, expected = assert_reads_as_ffmpeg(path, 25)
    assert np.array_equal(clip, expected)


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mpg"])
def test_interlaced_video_is_deinterlaced(folder, suffix):
    """A bar that moves between the two moments of a frame has straight edges; wherever reading starts, the same."""
    path = folder / f"interlaced.{suffix}"
    fields = np.full((2 * FRAMES, HEIGHT, 96, 3), 30, np.uint8)
    for i, field in enumerate(fields):
        field[:, i : i + 12] = 220
    frames = fields[::2].copy()
    frames[:, 1::2] = fields[1::2, 1::2]
    raw = folder / "fields.rgb"
    raw.write_bytes(frames.tobytes())
    codec = ["-c:v", "mpeg2video", "-b:v", "4M"] if suffix == "mpg" else ["-c:v", "libx264", "-x264opts", "tff=1"]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"96x{HEIGHT}", "-r", 25, "-i", raw, "-vf", "setfield=tff"]
    ffmpeg(*source, *codec, "-flags", "+ildct+ilme", "-g", 6, "-bf", 2, "-pix_fmt", "yuv420p", path)
    clip, expected = assert_reads_as_ffmpeg(path, 25, "bwdif=mode=send_frame:deint=interlaced")
    assert np.array_equal(clip[1:], expected[1:])

    def comb(images):
        return np.abs(np.diff(images[:, 8:-8, :, 1].astype(int), axis=1)).mean()

    assert comb(clip) < 0.2 * comb(decoded(path, (HEIGHT, 96)))


def test_interlacing_that_starts_late_and_times_that_repeat(folder):
    """Two recordings joined: times of the joined file occur twice, and its second half is interlaced."""
    still = "testsrc2=s=96x64:r=25:d=0.8"
    moments = "testsrc2=s=96x64:r=50:d=0.8,tinterlace=interleave_top,setfield=tff"
    encoder = ["-c:v", "mpeg2video", "-g", 6, "-bf", 2]
    ffmpeg("-f", "lavfi", "-i", still, *encoder, folder / "1.mpg")
    ffmpeg("-f", "lavfi", "-i", moments, *encoder, "-flags", "+ildct+ilme", folder / "2.mpg")
    path = folder / "joined.mp4"
    ffmpeg("-i", f"concat:{folder / '1.mpg'}|{folder / '2.mpg'}", "-c", "copy", path)
    clip, expected = assert_reads_as_ffmpeg(path, 25, "bwdif=mode=send_frame:deint=interlaced")
    assert len(clip) == 40 and np.abs(clip.astype(int) - expected).mean(axis=(1, 2, 3)).max() < 2
    assert np.array_equal(np.delete(clip, 20, 0), np.delete(expected, 20, 0))  # 20: the first that is interlaced


@pytest.mark.parametrize(
    ("height", "width", "tag", "matrix"),
    [
        (48, 64, "unknown", "bt601"), (720, 64, "unknown", "bt709"), (96, 1280, "unknown", "bt709"),
        (720, 64, "smpte170m", "bt601"), (48, 64, "bt709", "bt709"), (48, 64, "bt2020nc", "bt2020"),
        (48, 64, "smpte240m", "smpte240m"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p10le"])
def test_colours_by_the_matrix_that_is_named_or_usual(folder, height, width, tag, matrix, pixels):
    path = folder / "red.mp4"
    colours = f"scale=out_color_matrix={matrix}:out_range=limited,format={pixels}"
    tags = f"setparams=colorspace={tag}:color_primaries=unknown:color_trc=unknown"
    source = ["-f", "lavfi", "-i", f"color=0xc81e1e:s={width}x{height}:d=0.2,format=gbrp"]
    ffmpeg(*source, "-vf", f"{colours},{tags}", "-c:v", "libx264", "-qp", 1, path)
    with VideoReader(path) as reader:
        assert np.abs(reader.read([0.0])[0].astype(int) - (200, 30, 30)).max() <= 4


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_refused_by_name(folder, transfer, name):
    path = folder / f"{name}.mp4"
    tags = f"format=yuv420p10le,setparams=color_trc={transfer}:color_primaries=bt2020:colorspace=bt2020nc"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48:d=0.2", "-vf", tags, "-c:v", "libx264", path)
    with pytest.raises(VideoError, match=rf"{name}\.mp4: is HDR \({name}\).*convert it to SDR"):
        VideoReader(path)


def test_a_cover_is_no_video(folder, plain):
    cover, song, film = folder / "cover.jpg", folder / "song.m4a", folder / "film.mp4"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=640x640", "-frames:v", 1, cover)
    kept = ["-i", cover, "-map", 0, "-map", 1, "-c:v", "copy"]
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", *kept, "-c:a", "aac", "-disposition:v:0", "attached_pic", song)
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader(song)
    ffmpeg("-i", plain, *kept, "-disposition:v:1", "attached_pic", film)
    with VideoReader(film) as reader:
        assert (reader.size, reader.num_frames) == ((HEIGHT, WIDTH), FRAMES)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mkv", "ffv1", {}), ("a.mov", "prores_ks", {}), ("b.mov", "qtrle", {}), ("a.webm", "libvpx-vp9", {}),
        ("b.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200000"}), ("a.wmv", "wmv2", {}),
        ("a.flv", "flv", {}), ("a.mpg", "mpeg2video", {"bf": "2", "g": "12"}), ("a.avi", "mjpeg", {}),
    ],
)  # fmt: skip
def test_other_codecs_read_as_ffmpeg_reads_them(folder, name, codec, options):
    formats = {"ffv1": "yuv444p", "prores_ks": "yuv422p10le", "qtrle": "rgb24", "mjpeg": "yuvj420p"}
    pixels = formats.get(codec, "yuv420p")
    encoder = {"codec": codec, "options": options or {"g": "12"}, "pixel_format": pixels}
    path = write_numbered(folder / name, 20, HEIGHT, WIDTH, **encoder)
    clip, expected = assert_reads_as_ffmpeg(path, 25)
    assert [frame_number(f) for f in clip] == [frame_number(f) for f in expected] == list(range(20))
    assert np.abs(clip.astype(int) - expected).mean() < 1


def test_a_late_start_and_a_variable_rate(folder, plain):
    late = folder / "late.ts"
    ffmpeg("-i", plain, "-c", "copy", "-output_ts_offset", 10, late)
    clip, _ = assert_reads_as_ffmpeg(late, 25)
    assert [frame_number(f) for f in clip] == list(range(FRAMES))
    times = [0, 40, 80, 1000, 1040, 1080, 2000, 2040]  # of a recording of a screen on which little happens
    path = write_video(
        folder / "screen.mkv", [numbered_frame(i, HEIGHT, WIDTH) for i in range(8)], Fraction(25), times
    )
    with VideoReader(path) as reader:
        assert reader.num_frames == 8 and reader.fps == pytest.approx(8 / 2.08, rel=0.02)
        for i in range(8):
            shown = max(n for n, time in enumerate(times) if time / 1000 <= (i + 0.5) / reader.fps)
            assert frame_number(reader.read_clip(i, 1)[0]) == shown


def test_unknown_codecs_and_damage_are_errors_of_the_video(folder, plain):
    content = plain.read_bytes()
    (folder / "unknown.mp4").write_bytes(content.replace(b"avc1", b"zzz9"))
    with pytest.raises(VideoError, match=r"unknown\.mp4"):
        VideoReader(folder / "unknown.mp4")
    with av.open(str(plain)) as container:
        assert container.streams.video[0].frames == FRAMES
