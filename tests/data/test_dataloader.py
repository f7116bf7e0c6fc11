import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest

from data.dataloader import make_dataloader
from data.metadata_csv import COLUMNS, write_rows
from data.video_dataset import VideoDataset
from gm.errors import UserError
from tests.data.synthetic_videos import write_numbered

NUM_VIDEOS = 11
PROJECT = Path(__file__).parents[2]


class Numbers:
    """A data set that says which sample was asked for."""

    columns = ("epoch", "index")

    def __init__(self, length, fail_at=None):
        self.length, self.fail_at = length, fail_at

    def __len__(self):
        return self.length

    def read(self, epoch, index):
        if (epoch, index) == self.fail_at:
            raise UserError("sample é is broken")
        return np.int64(epoch), np.int64(index)

    def collate(self, rows):
        epoch, index = (np.array(column) for column in zip(*rows))
        return {"epoch": epoch, "index": index}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    names = [f"{i}.mp4" for i in range(NUM_VIDEOS)]
    for i, name in enumerate(names):
        write_numbered(folder / name, 20 + i)
    (folder / "é.mp4").write_text("broken")
    write_rows(folder / "videos.csv", COLUMNS, [(name, 20 + i, i) for i, name in enumerate([*names, "é.mp4"])])
    return folder


def dataset(folder, **kwargs):
    return VideoDataset(folder, folder / "videos.csv", 3, 2, height=64, width=64, random_crop=True, **kwargs)


def batches(length, **kwargs):
    return [list(zip(b["epoch"], b["index"])) for b in make_dataloader(Numbers(length), **kwargs)]


def equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name]), name


def test_an_epoch_is_a_permutation_and_epochs_differ():
    one, two = batches(12, batch_size=4, epochs=1), batches(12, batch_size=4, epoch=1)
    assert [len(batch) for batch in one] == [4, 4, 4]
    orders = [[index for batch in epoch for _, index in batch] for epoch in (one, two)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1] and orders[0] != list(range(12))
    assert batches(12, batch_size=4, epochs=2) == one + two
    assert batches(12, batch_size=4, seed=1) != one


def test_without_shuffling_the_order_is_the_data_sets():
    assert batches(5, batch_size=2, shuffle=False, epochs=2) == [
        [(0, 0), (0, 1)], [(0, 2), (0, 3)], [(1, 0), (1, 1)], [(1, 2), (1, 3)],
    ]  # fmt: skip


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_batches_of_one(world_size):
    total = 2 * world_size
    whole = batches(17, batch_size=total, epochs=3)
    parts = [batches(17, batch_size=2, rank=r, world_size=world_size, epochs=3) for r in range(world_size)]
    assert [list(itertools.chain(*together)) for together in zip(*parts)] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_resuming_anywhere_gives_the_rest(num_workers, drop_remainder):
    options = {"batch_size": 3, "drop_remainder": drop_remainder}
    whole = batches(8, epochs=3, **options)
    per_epoch = 2 if drop_remainder else 3
    assert [len(b) for b in whole] == ([3, 3] if drop_remainder else [3, 3, 2]) * 3
    for done in (1, 2, 3, 5):
        epoch, batch = divmod(done, per_epoch)
        rest = batches(8, epoch=epoch, start_batch=batch, epochs=3 - epoch, num_workers=num_workers, **options)
        assert rest == whole[done:]


def test_a_finished_epoch_gives_nothing_more():
    loader = make_dataloader(Numbers(4), 2, start_batch=2)
    assert len(loader) == 0 and list(loader) == []


def test_length():
    loader = make_dataloader(Numbers(9), 2, epoch=3, start_batch=1, epochs=2)
    assert loader.batches_per_epoch == 4 and len(loader) == 7 == len(list(loader))


