"""The command around the page: its flags, and what it says without Gradio."""

import sys

import pytest

from gm.errors import UserError
from svd_tools import page


@pytest.fixture
def served(monkeypatch):
    """What `serve` was called with, in place of a page."""
    calls = []
    monkeypatch.setattr(page, "serve", lambda *arguments: calls.append(arguments))
    return calls


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(page, "OFFLINE", {})
    with pytest.raises(UserError, match="^the page needs Gradio: pip install -r requirements-page.txt$"):
        page.main([])


def test_it_is_for_this_machine_alone_unless_told_otherwise(served, caplog, tmp_path):
    page.main([])
    flags, models, folder, auth = served.pop()
    assert (flags.host, flags.share, auth) == ("127.0.0.1", False, None) and models.name == "checkpoints"
    assert not folder.exists() and folder.parent != models and not caplog.messages
    visitors = tmp_path / "visitors.txt"
    visitors.write_text("ann:secret\n\nbob:pass:word\n")
    page.main(["--host=0.0.0.0", f"--auth={visitors}"])
    assert served.pop()[3] == [("ann", "secret"), ("bob", "pass:word")] and not caplog.messages
    page.main(["--host=0.0.0.0"])
    page.main(["--share"])
    assert [line.partition(" can use")[0] for line in caplog.messages] == [
        "anybody who reaches 0.0.0.0", "anybody who reaches 127.0.0.1"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "line"),
    [(None, "No such file"), (b"\xff", "no UTF-8"), (b"", "lines of the form"), (b"ann\n", "form name:password")],
)
def test_visitors_that_cannot_be_read(served, tmp_path, content, line):
    path = tmp_path / "visitors.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^--auth: .*visitors.txt.*{line}"):
        page.main([f"--auth={path}"])
    assert not served


def test_flags_that_cannot_be(served, tmp_path):
    for flag, line in {"models=none": "none is no folder", "port=0": "0 cannot be used"}.items():
        with pytest.raises(UserError, match=f"^--{flag.partition('=')[0]}: {line}"):
            page.main([f"--{flag}"])


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("example.com", False)],
)  # fmt: skip
def test_which_addresses_nobody_else_reaches(host, alone):
    assert page.is_loopback(host) == alone
