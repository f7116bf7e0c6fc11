"""A page and a browser for the slow tests: Debian's Chromium, driven by Playwright."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.training import free_port
from tests.svd_tools.small_model import save_random
from tests.svd_tools.web import PROJECT, TINY

RUN_SECONDS = 300
SMALL_XL = PROJECT / "tests" / "parity" / "sd_xl_base_small.yaml"


class Server:
    """svd_tools/page.py in a process of its own.

    Args:
        folder: for its checkpoints, and where it runs.
        flags: of the command.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder, self.port = folder, free_port()
        self.models = folder / "models"
        self.models.mkdir()
        (self.models / "svd_tiny.safetensors").symlink_to(TINY)
        (self.models / "broken<b>.safetensors").write_bytes(b"no weights at all")
        (self.models / "small_xl.yaml").write_text(f"base: {SMALL_XL}\n")
        save_random(self.models / "small_xl.safetensors", SMALL_XL)
        command = [sys.executable, str(PROJECT / "svd_tools" / "page.py"), f"--port={self.port}"]
        command += [f"--models={self.models}", *flags]
        self.log = open(folder / "log.txt", "w")  # noqa: SIM115, closed with the server
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.address = self.process.stdout.readline().strip()
        assert self.address, (folder / "log.txt").read_text()

    def close(self) -> None:
        """Ends it as Ctrl-C's cousin does."""
        self.process.terminate()
        self.process.wait(60)
        self.process.stdout.close()
        self.log.close()


class Tab:
    """A tab of the browser with the page in it; `requests` are all addresses that it asked for."""

    def __init__(self, browser, server, width=1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(60_000)
        self.requests, self.errors = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(server.address)
        self.page.wait_for_selector("#video-run")

    def fill(self, **options) -> None:
        """Sets controls; opens the lower ones first."""
        if not self.page.is_visible("#option-sampler"):
            self.page.click("#more button")
            self.page.wait_for_selector("#option-sampler")
        for name, value in options.items():
            where = f"#{name} input" if name == "seed" else f"#option-{name} input"
            self.page.locator(where).first.fill(str(value))
            self.page.keyboard.press("Tab")
        self.page.wait_for_timeout(1000)

    def small(self, **options) -> None:
        """As little work as a video can be."""
        self.fill(**{"num_frames": 2, "sampling_steps": 1, "height": 64, "width": 64, **options})

    def upload(self, path, area="picture") -> None:
        self.page.set_input_files(f"#{area} .file", str(path))

    def example(self, name="tiger.jpg") -> None:
        self.page.click(f'.example[data-name="{name}"]')
        self.page.wait_for_selector(f'.crop[alt$="{name}"]')

    def state(self) -> str:
        job = self.page.query_selector("#video-stage .job")
        return job.get_attribute("data-state") if job else ""

    def job(self) -> str:
        return self.page.get_attribute("#video-stage .job", "data-job")

    def run(self) -> str:
        """Presses Run and waits for the new job's beginning; returns its key."""
        before = self.job() if self.state() else ""
        self.page.click("#video-run")
        key = "document.querySelector('#video-stage .job')?.dataset.job"
        self.page.wait_for_function(f"({key} || {before!r}) != {before!r}")
        return self.job()

    def wait(self, *states) -> str:
        """Waits for one of the states; returns it."""
        deadline = time.monotonic() + RUN_SECONDS
        while self.state() not in states:
            assert time.monotonic() < deadline, self.page.inner_text("#video-stage")
            self.page.wait_for_timeout(100)
        return self.state()

    def wait_for_text(self, selector, text) -> str:
        self.page.wait_for_function(
            "([where, text]) => document.querySelector(where)?.innerText.includes(text)", arg=[selector, text]
        )
        return self.page.inner_text(selector)

    def download(self, kind="mp4") -> bytes:
        """The file that a click on its link brings."""
        with self.page.expect_download() as download:
            self.page.click(f'.download:text-is("{kind}")')
        return Path(download.value.path()).read_bytes()

    def close(self) -> None:
        self.page.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("page"), "--max_megabytes=2")
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser, server):
    """Opens tabs that are closed after the test."""
    tabs = []

    def open_one(width=1280):
        tabs.append(Tab(browser, server, width))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.close()
