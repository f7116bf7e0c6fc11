import subprocess
from fractions import Fraction

import av
import imageio_ffmpeg
import numpy as np
import pytest

from data.video_container import VideoContainer
from data.video_reader import VideoError, VideoReader
from tests.data.synthetic_videos import frame_number, remux, write_cut_off, write_numbered

NTSC = Fraction(30000, 1001)
NUM_FRAMES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder):
    return write_numbered(folder / "plain.mp4")


def numbers(path, positions):
    """The numbers shown at grid positions, each fetched by its own seek."""
    with VideoReader(path) as reader:
        return [frame_number(reader.read_clip(i, 1)[0]) for i in positions]


def ffmpeg_frame(path, number):
    """Frame `number` as the ffmpeg command decodes and turns it, (h, w, 3)."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-vf", f"select=eq(n\\,{number})"]
    raw = subprocess.run([*command, "-frames:v", "1", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"],
                         check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("rate25.mp4", {}),
        ("ntsc.mp4", {"fps": NTSC}),
        ("no_count.mkv", {}),
        ("no_count_ntsc.webm", {"fps": NTSC, "codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}}),
        ("late_start.ts", {}),
        ("old.avi", {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}),
        ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("open_gop.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}}),
        ("one_key_frame.mp4", {"options": {"g": "1000", "crf": "18"}}),
        ("odd.mp4", {"height": 97, "width": 161, "pixel_format": "yuv444p"}),
    ],
)
def test_every_frame_is_found_by_seeking(folder, name, kwargs):
    path = write_numbered(folder / name, NUM_FRAMES, **kwargs)
    fps = float(kwargs.get("fps", 25))
    with VideoReader(path) as reader:
        assert reader.num_frames == NUM_FRAMES
        assert reader.fps == pytest.approx(fps, rel=1e-4)
        assert reader.duration == pytest.approx(NUM_FRAMES / fps, rel=1e-4)
        assert reader.size == (kwargs.get("height", 96), kwargs.get("width", 160))
        assert [frame_number(f) for f in reader.read_clip(0, NUM_FRAMES)] == list(range(NUM_FRAMES))
        for i in (59, 0, 11, 12, 13, 37, 23, 24, 58, 1):
            assert frame_number(reader.read_clip(i, 1)[0]) == i
        clip = reader.read_clip(7, 5, step=9)
    assert clip.dtype == np.uint8 and clip.shape == (5, *reader.size, 3)
    assert [frame_number(f) for f in clip] == [7, 16, 25, 34, 43]


def test_frames_equal_those_of_the_ffmpeg_command(plain):
    with VideoReader(plain) as reader:
        assert np.array_equal(reader.read_clip(31, 1).ravel(), ffmpeg_frame(plain, 31))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_follows_the_clock(folder, suffix):
    gaps = np.random.default_rng(0).integers(10, 120, NUM_FRAMES)
    times_ms = [int(t) for t in np.cumsum(gaps) - gaps[0]]
    path = write_numbered(folder / f"variable.{suffix}", NUM_FRAMES, times_ms=times_ms)
    seconds = times_ms[-1] / 1000
    with VideoReader(path) as reader:
        assert reader.num_frames == NUM_FRAMES
        assert reader.fps == pytest.approx(NUM_FRAMES / seconds, rel=0.02)
        half = 500 / reader.fps
        for position in range(NUM_FRAMES):
            time_ms = 1000 * position / reader.fps
            expected = max(i for i, t in enumerate(times_ms) if t <= time_ms + half)
            assert frame_number(reader.read_clip(position, 1)[0]) == expected
    # a clip of 20 frames lasts as long as 20 mean intervals, however unevenly the file's frames are spread
    shown = numbers(path, range(10, 30))
    span = (times_ms[shown[-1]] - times_ms[shown[0]]) / 1000
    assert span == pytest.approx(19 / reader.fps, abs=0.12)


@pytest.mark.parametrize("seed", range(3))
def test_any_ascending_times_give_what_decoding_everything_gives(folder, seed):
    rng = np.random.default_rng(seed)
    gaps = rng.choice([1, 17, 40, 400, 1500], 200, p=[0.1, 0.3, 0.4, 0.15, 0.05])
    times_ms = [int(t) for t in np.cumsum(gaps) - gaps[0]]
    path = write_numbered(folder / f"random{seed}.mp4", 200, times_ms=times_ms, options={"preset": "medium"})
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with VideoReader(path) as reader:
        half = 0.5 / reader.fps
        for _ in range(12):
            start, span = rng.uniform(0, times_ms[-1] / 1000), rng.choice([0.2, 3.0, 30.0])
            times = np.sort(rng.uniform(start, min(start + span, times_ms[-1] / 1000), 8))
            for time, frame in zip(times, reader.read(times)):
                assert np.array_equal(frame, [rgb for t, rgb in frames if t <= time + half][-1])


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(folder, plain, degrees):
    path = remux(plain, folder / f"turned{degrees}.mp4", "-display_rotation", str(degrees))
    with VideoReader(path) as reader:
        clip = reader.read_clip(5, 2)
        assert clip.shape[1:3] == reader.size == ((96, 160) if degrees == 180 else (160, 96))
        assert np.array_equal(clip[0].ravel(), ffmpeg_frame(path, 5))


def test_cut_without_recoding_starts_at_the_first_frame_shown(folder, plain):
    path = remux(plain, folder / "cut.mp4", "-ss", "1.0")
    with av.open(str(path)) as container:
        visible = sum(1 for _ in container.decode(video=0))
    with VideoReader(path) as reader:
        assert reader.num_frames == visible
        assert [frame_number(f) for f in reader.read_clip(0, visible)] == list(range(60 - visible, 60))


def test_non_square_pixels_become_square(folder, plain):
    path = folder / "wide.mp4"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(plain), "-vf", "setsar=2/1",
                    str(path)], check=True)
    with VideoReader(path) as reader:
        assert reader.size == (96, 320)
        assert frame_number(reader.read_clip(33, 1)[0]) == 33


def test_a_clip_late_in_the_file_is_not_decoded_from_its_start(folder, monkeypatch):
    path = write_numbered(folder / "long.mp4", 200)
    decoded = []
    frames = VideoContainer._frames
    monkeypatch.setattr(VideoContainer, "_frames", lambda self, packet: decoded.append(packet) or frames(self, packet))
    with VideoReader(path) as reader:
        decoded.clear()
        assert frame_number(reader.read_clip(190, 1)[0]) == 190
    assert 1 <= len(decoded) <= 16  # a group of pictures and a few ahead, not 190


@pytest.mark.parametrize("position", [60, 75, 100000])
def test_a_time_after_the_end_is_an_error(plain, position):
    with VideoReader(plain) as reader, pytest.raises(VideoError, match=r"plain\.mp4: ends before"):
        reader.read_clip(position, 1)


def test_a_cut_off_file_is_read_up_to_the_damage(folder):
    path = write_cut_off(folder / "cut_off.mp4")
    with VideoReader(path) as reader:
        assert reader.num_frames == NUM_FRAMES  # what the header promises
        assert [frame_number(f) for f in reader.read_clip(0, 5)] == list(range(5))
        with pytest.raises(VideoError, match=r"cut_off\.mp4: .*cut off"):
            reader.read_clip(0, NUM_FRAMES)


def test_a_change_of_size_is_named(folder):
    write_numbered(folder / "large.ts", 20)
    write_numbered(folder / "small.ts", 20, height=64, width=96)
    (folder / "list.txt").write_text("file large.ts\nfile small.ts\n")
    path = folder / "joined.ts"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "concat", "-i", str(folder / "list.txt")]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)
    with VideoReader(path) as reader:
        assert [frame_number(f) for f in reader.read_clip(0, 15)] == list(range(15))
        with pytest.raises(VideoError, match=r"joined\.ts: the frame size changes"):
            reader.read_clip(0, 30)


def test_what_is_no_video_is_named(folder):
    (folder / "text.mp4").write_text("no video at all")
    (folder / "empty.mp4").write_bytes(b"")
    for name in ("text.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name):
            VideoReader(folder / name)


def test_sound_alone_is_no_video(folder):
    path = folder / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader(path)


@pytest.mark.timeout(30)
def test_only_the_named_file_itself_is_opened(folder, plain, monkeypatch):
    """No protocol, no list of other files: names are names, and what a file asks for is not fetched."""
    monkeypatch.chdir(folder)
    (folder / "12:30 party.mp4").write_bytes(plain.read_bytes())
    with VideoReader("12:30 party.mp4") as reader:
        assert reader.num_frames == NUM_FRAMES
    for name in ("http://127.0.0.1:9/x.mp4", "pipe:0.mp4", "concat:plain.mp4|plain.mp4", "file:plain.mp4", "-"):
        with pytest.raises(VideoError, match="No such file"):
            VideoReader(name)
    lists = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\n{plain.as_uri()}\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile plain.mp4\n",
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
        with pytest.raises(VideoError, match=name):
            VideoReader(name)
