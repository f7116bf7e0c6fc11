"""Whatever a visitor names a file, the page shows it as text."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from svd_tools.web import views
from svd_tools.web.jobs import DONE, FAILED, RUNNING, WAITING, Job
from svd_tools.web.making import Progress
from svd_tools.web.reader import Picture

EVIL = "\"><img src=x onerror='alert(1)'>&<script>"


class Parsed(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_names_are_shown_and_not_run(job):
    picture = Picture("/p", EVIL, f"/folder/{EVIL}.jpg", 10, 20)
    job.folder.mkdir()
    (job.folder / "video.mp4").touch()
    job.change(state=DONE, settings={"image": EVIL, EVIL: 1, "SVD": {"checkpoint": EVIL, EVIL: [EVIL]}})
    done = views.job(job)
    job.change(state=FAILED, error=EVIL)
    shown = [views.problem(EVIL), views.crop_caption(picture, (1, 2)), views.job(job), done]
    hidden = [views.crop(picture, (1, 2), (0, 1)), views.examples([(EVIL, f"/{EVIL}")]),
              views.drop_area(EVIL, EVIL, EVIL, EVIL, text=EVIL), views.message(EVIL, EVIL)]  # fmt: skip
    for page in [*shown, *hidden]:
        elements = Parsed(page).elements
        assert "script" not in [tag for tag, _ in elements]
        assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
        assert {attributes["src"][:17] for _, attributes in elements if "src" in attributes} <= {"gradio_api/file=/"}
    assert all(EVIL in Parsed(page).text for page in shown)


def test_a_job_s_stages(job):
    job.change(state=WAITING, place=3)
    assert "Number 3 in the queue" in views.job(job)
    job.change(state=RUNNING, progress=Progress("sampling", 3, 10, 33.3), preview="data:image/webp;base64,AAAA")
    shown = views.job(job)
    assert "Sampling, 3 of 10; about 33 s left" in shown and 'value="3" max="10"' in shown and "base64,AAAA" in shown
    job.change(progress=Progress("decoding", 0, 4, 7200.0))
    assert "about 2.0 h left" in views.job(job) and f'data-job="{job.key}"' in views.job(job)


def test_the_crop_is_css_s():
    picture = Picture("/p", "cat.jpg", "/folder/cat.jpg", 10, 20)
    assert "--shape:128 / 64;object-fit:cover;object-position:25% 100%" in views.crop(picture, (64, 128), (1, 0.25))
    assert "object-fit:fill" in views.crop(picture, (64, 128), (0.5, 0.5), squashed=True)


def test_a_file_s_address_is_quoted():
    assert views.url_of("/a folder/ä?#.mp4") == "gradio_api/file=/a%20folder/%C3%A4%3F%23.mp4"
    assert views.url_of(Path("/x")) == "gradio_api/file=/x"
