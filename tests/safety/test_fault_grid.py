"""Every door for files x every kind of fault: one short line, exit code 2, nothing left behind, no wait, little memory.

`pytest tests/safety/test_fault_grid.py -k whole -s` prints the grid. A cell is empty only for a reason, which it says.
"""

import json
import os
import pickle
import re
import socket
import struct
import time
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Union
from unittest import mock

import numpy as np
import pytest
import safetensors.numpy

from gm.errors import UserError, shown
from gm.files import remove_leftovers
from tests.safety.doors import DOORS, STATE, files_in

SECONDS, GIBIBYTES, CHARACTERS = 20, 2, 500
NOBODY = 65534


class Accepted(NamedTuple):
    """A file that is taken all the same; `why` it is right."""

    content: Union[bytes, Callable[[bytes], bytes]]
    why: str


# ------------------------------------------------------------------------------------------- faults of the place


def missing(path):
    """Nothing is there."""


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name has 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


PLACES = {
    "missing": missing,
    "folder": Path.mkdir,
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": unix_socket,
    "link loop": lambda path: path.symlink_to(path.name),
    "no permission": None,
    "empty": Path.touch,
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
}
NAMES = {"URL": "http:/127.0.0.1/x", "NUL in the name": "a\0b", "newline in the name": "a\nerror: b"}
OWN_NAME = "the program itself names this file"
NOT_THERE = "a file that is not there is a new run's"

# ----------------------------------------------------------------------------------------- faults of the content


