import pytest

from data.metadata_csv import COLUMNS, VideoRow, read_metadata, write_rows
from gm.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b, with comma.mp4", "sub/c.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def read(folder, text, encoding="utf-8"):
    path = folder / "videos.csv"
    path.write_bytes(text.encode(encoding))
    return read_metadata(folder, path, "--data_dir", "--metadata")


def refused(folder, text, *parts, encoding="utf-8"):
    with pytest.raises(UserError) as caught:
        read(folder, text, encoding)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("videos.csv", *parts):
        assert part in message, message


def test_plain(folder):
    rows = read(folder, "path,length,motion_bucket_id\na.mp4,10,127\nsub/c.mp4,20,0\n")
    assert rows == [VideoRow("a.mp4", 10, 127.0), VideoRow("sub/c.mp4", 20, 0.0)]


def test_quotes_blank_lines_mark_order_and_more_columns(folder):
    text = (
        "\r\n motion_bucket_id,caption, path,length\r\n\r\n"
        '255,"x, ""y""\nz","b, with comma.mp4", 7\r\n,,,\r\n3.5,,a.mp4,9\n\n'
    )
    assert read(folder, text, "utf-8-sig") == [VideoRow("b, with comma.mp4", 7, 255.0), VideoRow("a.mp4", 9, 3.5)]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("a.mp4,ten,127", ["row 3", "length", "'ten'", "no number"]),
        ("a.mp4,10,fast", ["row 3", "motion_bucket_id", "'fast'"]),
        ("a.mp4,10,nan", ["row 3", "motion_bucket_id", "no number"]),
        ("a.mp4,10,256", ["row 3", "motion_bucket_id", "256", "0..255"]),
        ("a.mp4,10,-1", ["row 3", "0..255"]),
        ("a.mp4,0,1", ["row 3", "length", "1 or more"]),
        ("a.mp4,2.5,1", ["row 3", "length"]),
        ("a.mp4,inf,1", ["row 3", "length"]),
        ("a.mp4,10", ["row 3", "motion_bucket_id is empty"]),
        (",10,3", ["row 3", "path is empty"]),
        ("gone.mp4,10,3", ["row 3", "no file gone.mp4", "--data_dir"]),
        ("sub,10,3", ["row 3", "no file sub"]),
        ('"a.mp4"x,10,3', ["row 3", "quoting"]),
        ('"a.mp4,10,3', ["row 3", "quoting"]),
    ],
)
def test_a_bad_row_is_named(folder, row, parts):
    refused(folder, f"path,length,motion_bucket_id\na.mp4,10,127\n{row}\n", "--metadata", *parts)


def test_missing_column(folder):
    refused(folder, "path,frames\na.mp4,3\n", "row 1", "no column length, motion_bucket_id", "path, frames")


def test_no_rows(folder):
    refused(folder, "", "no video")
    refused(folder, "path,length,motion_bucket_id\n\n", "no video", "score_motion")


def test_unreadable(folder):
    refused(folder, "path,length,motion_bucket_id\n\xff.mp4,1,1\n", "UTF-8", encoding="latin-1")
    with pytest.raises(UserError, match=r"--metadata: cannot read .*none\.csv: No such file"):
        read_metadata(folder, folder / "none.csv", "--data_dir", "--metadata")
    with pytest.raises(UserError, match=r"--data_dir: .*nowhere is no folder"):
        read_metadata(folder / "nowhere", folder / "videos.csv", "--data_dir", "--metadata")


def test_what_is_written_is_read_back(folder):
    rows = [("b, with comma.mp4", 12, 200), ("a.mp4", 3, 0)]
    write_rows(folder / "videos.csv", COLUMNS, rows)
    assert read_metadata(folder, folder / "videos.csv", "", "") == [VideoRow(*row) for row in rows]
    assert [p.name for p in folder.glob(".*")] == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_headers_in_any_case_spaces_and_rates(folder, delimiter):
    lines = ["Path,LENGTH, Motion_Bucket_ID ,FPS,note", "a.mp4,10, 127 ,29.97,x", " sub/c.mp4 ,20,0,,", "a.mp4,9,1, ,"]
    text = "\n".join(lines).replace(",", delimiter)
    rows = [VideoRow("a.mp4", 10, 127.0, fps=29.97), VideoRow("sub/c.mp4", 20, 0.0), VideoRow("a.mp4", 9, 1.0)]
    assert read(folder, text) == rows


def test_what_spreadsheets_write(folder):
    text = 'sep=;\r\npath;length;motion_bucket_id;fps\r\n"b, with comma.mp4";7;63,5;12,5\r\n'
    assert read(folder, text, "utf-8-sig") == [VideoRow("b, with comma.mp4", 7, 63.5, fps=12.5)]
    assert read(folder, 'path, length, motion_bucket_id\n "b, with comma.mp4", 7, 3\n')[0].path == "b, with comma.mp4"


@pytest.mark.parametrize(
    "name", [" lead.mp4", "trail.mp4 ", "\ttab.mp4", "new\nline.mp4", 'quo"te.mp4', "semi;colon.mp4", "ü—.mp4"]
)
def test_odd_names_are_read_back(folder, name):
    (folder / name).touch()
    write_rows(folder / "videos.csv", COLUMNS, [(name, 12, 200), ("a.mp4", 3, 0)])
    rows = read_metadata(folder, folder / "videos.csv", "", "")
    assert [row.path for row in rows] == [name, "a.mp4"]
    if "\n" not in name and '"' not in name and "\t" not in name:  # as other programs write it, unquoted
        assert read(folder, f"path,length,motion_bucket_id\n{name},12,200\n")[0].path == name


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("path,length\na.mp4,3\n", ["no column motion_bucket_id", "score_motion.py --videos="]),
        ("path,length,motion_bucket_id,Length\na.mp4,3,4,5\n", ["two columns have one name"]),
        ("path,length,motion_bucket_id,fps\na.mp4,3,4,fast\n", ["row 2", "fps is 'fast', which is no number"]),
        ("path,length,motion_bucket_id,fps\na.mp4,3,4,0\n", ["row 2", "fps is 0"]),
        (f"path,length,motion_bucket_id\n{'x' * 300}.mp4,3,4\n", ["row 2", "no file xxx"]),
        ("path,length,motion_bucket_id\na\0.mp4,3,4\n", ["row 2"]),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(folder, text, parts):
    refused(folder, text, *parts)
