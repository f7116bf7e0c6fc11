import logging
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from data.metadata_csv import COLUMNS, write_rows
from data.motion import Motion, Piece, motion_bucket
from data.motion_journal import Finding, Journal
from data.video_dataset import VideoDataset
from gm.errors import UserError
from tests.data.synthetic_videos import frame_number, write_cut_off, write_numbered

LENGTHS = {"a.mp4": 30, "b, c.mp4": 40, "d.mkv": 50, "sub/e.mp4": 21}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "sub").mkdir()
    for name, length in LENGTHS.items():
        write_numbered(folder / name, length, fps=Fraction(30) if name == "a.mp4" else Fraction(25))
    (folder / "broken.mp4").write_text("no video")
    write_cut_off(folder / "cut_off.mp4")  # 12 of its 60 frames are sound
    return folder


@pytest.fixture
def make(data_dir, tmp_path):
    def make(rows=None, **kwargs):
        rows = [(name, length, 10 * i) for i, (name, length) in enumerate(LENGTHS.items())] if rows is None else rows
        write_rows(tmp_path / "videos.csv", COLUMNS, rows)
        options = {"frames": 4, "step": 5, "height": 64, "width": 64, **kwargs}
        return VideoDataset(data_dir, tmp_path / "videos.csv", **options)

    return make


