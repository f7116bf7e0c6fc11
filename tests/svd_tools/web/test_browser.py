"""The page in a real browser: pip install -r requirements-dev.txt, apt-get install chromium."""

import json
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data.image_reader import fit_image, read_image
from data.video_reader import VideoReader
from data.video_writer import read_metadata
from tests.svd_tools.web import PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TIGER = PROJECT / "examples" / "tiger.jpg"
EVIL = "<img src=x onerror=window.broken=1>.jpg"


def test_from_an_upload_to_a_video_that_plays(open_tab, tmp_path):
    tab = open_tab()
    tab.page.click("#video-run")
    tab.wait_for_text("#video-stage", "there is no picture yet")
    tab.upload(TIGER)
    tab.page.wait_for_selector(".crop")
    box = tab.page.locator(".crop").bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)  # svd_tiny's shape
    tab.page.mouse.move(box["x"] + 200, box["y"] + 100)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 100, box["y"] + 100, steps=4)
    tab.page.mouse.up()
    tab.page.wait_for_timeout(1500)
    tab.fill()
    down, across = (float(tab.page.input_value(f"#option-crop_offset-{i} input[type=number]")) for i in (0, 1))
    assert down == 0.5 and across > 0.6  # the picture is wider than high: only this axis moves
    tab.run()
    tab.wait("running")
    tab.page.wait_for_selector(".preview")
    assert tab.wait("done", "failed") == "done", tab.page.inner_text("#video-stage")
    tab.page.wait_for_function("document.querySelector('#video-stage video').readyState >= 3")
    video = "document.querySelector('#video-stage video')"
    assert tab.page.evaluate(f"{video}.duration") == pytest.approx(8 / 7, abs=0.02)
    assert tab.page.evaluate(f"[{video}.videoWidth, {video}.loop, {video}.paused]") == [128, True, False]
    files = {kind: tmp_path / f"video.{kind}" for kind in ("mp4", "gif", "webp")}
    for kind, path in files.items():
        path.write_bytes(tab.download(kind))
        settings = read_metadata(path)
        assert settings["image"] == "tiger.jpg" and settings["SVD"]["crop_offset"] == [down, across]
    with VideoReader(files["mp4"]) as reader:
        assert reader.num_frames == 8
    with Image.open(files["webp"]) as image:  # lossless: the first frame is the crop that was shown
        first = np.asarray(image.convert("RGB"), float)
    offsets = np.linspace(0, 1, 41)
    crops = [fit_image(read_image(TIGER), 128, 128, (down, x)).astype(float) for x in offsets]
    likeness = [np.corrcoef(first.ravel(), crop.ravel())[0, 1] for crop in crops]
    assert max(likeness) > 0.8 and offsets[np.argmax(likeness)] == pytest.approx(across, abs=0.05)
    assert not tab.errors


def test_the_same_seed_gives_the_same_file_and_settings_come_back(open_tab, tmp_path):
    tab = open_tab()
    tab.example()
    tab.small(seed=5, fps=9)
    files = []
    for _ in range(2):
        tab.run()
        assert tab.wait("done", "failed") == "done"
        files.append(tab.download())
    assert files[0] == files[1]
    tab.fill(fps=12, seed=1)
    tab.page.click("#video-again")
    tab.page.wait_for_timeout(2000)
    assert [tab.page.input_value(f"{where} input") for where in ("#option-fps", "#seed")] == ["9", "5"]
    tab.fill(fps=12, seed=1)
    (tmp_path / "made.mp4").write_bytes(files[0])
    tab.upload(tmp_path / "made.mp4")
    tab.wait_for_text("#note", "The settings of made.mp4 are taken; its picture was tiger.jpg.")
    assert [tab.page.input_value(f"{where} input") for where in ("#option-fps", "#seed")] == ["9", "5"]
    tab.run()
    assert tab.wait("done", "failed") == "done" and tab.download() == files[0]
    tab.page.check("#random input")
    tab.run()
    assert tab.wait("done", "failed") == "done" and int(tab.page.input_value("#seed input")) > 10**6


def test_two_visitors_queue_and_cancelling_frees_the_page(open_tab):
    first, second = open_tab(), open_tab()
    for tab in (first, second):
        tab.example()
    first.small(sampling_steps=1000)
    second.small()
    first.run()
    first.wait("running")
    second.run()
    assert second.state() == "waiting" and "Number 1 in the queue" in second.page.inner_text("#video-stage")
    first.wait_for_text("#video-stage", "left")  # it samples, and tells the time
    first.page.click("#video-cancel")
    assert first.wait("cancelled", "done") == "cancelled"
    assert second.wait("done", "failed") == "done"
    first.small()
    first.run()
    assert first.wait("done", "failed") == "done"


def test_a_page_loaded_again_goes_on_showing_its_video(open_tab):
    tab = open_tab()
    tab.example()
    tab.small(sampling_steps=60)
    key = tab.run()
    tab.wait("running")
    tab.page.reload()
    tab.page.wait_for_selector("#video-stage .job")
    assert tab.job() == key and tab.state() == "running"
    assert tab.wait("done", "failed") == "done"