def cut(good):
    return good[: len(good) // 2]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, pixels=b"\0" * 99):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def header(**entries):
    """A safetensors file that is a header alone."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def entry(dtype="F32", shape=(1,), place=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


def with_tensors(**arrays):
    """The good file with some of its tensors replaced."""

    def content(good):
        return safetensors.numpy.save({**safetensors.numpy.load(good), **arrays})

    return content


def with_values(change):
    def content(good):
        return safetensors.numpy.save({name: change(array) for name, array in safetensors.numpy.load(good).items()})

    return content


def ckpt(dims, tag=b"x", kind=b"Float32"):
    """A MindSpore checkpoint of one tensor without content."""
    tensor = b"".join(b"\x08" + varint(dim) for dim in dims) + b"\x12" + varint(len(kind)) + kind + b"\x1a\x00"
    value = b"\x0a" + varint(len(tag)) + tag + b"\x12" + varint(len(tensor)) + tensor
    return b"\x0a" + varint(len(value)) + value


def varint(number):
    groups = []
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def zipped(good, compression=zipfile.ZIP_STORED, **records):
    """A PyTorch archive with other records."""
    out = BytesIO()
    with zipfile.ZipFile(BytesIO(good)) as source, zipfile.ZipFile(out, "w", compression) as target:
        for item in source.infolist():
            name = item.filename.rpartition("/")[2]
            target.writestr(item.filename, records.get(name, source.read(item)))
    return out.getvalue()


def mp4_that_lies(good):
    """The header says 2^31 - 1 samples of the same size and duration."""
    for box in (b"stsz", b"stts"):
        place = good.index(box) + 8
        good = good[: place + 4] + b"\x7f\xff\xff\xff" + good[place + 8 :]
    return good


ALIASES = b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n".encode() for n in range(1, 9)
)
DEEP, JSON_DEEP, BINARY = b"a: " + b"[" * 100_000, b'{"a": ' + b"[" * 100_000, "a binary format: see random bytes"
NO_NUMBERS, NO_TYPES, NO_DEPTH = "it holds no numbers", "it has no types", "it is not nested"
NO_SIZES, SHORT = "it says no sizes", "it is read up to a bound, and nothing in it grows"
TRUSTED = "a run's own file, in its own folder: what cannot be used is made again"


def model(text):
    return lambda good: good + f"\n# \n{text}\n".encode().replace(b"# \n", b"")


IMAGE = {
    "cut": cut, "not UTF-8": BINARY, "lying sizes": png(30000, 3000), "bomb": png(60000, 60000, b"\0" * 10**7),
    "NaN or inf": "PNG holds whole numbers; float TIFF in tests/data/test_image_reader.py", "huge numbers": NO_NUMBERS,
    "wrong type": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "nested too deep": NO_DEPTH,
}  # fmt: skip
TENSORS = {
    "cut": cut, "not UTF-8": struct.pack("<Q", 12) + b'{"\xff\xfe": 1}  ',
    "lying sizes": header(a=entry(shape=[1 << 40], place=[0, 1 << 42])),
    "bomb": struct.pack("<Q", 90_000_000) + b'{"' + b" " * 20_000_000,
    "NaN or inf": header(a=entry(shape=[float("nan")])), "huge numbers": header(a=entry(place=[0, 10**400])),
    "wrong type": header(a=entry(dtype=[], shape={"x": 1})), "nested too deep": struct.pack("<Q", 200_006)
    + b'{"a": ' + b"[" * 200_000,
}  # fmt: skip
STATE_JSON = {
    "cut": cut, "not UTF-8": b'{"a": "\xff"}', "lying sizes": NO_SIZES, "bomb": SHORT, "nested too deep": JSON_DEEP,
}  # fmt: skip
CSV = {
    "cut": b'path,length,motion_bucket_id\n"video.mp4,6', "not UTF-8": b"path,length,motion_bucket_id\n\xff\xfe,6,2\n",
    "lying sizes": NO_SIZES, "bomb": b'path\n"' + b"x" * 300_000 + b'"\n', "nested too deep": NO_DEPTH,
}  # fmt: skip

CONTENTS: Dict[str, Dict[str, Union[bytes, str, Accepted, Callable]]] = {
    "image": IMAGE,
    "image folder": IMAGE,
    "settings inside": IMAGE,
    "model YAML": {
        "cut": b"model: {params: [1, 2", "not UTF-8": b"model: \xff\xfe", "lying sizes": NO_SIZES, "bomb": ALIASES,
        "NaN or inf": lambda good: good.replace(b"num_frames: 2", b"scale_factor: .nan"),
        "huge numbers": lambda good: good.replace(b"num_frames: 2", b"num_frames: 100000000000000000000"),
        "wrong type": lambda good: good.replace(b"num_frames: 2", b"network_config: {params: {model_channels: [1]}}"),
        "nested too deep": DEEP,
    },
    "flags file": {
        "cut": b"SVD: {fps: 7", "not UTF-8": b"seed: \xff\xfe", "lying sizes": NO_SIZES, "bomb": ALIASES,
        "NaN or inf": b"SVD: {noise_aug_strength: .inf}", "huge numbers": b"SVD: {lora_scale: 1e300}",
        "wrong type": b"SVD: other.yaml", "nested too deep": DEEP,
    },
    "videos' CSV": {
        **CSV, "NaN or inf": NO_NUMBERS, "huge numbers": NO_NUMBERS, "wrong type": b"name\nvideo.mp4\n",
    },
    "training CSV": {
        **CSV, "NaN or inf": b"path,length,motion_bucket_id\nvideo.mp4,6,nan\n",
        "huge numbers": b"path,length,motion_bucket_id\nvideo.mp4,6,1e400\n",
        "wrong type": b"path,length,motion_bucket_id\nvideo.mp4,six,2\n",
    },
    "video": {
        "cut": cut, "not UTF-8": BINARY, "lying sizes": mp4_that_lies, "bomb": "see lying sizes, and the corpus",
        "NaN or inf": NO_NUMBERS, "huge numbers": "see lying sizes", "wrong type": b"#EXTM3U\nhttp://127.0.0.1/x.ts\n",
        "nested too deep": NO_DEPTH,
    },
    "safetensors": TENSORS,
    ".ckpt": {
        "cut": cut, "not UTF-8": ckpt([1], tag=b"\xff\xfe"), "lying sizes": ckpt([1 << 40, 1 << 7]),
        "bomb": b"".join(ckpt([0], tag=b"%d" % number) for number in range(100_001)),
        "NaN or inf": NO_NUMBERS, "huge numbers": ckpt([(1 << 64) - 1] * 4), "wrong type": ckpt([1], kind=b"Complex9"),
        "nested too deep": ckpt([1] * 10_000),
    },
    "pickle": {
        "cut": cut, "not UTF-8": BINARY,
        "lying sizes": lambda good: zipped(good, **{"0": b""}),
        "bomb": lambda good: zipped(good, zipfile.ZIP_DEFLATED, **{"0": b"\0" * 10**8}),
        "NaN or inf": "convert.py names them: tests/svd_tools/test_convert_failures.py",
        "huge numbers": lambda good: zipped(good, **{"data.pkl": b"\x80\x02\x8a\xff" + b"\xff" * 255 + b"."}),
        "wrong type": lambda good: zipped(good, **{"data.pkl": pickle.dumps({b"x": 1}, 2)}),
        "nested too deep": lambda good: zipped(good, **{"data.pkl": b"\x80\x02" + b"]" * 10**5 + b"a" * 99_999 + b"."}),
    },
    "shards' index": {
        **STATE_JSON, "NaN or inf": b'{"weight_map": {"a": NaN}}', "huge numbers": b'{"weight_map": {"a": 1e999}}',
        "wrong type": b'{"weight_map": ["a"]}',
    },
    "prompts": {
        "cut": Accepted(cut, "half a text is a text"), "not UTF-8": b"\xff\xfea\n", "lying sizes": NO_SIZES,
        "bomb": b"a fox\n" * 200_000, "NaN or inf": NO_NUMBERS, "huge numbers": NO_NUMBERS,
        "wrong type": b"\n\n  \n", "nested too deep": NO_DEPTH,
    },
    "LoRA": {
        **TENSORS,
        "NaN or inf": with_values(lambda array: np.full_like(array, np.nan)),
        "huge numbers": with_values(lambda array: np.full_like(array, np.inf)),
        "wrong type": with_values(lambda array: array.astype(np.int64)),
    },
    "resume numbers": {
        **STATE_JSON, "NaN or inf": json.dumps({**STATE, "step": float("nan")}).encode(),
        "huge numbers": json.dumps({**STATE, "step": 10**30}).encode(),
        "wrong type": json.dumps({**STATE, "loss_scale": {"value": "1"}}).encode(),
    },
    "resume tensors": TENSORS,
    "latent cache": {
        **TENSORS, "wrong type": with_tensors(latents=np.zeros((2, 4, 9, 8), np.float32)),
    },
    "evaluated clip": {
        **TENSORS, "wrong type": with_tensors(frames=np.zeros((2, 8, 8, 3), np.int64)),
    },
    "score journal": {
        "cut": Accepted(cut, TRUSTED), "not UTF-8": Accepted(lambda good: good + b"\xff\xfe\n", TRUSTED),
        "lying sizes": NO_SIZES, "bomb": SHORT,
        "NaN or inf": Accepted(lambda good: good.replace(b"0.1", b"NaN"), TRUSTED),
        "huge numbers": Accepted(lambda good: good.replace(b"0.1", b"1" * 5000), TRUSTED),
        "wrong type": Accepted(lambda good: good.replace(b"0.1", b"[]"), TRUSTED),
        "nested too deep": Accepted(lambda good: good + JSON_DEEP + b"\n", TRUSTED),
    },
    "clips' settings": {
        **STATE_JSON, "NaN or inf": b'{"height": NaN}', "huge numbers": b'{"height": 1e999}', "wrong type": b'"height"',
    },
    "metrics": {
        "cut": Accepted(cut, TRUSTED), "not UTF-8": Accepted(lambda good: good + b'{"step": "\xff"}\n', TRUSTED),
        "lying sizes": NO_SIZES, "bomb": SHORT, "NaN or inf": Accepted(b'{"step": NaN}\n', TRUSTED),
        "huge numbers": Accepted(b'{"step": ' + b"1" * 5000 + b"}\n", TRUSTED),
        "wrong type": Accepted(b'{"step": []}\n["step"]\n', TRUSTED),
        "nested too deep": Accepted(JSON_DEEP + b"\n", TRUSTED),
    },
}  # fmt: skip
FAULTS = [*PLACES, *NAMES, *CONTENTS["image"]]

# What is right at a door although it is a fault elsewhere, or cannot be there.
REASONS = {
    **{(door, name): OWN_NAME for door, value in DOORS.items() if value.name for name in NAMES},
    **{(door, "missing"): NOT_THERE for door in ("score journal", "clips' settings", "metrics")},
    **{("shards' index", name): OWN_NAME for name in NAMES},
    ("image folder", "newline in the name"): OWN_NAME,
}
MADE_AGAIN = {(door, fault) for door in ("score journal", "metrics") for fault in ("empty", "random bytes")}


@pytest.fixture
def enter(kit, tmp_path):
    """Lets a file into the program by a door, and checks what is true of every cell."""
    (tmp_path / "in").mkdir()

    def call(door, path):
        remove_leftovers.cache_clear()
        before = {*files_in(tmp_path)}
        started = time.monotonic()
        try:
            DOORS[door].enter(kit, path, tmp_path / "out")
        except UserError as error:
            return shown(str(error))
        except OSError as error:  # run_command says it like this
            return shown(f"cannot use {error.filename}: {error.strerror}") if error.filename else repr(error)
        finally:
            assert time.monotonic() - started < SECONDS
            assert not files_in(tmp_path / "out") and not [p for p in files_in(tmp_path) if ".tmp-" in p.name]
            more = {"shards' index": 1, "score journal": path not in before}.get(door, 0)
            assert len(files_in(tmp_path)) <= len(before) + more
        return None

    return call


def refused(line):
    assert line is not None, "it was taken"
    assert 10 < len(line) < CHARACTERS and line.isprintable() and not line.startswith("OSError"), line


@pytest.mark.parametrize("door", DOORS)
def test_the_good_file_is_taken(kit, tmp_path, door):
    """So that what is refused below is refused for its fault."""
    sample = kit / DOORS[door].sample
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / (DOORS[door].name or sample.name)
    path.write_bytes(sample.read_bytes())
    DOORS[door].enter(kit, path, tmp_path / "out")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", PLACES)
def test_faults_of_the_place(kit, tmp_path, enter, door, fault):
    if (door, fault) in REASONS:
        pytest.skip(REASONS[door, fault])
    path = tmp_path / "in" / (DOORS[door].name or DOORS[door].sample)
    if fault == "no permission":
        path.write_bytes((kit / DOORS[door].sample).read_bytes())
        with mock.patch("os.open", side_effect=denied(path)):
            refused(enter(door, path))
        return
    PLACES[fault](path)
    line = enter(door, path)
    if (door, fault) not in MADE_AGAIN:
        refused(line)


def denied(path):
    """`os.open` of a user who may not read a file: the tests may run as root, who may."""
    system = os.open

    def call(name, flags, *args, **kwargs):
        if os.fspath(name).endswith((path.name, f"{path.suffix}.index.json")) and not flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", os.fspath(name))
        return system(name, flags, *args, **kwargs)

    return call


@pytest.mark.timeout(60)
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fault", NAMES)
def test_faults_of_the_name(tmp_path, enter, door, fault):
    if (door, fault) in REASONS:
        pytest.skip(REASONS[door, fault])
    path = tmp_path / "in" / NAMES[fault]
    if fault == "newline in the name":
        path.write_bytes(b"neither\x00this\xffnor that")
    line = enter(door, path)
    if door not in ("score journal", "metrics", "clips' settings") or fault != "newline in the name":
        refused(line)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("door", "fault"),
    [(door, fault) for door, cells in CONTENTS.items() for fault, cell in cells.items() if not isinstance(cell, str)],
)
def test_faults_of_the_content(kit, tmp_path, enter, door, fault):
    cell = CONTENTS[door][fault]
    content = cell.content if isinstance(cell, Accepted) else cell
    sample = kit / DOORS[door].sample
    path = tmp_path / "in" / (DOORS[door].name or sample.name)
    path.write_bytes(content if isinstance(content, bytes) else content(sample.read_bytes()))
    line = enter(door, path)
    if isinstance(cell, Accepted):
        assert line is None
    else:
        refused(line)


def test_the_grid_is_whole(capsys):
    """No cell is empty without a reason."""
    grid = {}
    for door in DOORS:
        for fault in FAULTS:
            cell = CONTENTS[door].get(fault, PLACES.get(fault, NAMES.get(fault)))
            reason = REASONS.get((door, fault)) or (cell if fault in CONTENTS[door] and isinstance(cell, str) else None)
            assert reason or fault in PLACES or cell is not None, (door, fault)
            taken = isinstance(cell, Accepted) or (door, fault) in MADE_AGAIN
            grid[door, fault] = f"- {reason}" if reason else "made again" if taken else "refused"
    with capsys.disabled():
        for fault in FAULTS:
            print(f"\n{fault}")  # noqa: T201
            for door in DOORS:
                print(f"    {door:16} {grid[door, fault]}")  # noqa: T201
    assert set(CONTENTS) == set(DOORS) and all(set(cells) == set(CONTENTS["image"]) for cells in CONTENTS.values())


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """No cell takes more than 2 GiB, whatever this process held before."""
    status, forget_peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kilobytes(field):
        return int(re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.M).group(1))

    forget_peak.write_text("5")
    before = kilobytes("VmRSS")
    yield
    assert kilobytes("VmHWM") - before < GIBIBYTES << 20
