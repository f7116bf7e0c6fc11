"""The list of photographs, and how they are taken out of packages."""

import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from gm.errors import UserError
from svd_tiny import collect_photos
from svd_tiny.photo_sources import PhotoSource, read_photo_sources
from svd_tiny.photos import name_held_out
from svd_tiny.qt_resource import read_qt_resource

EXAMPLES = {
    "jigsaw_pexels_photo_302304",
    "lomiri_aitzgorri",
    "lomiri_life",
    "lomiri_picosdeeuropa",
    "lomiri_seeding",
    "lomiri_sunset",
}


def qt_resource(content, packed):
    """A .rcc file of format 1: root folder > folder "in" > file "a.txt"."""

    def name(text):
        return struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")

    names = name("in") + name("a.txt")
    body = struct.pack(">I", len(content)) + zlib.compress(content) if packed else content
    data = struct.pack(">I", len(body)) + body
    tree = struct.pack(">IHII", 0, 2, 1, 1)  # the root's only child is node 1
    tree += struct.pack(">IHII", 0, 2, 1, 2)
    tree += struct.pack(">IHHHI", len(name("in")), 1 if packed else 0, 0, 0, 0)
    start = 20
    header = b"qres" + struct.pack(">4I", 1, start, start + len(tree), start + len(tree) + len(data))
    return header + tree + data + names


def test_list_is_complete_and_unambiguous():
    sources = read_photo_sources()
    assert len(sources) >= 100
    assert all(all(field.strip() for field in source) for source in sources)
    assert max(Counter(source.name for source in sources).values()) == 1
    assert max(Counter((source.package, source.file) for source in sources).values()) == 1
    assert sum(source.split == "eval" for source in sources) >= 16


def test_held_out_photographs_are_the_hash_s_and_the_examples():
    for source in read_photo_sources():
        held = source.name in EXAMPLES or name_held_out(source.name)
        assert source.split == ("eval" if held else "train"), source.name


@pytest.mark.parametrize("packed", [False, True])
def test_qt_resource_files_are_read(tmp_path, packed):
    (tmp_path / "x.rcc").write_bytes(qt_resource(b"hello", packed))
    assert read_qt_resource(tmp_path / "x.rcc") == {"in/a.txt": b"hello"}


@pytest.mark.parametrize("content", [b"", b"qres", b"PNG" * 20, qt_resource(b"hello", True)[:40]])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.rcc").write_bytes(content)
    with pytest.raises(UserError, match="no Qt resource file"):
        read_qt_resource(tmp_path / "x.rcc")


def test_entry_of_a_resource_file_is_a_source(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x.rcc").write_bytes(qt_resource(b"hello", True))
    source = PhotoSource("n", "train", "p", "x.rcc:in/a.txt", "somebody", "CC0-1.0")
    assert source.read(tmp_path) == b"hello"
    with pytest.raises(UserError, match="no in/b.txt"):
        source._replace(file="x.rcc:in/b.txt").read(tmp_path)


def test_collecting_shrinks_converts_and_goes_on(tmp_path, caplog):
    picture = np.random.default_rng(0).integers(0, 256, (60, 200, 3)).astype(np.uint8)
    (tmp_path / "p").mkdir()
    Image.fromarray(picture).save(tmp_path / "p" / "a.png")
    (tmp_path / "p" / "broken.png").write_bytes(b"nothing")
    sources = [
        PhotoSource("a", "train", "p", "a.png", "somebody", "CC0-1.0"),
        PhotoSource("b", "eval", "p", "a.png", "somebody", "CC0-1.0"),
        PhotoSource("c", "eval", "p", "missing.png", "somebody", "CC0-1.0"),
        PhotoSource("d", "eval", "p", "broken.png", "somebody", "CC0-1.0"),
    ]
    out = tmp_path / "out"
    out.mkdir()
    assert collect_photos.collect_photos(tmp_path, out, 100, sources) == 2
    assert Image.open(out / "train" / "a.jpg").size == (100, 30)
    assert sorted(path.name for path in (out / "eval").iterdir()) == ["b.jpg"]
    assert "c is left out" in caplog.text and "d is left out" in caplog.text
    assert collect_photos.collect_photos(tmp_path, out, 100, sources) == 2


def test_no_package_at_all_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--packages: no photograph of the list"):
        collect_photos.main([f"--packages={tmp_path}", f"--output_dir={tmp_path / 'out'}"])