def test_what_cannot_be_used_is_told_where_it_is(open_tab, tmp_path):
    tab = open_tab()
    (tmp_path / EVIL).write_bytes(b"no picture")
    tab.upload(tmp_path / EVIL)
    assert EVIL in tab.wait_for_text("#note", "it is not an image")
    (tmp_path / "large.jpg").write_bytes(b"x" * 2_500_000)
    tab.upload(tmp_path / "large.jpg")
    tab.wait_for_text("#picture", "large.jpg has 2.5 MB; at most 2 MB can be uploaded")
    Image.new("1", (9_000, 9_000)).save(tmp_path / "wide.png")
    tab.upload(tmp_path / "wide.png")
    tab.wait_for_text("#note", "it has more than 64 million pixels")
    tab.example()
    tab.fill(height=100)
    tab.wait_for_text("#option-height", "100 cannot be used; expected a multiple of 64 from 64 to 8192, such as 128")
    tab.page.click("#video-run")
    tab.wait_for_text("#video-stage", "height: 100 cannot be used")
    tab.small()
    assert "cannot be used" not in tab.page.inner_text("#option-height")
    tab.page.click("#model input")
    tab.page.get_by_role("option", name="broken<b>.safetensors").click()
    tab.wait_for_text("#video-stage", "it is not a checkpoint")
    assert not tab.errors and tab.page.evaluate("window.broken") is None


def test_out_of_memory_and_a_crash_end_in_a_line_and_a_new_process(open_tab, server):
    tab = open_tab()
    tab.example()
    tab.small(num_frames=1024, height=8192, width=6144)  # 26 GB of noise
    tab.run()
    assert tab.wait("done", "failed") == "failed"
    tab.wait_for_text("#video-stage", "out of memory; in this order, try: decode chunk size 1")
    tab.small(sampling_steps=1000)
    tab.run()
    tab.wait_for_text("#video-stage", "left")
    models = [child for child in psutil.Process(server.process.pid).children() if child.memory_info().rss > 3e8]
    assert len(models) == 1
    models[0].kill()
    assert tab.wait("done", "failed") == "failed"
    tab.wait_for_text("#video-stage", "the model's process ended unexpectedly (signal SIGKILL")
    tab.small()
    tab.run()
    assert tab.wait("done", "failed") == "done"


def test_a_clip_s_motion(open_tab, tmp_path):
    from tests.data.synthetic_videos import pan, write_video

    write_video(tmp_path / "pan.mp4", pan(16, 90, 120, 6.0, seed=1))
    tab = open_tab()
    tab.page.get_by_role("tab", name="Motion").click()
    tab.upload(tmp_path / "pan.mp4", "clip")
    text = tab.wait_for_text("#clip", "Motion bucket")
    bucket = re.search(r"Motion bucket (\d+)", text).group(1)
    assert int(bucket) > 100 and tab.page.locator(".flow img").count() >= 1
    tab.page.click("#use-bucket")
    tab.page.get_by_role("tab", name="Animate").click()
    tab.page.wait_for_timeout(1000)
    assert tab.page.input_value("#option-motion_bucket_id input[type=number]") == bucket
    (tmp_path / "still.mp4").write_bytes(TIGER.read_bytes())
    tab.page.get_by_role("tab", name="Motion").click()
    tab.upload(tmp_path / "still.mp4", "clip")
    tab.wait_for_text("#clip .problem", "still.mp4")


def test_words_become_a_picture_and_then_a_video(open_tab, tmp_path):
    tab = open_tab()
    page = tab.page
    page.get_by_role("tab", name="Text to picture").click()
    page.click("#picture-run")
    tab.wait_for_text("#picture-stage", "there is no prompt yet")
    page.fill("#prompt textarea", "a fox in the snow")
    page.fill("#option-picture-sampling_steps input", "2")
    page.keyboard.press("Tab")
    page.click("#picture-run")
    page.wait_for_selector("#picture-stage .job[data-state=done] img")
    page.click("#picture-again")
    page.wait_for_selector('.crop[alt$="picture.png"]')
    tab.small()
    tab.run()  # another model: another process
    assert tab.wait("done", "failed") == "done"
    (tmp_path / "fox.mp4").write_bytes(tab.download())
    assert read_metadata(tmp_path / "fox.mp4")["image"] == "picture.png"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_asked_of_the_network_or_cut_off(open_tab, server, width):
    tab = open_tab(width)
    tab.example()
    tab.small()
    tab.run()
    tab.wait("done")
    tab.page.get_by_role("tab", name="Motion").click()
    tab.page.wait_for_timeout(1000)
    hosts = {address.split("/")[2] for address in tab.requests if not address.startswith(("data:", "blob:"))}
    assert hosts == {f"127.0.0.1:{server.port}"} and len(tab.requests) > 20
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not tab.errors


CONTRAST = """() => {
  const channel = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const background = (element) => {
    for (; element; element = element.parentElement) {
      const found = colour(getComputedStyle(element).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (element.closest(":disabled") || element.closest("script, style, noscript")) continue;
    const [a, b] = [colour(getComputedStyle(element).color), background(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.tagName} ${element.textContent.trim().slice(0, 40)}`);
  }
  return poor;
}"""