def numbers(sample):
    """Frame numbers that a sample of full width shows."""
    return [frame_number(((f.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)) for f in sample["frames"]]


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_sample(make):
    dataset = make(height=96, width=160)
    assert len(dataset) == 4
    for index, (name, length) in enumerate(LENGTHS.items()):
        sample = dataset.sample(0, index)
        assert sample["frames"].shape == (4, 3, 96, 160) and sample["frames"].dtype == np.float32
        assert -1.0 <= sample["frames"].min() < -0.7 and 0.7 < sample["frames"].max() <= 1.0
        assert (sample["video"], sample["start"].dtype) == (index, np.int32)
        assert 0 <= sample["start"] <= length - 16
        assert numbers(sample) == [sample["start"] + 5 * i for i in range(4)]
        assert sample["fps"].dtype == np.float32 == sample["motion_bucket_id"].dtype
        assert sample["fps"] == pytest.approx((30 if name == "a.mp4" else 25) / 5, rel=1e-5)
        assert sample["motion_bucket_id"] == 10 * index


def test_a_sample_depends_on_nothing_but_seed_epoch_and_index(make):
    options = {"random_crop": True, "horizontal_flip": True}
    places = [(epoch, index) for epoch in range(3) for index in range(4)]
    first, again = make(**options), make(**options)
    forward = [first.sample(*place) for place in places]
    backward = [again.sample(*place) for place in reversed(places)][::-1]
    assert all(same(one, other) for one, other in zip(forward, backward))
    assert len({(int(s["video"]), int(s["start"])) for s in forward}) > 4  # the start is drawn anew each epoch
    other = [make(seed=7, **options).sample(*place) for place in places]
    assert not all(same(one, two) for one, two in zip(forward, other))


def test_starts_reach_both_ends(make):
    dataset = make(rows=[("sub/e.mp4", 21, 0)], frames=3, step=6)
    starts = {int(dataset.sample(epoch, 0)["start"]) for epoch in range(60)}
    assert starts == set(range(9))


def test_crop_and_flip_do_not_change_the_clips_drawn(make):
    plain, varied = make(), make(random_crop=True, horizontal_flip=True, shuffle_channels=True)
    for epoch in range(5):
        assert plain.sample(epoch, 2)["start"] == varied.sample(epoch, 2)["start"]


def test_one_flip_for_all_frames(make):
    plain, flipping = make(height=96, width=160), make(height=96, width=160, horizontal_flip=True)
    mirrored = 0
    for epoch in range(20):
        clip, maybe = plain.sample(epoch, 1)["frames"], flipping.sample(epoch, 1)["frames"]
        if not np.array_equal(clip, maybe):
            assert np.array_equal(clip[..., ::-1], maybe)
            mirrored += 1
    assert 4 <= mirrored <= 16


def test_channels_in_every_order_one_for_all_frames(make):
    plain, shuffling = make(), make(shuffle_channels=True)
    orders = set()
    for epoch in range(40):
        clip, shuffled = plain.sample(epoch, 1)["frames"], shuffling.sample(epoch, 1)["frames"]
        orders |= {order for order in permutations(range(3)) if np.array_equal(clip[:, order], shuffled)}
    assert len(orders) == 6


def test_random_crops_differ_and_are_one_for_all_frames(make):
    dataset = make(random_crop=True, height=64, width=64)
    left_edges = set()
    for epoch in range(12):
        red = dataset.sample(epoch, 1)["frames"][:, 0, -8:].mean(1) > 0.2  # t w: the red quarter ends at half the width
        assert (red == red[0]).all()
        left_edges.add(int(red[0].sum()))
    assert len(left_edges) > 4


def test_short_rows_are_left_out_and_named(make, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = make(frames=10, step=4)
    assert [row.path for row in dataset.rows] == ["b, c.mp4", "d.mkv"]
    assert "left out 2 of 4" in caplog.text and "a.mp4, sub/e.mp4" in caplog.text


@pytest.mark.parametrize("bad", [("broken.mp4", 60, 1), ("sub/e.mp4", 2000, 1)])
def test_a_broken_or_shorter_video_is_named_once_and_replaced(make, caplog, bad):
    rows = [bad, ("a.mp4", 30, 2), ("d.mkv", 50, 3)]
    dataset = make(rows)
    with caplog.at_level(logging.WARNING):
        samples = [dataset.sample(epoch, 0) for epoch in range(8)]
    assert {int(sample["video"]) for sample in samples} == {1, 2}
    assert dataset.num_broken == 1
    assert caplog.text.count("skipped") == 1 and bad[0] in caplog.text and "1 of 3" in caplog.text
    for epoch in (5, 2):  # the stand-in is as fixed as any sample, in a data set that knows nothing yet too
        assert same(make(rows).sample(epoch, 0), samples[epoch])


def test_sound_clips_of_a_damaged_video_do_not_depend_on_history(make):
    rows = [("cut_off.mp4", 60, 1), ("a.mp4", 30, 2), ("d.mkv", 50, 3)]
    dataset = make(rows, frames=2, step=2)
    samples = [dataset.sample(epoch, 0) for epoch in range(30)]
    found = [int(sample["video"]) != 0 for sample in samples].index(True)  # where the damage shows first
    later = [epoch for epoch in range(found, 30) if samples[epoch]["video"] == 0]
    assert dataset.num_broken == 1 and later
    again = make(rows, frames=2, step=2)
    assert all(same(again.sample(epoch, 0), samples[epoch]) for epoch in [*later, found])


def test_more_than_the_set_share_broken_stops(make, data_dir):
    for name in ("x.mp4", "y.mp4", "z.mp4"):
        (data_dir / name).write_bytes(b"")
    sound = [("a.mp4", 30, 0)] * 7
    broken = [(name, 60, 0) for name in ("x.mp4", "y.mp4", "z.mp4")]
    dataset = make(sound + broken, max_broken_share=0.2)
    assert [int(dataset.sample(0, index)["video"]) < 7 for index in (7, 8)] == [True, True]
    with pytest.raises(UserError, match=r"3 of 10 videos are broken, .*max_broken_share"):
        for epoch in range(10):
            dataset.sample(epoch, 9)


def test_the_only_video_or_a_share_of_zero_forgives_nothing(make):
    with pytest.raises(UserError, match="1 of 1 videos"):
        make([("broken.mp4", 60, 0)]).sample(0, 0)
    with pytest.raises(UserError, match="1 of 2 videos"):
        make([("broken.mp4", 60, 0), ("a.mp4", 30, 0)], max_broken_share=0.0).sample(0, 0)


def test_more_frames_than_any_clip_has(make):
    numbers = r"\(14 - 1\) x 5 \+ 1 = 66, .* has 50 frames"
    with pytest.raises(UserError, match=rf"init_args\.frames: no usable row in .*videos\.csv: .*{numbers}"):
        make(frames=14)


@pytest.mark.parametrize(
    ("name", "value"),
    [("frames", 0), ("step", 0), ("height", 0), ("width", -64), ("seed", -1), ("max_broken_share", 1.5)],
)
def test_arguments_out_of_range(make, name, value):
    with pytest.raises(UserError, match=f"--train.dataset.init_args.{name} is {value}"):
        make(**{name: value})


def test_wrong_folder_or_file(make, data_dir, tmp_path):
    make()
    with pytest.raises(UserError, match=r"--train\.dataset\.init_args\.data_dir: .*nowhere is no folder"):
        VideoDataset(data_dir / "nowhere", tmp_path / "videos.csv", 4)
    with pytest.raises(UserError, match=r"--train\.dataset\.init_args\.metadata: cannot read .*none\.csv"):
        VideoDataset(data_dir, tmp_path / "none.csv", 4)
    with pytest.raises(UserError, match=r"row 3: no file gone\.mp4"):
        make([("a.mp4", 30, 0), ("gone.mp4", 30, 0)])


def test_just_enough_frames_are_enough(make):
    dataset = make([("sub/e.mp4", 21, 0)], frames=5, step=5)
    assert {int(dataset.sample(epoch, 0)["start"]) for epoch in range(5)} == {0}


@pytest.fixture
def scored(make, tmp_path):
    """A still half and a moving one, a cut between, as score_motion.py leaves them."""
    pieces = (Piece(0, 12, 0.0), Piece(12, 24, 0.0), Piece(25, 37, 0.1), Piece(37, 49, 0.3))
    motion = Motion(pieces)
    journal = Journal(tmp_path / "videos.csv.journal")
    journal.add("d.mkv", tmp_path / "d.mkv", Finding(50, 25.0, 96, 160, motion))

    def scored(bucket=None, **kwargs):
        return make([("d.mkv", 50, motion_bucket(motion.score()) if bucket is None else bucket)], **kwargs)

    return scored


def test_a_clip_has_the_motion_of_its_own_frames_and_crosses_no_cut(scored):
    samples = [scored().sample(epoch, 0) for epoch in range(60)]
    starts = [int(sample["start"]) for sample in samples]
    assert {start for start in starts if start <= 24 - 15} and {start for start in starts if start >= 25}
    assert not [start for start in starts if 24 - 15 < start < 25]
    want = {start: motion_bucket((0.1 * max(0, 37 - start) + 0.3 * (start + 15 - max(37, start))) / 15)
            for start in starts if start >= 25}
    for sample in samples:
        assert sample["motion_bucket_id"] == want.get(int(sample["start"]), 0)


def test_a_bucket_that_someone_wrote_into_the_csv_counts_for_all_of_the_video(scored):
    assert {float(scored(bucket=7).sample(epoch, 0)["motion_bucket_id"]) for epoch in range(20)} == {7}


def test_videos_held_out(make, data_dir, tmp_path):
    """Evenly spread, and those that the CSV file names; the others are trained on."""
    names = list(LENGTHS)
    columns = (*COLUMNS, "split")

    def parts(splits, holdout):
        write_rows(tmp_path / "split.csv", columns, [(n, LENGTHS[n], 0, s) for n, s in zip(names, splits)])
        options = [{"frames": 2, "holdout": holdout, "held_out": held_out} for held_out in (False, True)]
        both = [VideoDataset(data_dir, tmp_path / "split.csv", **option) for option in options]
        return [[names.index(row.path) for row in part.rows] for part in both]

    assert parts(("", "", "", ""), 0) == [[0, 1, 2, 3], []]
    assert parts(("", "", "", ""), 2) == [[1, 3], [0, 2]]
    assert parts(("", "validation", "", ""), 0) == [[0, 2, 3], [1]]
    assert parts(("train", "validation", "", ""), 1) == [[0, 3], [1, 2]]
    with pytest.raises(UserError, match="no usable row of .* is left for training; keep out fewer"):
        parts(("", "", "", ""), 9)
    with pytest.raises(UserError, match="row 2: split is 'test'; it is train or validation, or empty"):
        parts(("test", "", "", ""), 0)


def test_a_fixed_bucket_and_rate(scored):
    sample = scored(motion_bucket_id=99.0, fps=6.0).sample(0, 0)
    assert (sample["motion_bucket_id"], sample["fps"]) == (99, 6)


def test_shots_that_are_too_short_leave_nothing(scored):
    with pytest.raises(UserError, match=r"no usable row.* \(6 - 1\) x 5 \+ 1 = 26, .*has 50 frames, cuts aside"):
        scored(frames=6)


def test_enlarging_and_cropping_much_is_said_once(make, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = make(height=256, width=64)
        for index in range(4):
            dataset.sample(0, index)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2 and "a.mp4 is enlarged 2.7 times, from 160x96 for 64x256" in lines[0]
    assert "a.mp4 keeps a share of 0.15 of its area" in lines[1]