def test_workers_change_nothing(videos):
    plain = list(make_dataloader(dataset(videos), 3, epochs=2))
    frames = plain[0]["frames"]
    assert frames.shape == (3, 3, 3, 64, 64) and frames.dtype == np.float32
    assert {name: (v.shape, v.dtype.name) for name, v in plain[0].items() if name != "frames"} == {
        "fps": ((3,), "float32"), "motion_bucket_id": ((3,), "float32"), "video": ((3,), "int32"),
        "start": ((3,), "int32"),
    }  # fmt: skip
    equal(plain, list(make_dataloader(dataset(videos), 3, epochs=2, num_workers=2)))
    equal(plain[5:], list(make_dataloader(dataset(videos), 3, epoch=1, start_batch=1, num_workers=2)))
    ranks = [list(make_dataloader(dataset(videos), 2, rank=r, world_size=2, num_workers=r)) for r in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*ranks)]
    equal(joined, list(make_dataloader(dataset(videos), 4)))


GARBAGE = """
import gc
import numpy as np
from av import VideoFrame
from data.dataloader import make_dataloader

class Collected:
    columns = ("index",)

    def __len__(self):
        return 4

    def read(self, epoch, index):
        gc.collect()
        return (np.int64(index),)

    def collate(self, rows):
        return rows

gc.disable()
frame = VideoFrame(640, 480, "yuv420p")
frame.reformat(format="rgb24", threads=4)
garbage = [frame]
garbage.append(garbage)
del frame, garbage
print(len(list(make_dataloader(Collected(), 2, num_workers=2))))
"""


def test_workers_free_nothing_of_the_parents():
    """The end of a scaler with threads waits for them; in a worker, which has a copy of the scaler only, for ever."""
    command = [sys.executable, "-c", GARBAGE]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize("num_workers", [0, 2])
def test_broken_videos_are_counted_across_processes(videos, num_workers):
    data = dataset(videos)
    seen = np.concatenate([batch["video"] for batch in make_dataloader(data, 4, num_workers=num_workers)])
    assert NUM_VIDEOS not in seen and len(seen) == 12
    assert data.num_broken == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_the_data_is_one_line(videos, num_workers):
    with pytest.raises(UserError, match=r"^1 of 12 videos are broken, the last one being .*é\.mp4"):
        list(make_dataloader(dataset(videos, max_broken_share=0.0), 4, num_workers=num_workers))
    with pytest.raises(UserError, match="^sample é is broken$"):
        list(make_dataloader(Numbers(6, fail_at=(1, 3)), 2, epochs=2, num_workers=num_workers))


def test_a_loop_left_early_can_be_followed_by_another():
    loader = make_dataloader(Numbers(12), 2, num_workers=2)
    first = next(iter(loader))
    assert np.array_equal(first["index"], list(loader)[0]["index"])


class Signals(Numbers):
    """Says which process read a sample and whether it ignores SIGTERM."""

    def read(self, epoch, index):
        return np.int64(os.getpid()), np.int64(signal.getsignal(signal.SIGTERM) == signal.SIG_IGN)


def test_workers_leave_sigterm_to_the_training_process():
    (batch,) = make_dataloader(Signals(4), 4, num_workers=2)
    assert os.getpid() not in batch["epoch"] and len(set(batch["epoch"])) == 2
    assert batch["index"].all()
    (batch,) = make_dataloader(Signals(4), 4, num_workers=0)
    assert set(batch["epoch"]) == {os.getpid()} and not batch["index"].any()


def test_queues_are_short_only_here():
    before = ds.config.get_prefetch_size()
    list(make_dataloader(Numbers(4), 2))
    assert ds.config.get_prefetch_size() == before


def test_more_workers_than_cores_is_said(caplog):
    loader = make_dataloader(Numbers(4), 2, num_workers=10 * os.cpu_count())
    assert len(list(loader)) == 2
    assert "--train.dataloader.num_workers" in caplog.text


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 6}, "batch_size: 5 usable videos do not fill one batch of 6 on 1 device"),
        ({"batch_size": 3, "world_size": 2}, "do not fill one batch of 3 on 2 device"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 1, "world_size": 2, "drop_remainder": False}, "drop_remainder=False: ranks"),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises(UserError, match=message):
        make_dataloader(Numbers(5), **kwargs)