def test_text_can_be_read(open_tab):
    """Contrast of 4.5 at least (WCAG AA), in light and dark."""
    tab = open_tab()
    tab.example()
    tab.fill(height=100)
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        tab.page.reload()
        tab.page.wait_for_selector("#video-run")
        tab.example()
        tab.fill(height=100)
        assert tab.page.evaluate(CONTRAST) == [], scheme


# ------------------------------------------------------------------------------------------------------------ security


def fetch(server, path, body=None):
    """(status, content) of a request without a browser."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    request = urllib.request.Request(f"{server.address}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_no_file_outside_the_page_s_folder(open_tab, server):
    tab = open_tab()
    tab.example()
    served = next(address for address in tab.requests if "/gradio_api/file=" in address)
    folder = Path(served.partition("file=")[2]).parent
    assert folder.name == "examples"
    assert fetch(server, f"gradio_api/file={folder}/tiger.jpg")[0] == 200
    (folder / "link.jpg").symlink_to("/etc/passwd")
    tricks = [
        "/etc/passwd", "%2Fetc%2Fpasswd", "file:///etc/passwd", "~/.bashrc", "image_to_video.py", "http://127.0.0.1:1/",
        f"{folder}/../../../etc/passwd", f"{folder}/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"{folder}/..%2f..%2fetc%2fpasswd", f"{folder}/link.jpg", f"{server.models}/svd_tiny.safetensors",
    ]  # fmt: skip
    for trick in tricks:
        status, content = fetch(server, f"gradio_api/file={trick}")
        assert status == 404 and b"root:" not in content, trick


def test_an_event_names_no_file_but_an_uploaded_one(open_tab, server):
    """What the page's script sends is forged: the file must be one of the page's folder."""
    tab = open_tab()
    config = json.loads(fetch(server, "config")[1])
    picture = next(item["id"] for item in config["components"] if item["props"].get("elem_id") == "picture")
    event = next(item for item in config["dependencies"] if [picture, "upload"] in item["targets"])
    values = {item["id"]: item["props"].get("value") for item in config["components"]}
    for path in ("/etc/passwd", str(TIGER), "http://127.0.0.1:1/x.jpg"):
        data = {"data": [values[key] for key in event["inputs"]], "event_data": {"path": path, "name": "x.jpg"},
                "fn_index": event["id"], "trigger_id": picture, "session_hash": "forged"}  # fmt: skip
        answer = fetch(server, "gradio_api/run/predict", json.dumps(data).encode())[1].decode()
        ours, gradios = "was not uploaded, or is not kept any more", "not in the cache folder and cannot be accessed"
        assert (ours in answer or gradios in answer) and "root:" not in answer
    tab.example()


def test_requests_that_are_too_large_are_refused(server):
    status, content = fetch(server, "gradio_api/upload", b"x" * 2_500_000)
    assert status == 413 and b"At most 2.1 MB" in content
    assert fetch(server, "gradio_api/run/predict", b"x" * 1_500_000)[0] == 413


def test_it_listens_on_the_loopback_alone_and_to_its_own_name(server):
    family = psutil.Process(server.process.pid)
    listening = [c.laddr for process in [family, *family.children(recursive=True)]
                 for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]  # fmt: skip
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n\r\n")
        assert b" 400 " in connection.recv(200).split(b"\r\n")[0]


# ----------------------------------------------------------------------------------------------------------- endurance


def test_requests_of_two_visitors_are_neither_lost_nor_mixed_up(open_tab, tmp_path):
    """Fifty, each with a seed of its own."""
    tabs = [open_tab(), open_tab()]
    for tab, name in zip(tabs, ("tiger.jpg", "sunset.jpg")):
        tab.example(name)
        tab.small()
    keys = set()
    for turn in range(25):
        for index, tab in enumerate(tabs):
            tab.fill(seed=100 * index + turn)
            keys.add(tab.run())
        for index, (tab, name) in enumerate(zip(tabs, ("tiger.jpg", "sunset.jpg"))):
            assert tab.wait("done", "failed", "cancelled") == "done", tab.page.inner_text("#video-stage")
            path = tmp_path / f"{turn}_{index}.mp4"
            path.write_bytes(tab.download())
            settings = read_metadata(path)
            assert (settings["seed"], settings["image"]) == (100 * index + turn, name)
    assert len(keys) == 50


RUNS, WARM = 200, 20


def test_the_page_does_not_grow_over_many_runs(open_tab, server):
    """Less than 5 % after the first twenty: the server and the model's process together."""

    def resident():
        family = psutil.Process(server.process.pid)
        return sum(process.memory_full_info().uss for process in [family, *family.children()])

    tab = open_tab()
    tab.example()
    tab.small()
    sizes = []
    for _ in range(RUNS):
        tab.run()
        assert tab.wait("done", "failed") == "done"
        sizes.append(resident())
    assert max(sizes[-WARM:]) < 1.05 * sizes[WARM], [round(size / 1e6) for size in sizes[::10]]
