"""Files changed at random: each is taken or refused in one line; anything else is a finding.

`FUZZ_MUTATIONS=10000 pytest --slow tests/safety/test_fuzz.py` sets how many of each kind. A finding's file is kept in
the test's folder; once mended, it goes into tests/safety/corpus.
"""

import copy
import json
import os
import resource
import struct
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.image_reader import read_image
from data.metadata_csv import COLUMNS, read_rows
from data.motion_journal import Journal
from data.video_reader import VideoError, VideoReader
from gm.config.factory import instantiate, load_config, load_model
from gm.config.targets import CLASSES
from gm.errors import UserError, shown
from gm.weights.checkpoint import open_checkpoint
from gm.weights.lora_file import read_lora
from image_to_video import build_parser
from svd_tools.conversion.weight_files import open_weights
from tests.e2e.training import MODEL
from tests.safety.doors import DOORS

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "300"))
SECONDS, BYTES = 10, 2 << 30
EDGES = [
    b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\xff" * 8, b"\0" * 8, b"\xed\xa0\x80",
    b"-1", b"1e999", b"NaN", b"9" * 30, b'"', b"[", b"{", b"}", b",", b":", b"\n", b"${oc.env:HOME}", b"*a",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-3, 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
hypotheses = settings(
    max_examples=MUTATIONS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def mutated(good: bytes, rng: np.random.Generator) -> bytes:
    """One to six changes: bytes, edges of ranges, blocks that are lost, doubled or moved, an early end.

    Half of them are within the first 2000 bytes, where headers are.
    """
    data = bytearray(good)
    for _ in range(rng.integers(1, 7)):
        size = len(data)
        reach = min(size, 2000) if rng.random() < 0.5 else size
        at, length = int(rng.integers(reach + 1)), int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            data[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            edge = EDGES[rng.integers(len(EDGES))]
            data[at : at + (len(edge) if rng.random() < 0.7 else 0)] = edge
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.bytes(length)
        elif kind == 5 and size:
            other = int(rng.integers(size))
            data[at : at + length] = data[other : other + length]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def read_all(path):
    with open_checkpoint(path) as source:
        for name in source.info:
            source.read(name)


def read_video(path):
    with VideoReader(path) as reader:
        for _ in reader.frames_at([i / reader.fps for i in range(min(reader.num_frames, 8))]):
            pass


def read_state(door):
    def enter(path):
        DOORS[door].enter(mock.Mock(), path, path.parent)

    return enter


FORMATS = {
    "safetensors": ("latents.safetensors", read_all),
    ".ckpt": ("small.ckpt", read_all),
    "pickle": ("small.pt", open_weights),
    "LoRA": ("lora.safetensors", read_lora),
    "model YAML": ("model.yaml", lambda path: load_model(path)),
    "flags YAML": ("flags.yaml", lambda path: build_parser().parse_args([f"--config={path}", "--image=x"])),
    "CSV": ("videos.csv", lambda path: list(read_rows(path, COLUMNS, "--metadata"))),
    "state.json": ("state.json", read_state("resume numbers")),
    "settings.json": ("settings.json", read_state("clips' settings")),
    "journal": ("journal", Journal),
    "metrics": ("metrics.jsonl", read_state("metrics")),
    "PNG": ("image.png", read_image),
    "mp4": ("video.mp4", read_video),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_changed_bytes(kit, tmp_path, kind):
    """Time and memory are bounded too."""
    sample, enter = FORMATS[kind]
    good, path, findings = (kit / sample).read_bytes(), tmp_path / sample, []
    for number in range(MUTATIONS):
        rng = np.random.default_rng([number, len(kind), *kind.encode()])
        path.write_bytes(mutated(good, rng))
        started = time.monotonic()
        try:
            enter(path)
            problem = ""
        except (UserError, VideoError) as error:
            problem = "" if len(shown(str(error))) < 500 else f"a long line: {error}"
        except OSError as error:
            problem = "" if error.filename else repr(error)
        except Exception as error:
            problem = repr(error)
        if problem or time.monotonic() - started > SECONDS:
            findings.append(f"{number}: {problem or 'slow'}")
            path.rename(tmp_path / f"finding_{number}_{sample}")
    assert not findings, findings[:5]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BYTES


def entries():
    """Headers near to right ones: sizes that fit or not, places that follow, overlap or leave a gap."""
    size = st.integers(0, 3) | st.sampled_from([-1, 1 << 20, 1 << 62, 1.0, True, None, "2"])
    place = st.integers(0, 48) | st.sampled_from([-4, 1 << 62, 0.5, None])
    field = {
        "dtype": st.sampled_from(["F32", "F16", "U8", "I64", "BOOL"]) | anything,
        "shape": st.lists(size, max_size=3) | anything,
        "data_offsets": st.lists(place, min_size=2, max_size=2) | anything,
    }
    exact = st.builds(
        lambda n, start: {"dtype": "F32", "shape": [n], "data_offsets": [start, start + 4 * n]},
        st.integers(0, 4), st.integers(0, 4).map(lambda n: 4 * n),
    )  # fmt: skip
    names = st.text(max_size=3) | st.just("__metadata__")
    return st.dictionaries(names, exact | st.fixed_dictionaries(field) | anything)


@hypotheses
@given(entries(), st.integers(0, 24))
def test_a_safetensors_header_is_taken_where_the_official_library_takes_it(tmp_path_factory, header, data_bytes):
    """And nowhere else."""
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(data_bytes)
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(content)
    try:
        safetensors.deserialize(content)
        official = True
    except safetensors.SafetensorError:
        official = False
    try:
        with open_checkpoint(path) as source:
            ours = True
            assert len(source.info) == len(set(header) - {"__metadata__"})
    except UserError:
        ours = False
    assert ours == official, header


def paths(node, here=()):
    """Every key of nested dictionaries and lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from paths(value, (*here, key))


@pytest.fixture(scope="module")
def mini():
    return load_config(MODEL)["model"]


@hypotheses
@given(data=st.data())
def test_a_model_s_options_are_what_they_may_be_or_refused(mini, data):
    """Any value, class or part of the model anywhere."""
    parts = [mini["params"], *mini["params"].values()]
    config = copy.deepcopy(mini)
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from(list(paths(config))))
        node = config
        for key in parents:
            node = node[key]
        node[last] = data.draw(anything | st.sampled_from(sorted(CLASSES)) | st.sampled_from(parts).map(copy.deepcopy))
    try:
        instantiate(config, "--config: x.yaml: ").parameter_shapes()
    except UserError as error:
        assert str(error).startswith("--config: x.yaml: ") and len(shown(str(error))) < 500


@hypotheses
@given(data=st.data())
def test_any_flags_file_is_taken_or_refused(tmp_path_factory, data):
    keys = st.sampled_from(["image", "seed", "mode", "SVD", "output_format", "config"])
    flags = st.sampled_from(["fps", "num_frames", "crop_offset", "guidance_interval", "offload", "config"])
    group = st.dictionaries(flags, anything, max_size=4) | anything
    content = data.draw(st.dictionaries(keys, group | anything, max_size=4))
    path = tmp_path_factory.getbasetemp() / "flags.yaml"
    try:
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    except UnicodeEncodeError:
        return
    try:
        build_parser().parse_args([f"--config={path}", "--image=x"])
    except UserError as error:
        assert len(shown(str(error))) < 500


fields = st.text(max_size=6) | st.sampled_from(["video.mp4", "3", "nan", "-1", "1e99"])


@hypotheses
@given(rows=st.lists(st.lists(fields, max_size=4)))
def test_any_csv_is_taken_or_refused(kit, tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    text = "path,length,motion_bucket_id\n" + "\n".join(",".join(row) for row in rows)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        DOORS["training CSV"].enter(kit, Path(path), Path(path))
    except UserError as error:
        assert len(shown(str(error))) < 500
