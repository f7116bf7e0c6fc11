"""The gate in front of Gradio: which addresses it knows, how much it takes, what it tells browsers."""

import asyncio
import os
import re
import urllib.request

import pytest

pytest.importorskip("starlette", reason="the page's tests need Gradio: pip install -r requirements-page.txt")

from svd_tools.web.server import MOST_TALK, MULTIPART_BYTES, Gate, served
from tests.svd_tools.web.conftest import Server

LIMIT = 1000


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "served"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file.txt").write_text("ours")
    (tmp_path / "secret.txt").write_text("not ours")
    (tmp_path / "served-not").mkdir()
    (tmp_path / "served-not" / "file.txt").write_text("not ours")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return folder


async def echo(scope, receive, send):
    """Reads the whole body and answers with its length."""
    length = 0
    while True:
        message = await receive()
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"Referrer-Policy", b"unsafe-url")]})
    await send({"type": "http.response.body", "body": str(length).encode()})


def ask(folder, path, chunks=(b"",), headers=()):
    """(status, headers, body) of a request."""
    sent, left = [], list(chunks)

    async def receive():
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    asyncio.run(Gate(echo, folder, LIMIT)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    "path", ["/", "/config", "/gradio_api/queue/join", "/gradio_api/upload", "/assets/index-a1.js", "/theme.css"]
)
def test_the_page_s_own_addresses_are_known(folder, path):
    assert ask(folder, path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/proxy=http://example.com", "/gradio_api/run-history/buckets", "/gradio_api/deep_link", "/monitoring",
     "/gradio_api/file=http://127.0.0.1:1/x", "/gradio_api/process_recording", "/gradio_api/component_server",
     "/assets/../config", "/static/..", "/gradio_api/mcp/sse", "/gradio_api/vibe-code", "/dev/reload"],
)  # fmt: skip
def test_others_are_not(folder, path):
    assert ask(folder, path)[0] == 404


def test_files_are_served_from_one_folder_alone(folder):
    parent = folder.parent
    assert ask(folder, f"/gradio_api/file={folder}/inner/file.txt")[0] == 200
    for path in ("link.txt", "away/secret.txt", "../secret.txt", "inner/../../secret.txt", "pipe", "inner", "", "none"):
        assert ask(folder, f"/gradio_api/file={folder}/{path}")[0] == 404, path
        assert served(f"{folder}/{path}", folder) is None
    outside = parent / "secret.txt", parent / "served-not" / "file.txt", "/etc/passwd", "etc/passwd", "\0", "x" * 9999
    for path in outside:
        assert ask(folder, f"/gradio_api/file={path}")[0] == 404


def test_requests_have_a_largest_size(folder):
    upload, talk = LIMIT + MULTIPART_BYTES, MOST_TALK
    for path, most in {"/gradio_api/upload": upload, "/gradio_api/queue/join": talk}.items():
        assert ask(folder, path, [b"x" * (most - 1), b"x"])[::2] == (200, str(most).encode())
        told, streamed = [(b"content-length", str(most + 1).encode())], [b"x" * most, b"x"]
        for status, _, body in (ask(folder, path, [b""], told), ask(folder, path, streamed)):
            assert status == 413 and body.startswith(b"At most ") and body.endswith(b" MB can be sent here.")


def test_browsers_are_told_to_load_nothing_from_elsewhere(folder):
    for path in ("/", "/no/such/page"):
        headers = {name.decode().lower(): value.decode() for name, value in ask(folder, path)[1].items()}
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "http" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer" and headers["x-content-type-options"] == "nosniff"


def test_the_page_s_own_pictures_are_served(tmp_path):
    """By the real server: Gradio has a list of folders of its own."""
    server = Server(tmp_path)
    try:
        with urllib.request.urlopen(f"{server.address}config", timeout=60) as answer:
            path = re.search(r"gradio_api/file=([^\"\\&?]+tiger[^\"\\&?]*)", answer.read().decode()).group(1)
        with urllib.request.urlopen(f"{server.address}gradio_api/file={path}", timeout=60) as answer:
            assert answer.status == 200 and answer.read(2) == b"\xff\xd8"
    finally:
        server.close()
