"""What the page shows as HTML. Every text goes through `escape`: names of files come from visitors."""

import re
from html import escape
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

from svd_tools.web.jobs import CANCELLED, DONE, FAILED, WAITING, Job
from svd_tools.web.making import FORMATS, PICTURE, Progress
from svd_tools.web.reader import Motion, Picture

STAGES = {"loading": "Loading the model", "conditioning": "Looking at the picture", "reading": "Reading the prompt",
          "sampling": "Sampling", "decoding": "Decoding", "writing": "Writing the files"}  # fmt: skip


def plain(line: object) -> str:
    """An error line of the commands in the page's words: options have no flags here."""
    return re.sub(r"--(SVD|SD)\.", "", str(line))


def url_of(path: str) -> str:
    """Where the page serves a file of its own folder."""
    return f"gradio_api/file={quote(str(path))}"


def problem(text: str) -> str:
    """An error line."""
    return f'<p class="problem" role="alert">{escape(text)}</p>' if text else ""


def note(text: str) -> str:
    """A line that is no error."""
    return f'<p class="note" role="status">{escape(text)}</p>'


def message(text: str, error: str = "") -> str:
    """An empty stage with a text, or with an error line."""
    line = f'<p role="status">{escape(text)}</p>' if text else ""
    return f'<div class="stage empty">{line}{problem(error)}</div>'


def drop_area(hint: str, limits: str, label: str, accept: str, inner: str = "", below: str = "", text: str = "") -> str:
    """An area that files are dropped on, or chosen for by a click.

    Args:
        hint, limits: what it says while it is empty.
        label: its name for screen readers.
        accept: kinds of files that the browser offers.
        inner, below: HTML in it and below it.
        text: an error line.
    """
    content = inner or f"<span>{escape(hint)}</span><small>{escape(limits)}</small>"
    return (
        f'<div class="drop{"" if inner else " empty"}" role="button" tabindex="0" aria-label="{escape(label)}">'
        f'{content}</div><input type="file" class="file" accept="{escape(accept)}" aria-label="{escape(label)}">'
        f"{below}{problem(text)}"
    )


def crop(picture: Picture, size: Tuple[int, int], offset: Tuple[float, float], squashed: bool = False) -> str:
    """The part of a picture that the model will see; CSS crops as :func:`data.image_reader.fit_image` does.

    Args:
        size: (height, width) of the video.
        offset: of the crop, down and across, 0 to 1.
        squashed: the whole picture is seen, in the video's shape.
    """
    fit = "fill" if squashed else "cover"
    position = f"{100 * offset[1]:g}% {100 * offset[0]:g}%"
    return (
        f'<img class="crop" draggable="false" src="{escape(url_of(picture.copy))}" '
        f'style="--shape:{size[1]} / {size[0]};object-fit:{fit};object-position:{position}" '
        f'alt="What the model will see of {escape(picture.name)}">'
    )


def crop_caption(picture: Picture, size: Tuple[int, int]) -> str:
    """What the crop is of, and how to move it."""
    return (
        f'<p class="caption">{escape(picture.name)}, {picture.width}x{picture.height}: the model sees this at '
        f'{size[1]}x{size[0]}. Drag it, or use the arrow keys, to move the crop. '
        '<button type="button" class="choose">Another picture</button></p>'
    )


def examples(pictures: Iterable[Tuple[str, str]]) -> str:
    """Small pictures to click on; (name, path of a small copy) each."""
    buttons = [
        f'<button type="button" class="example" data-name="{escape(name)}" title="{escape(name)}">'
        f'<img src="{escape(url_of(path))}" alt="{escape(Path(name).stem.replace("_", " "))}"></button>'
        for name, path in pictures
    ]
    return f'<div class="examples" aria-label="Examples">{"".join(buttons)}</div>'


def job(job: Job) -> str:
    """A job as it stands: its place in the queue, its progress, its result, or what went wrong."""
    return f'<div class="job" data-job="{job.key}" data-state="{job.state}">{_job(job)}</div>'


def _job(job: Job) -> str:
    if job.state == DONE:
        return _result(job) + settings_table(job.settings)
    if job.state == FAILED:
        return message("", job.error)
    if job.state == CANCELLED:
        return message("Cancelled.")
    if job.state == WAITING:
        return message(f"Number {job.place} in the queue: another one is being made.")
    picture = f'<img class="preview" src="{job.preview}" alt="Rough preview">' if job.preview else ""
    return f'<div class="stage{"" if picture else " empty"}">{picture}{_bar(job.progress)}</div>'


def motion(found: Motion) -> str:
    """A clip's score and bucket, with its flow drawn."""
    drawings = "".join(f'<img src="{url}" alt="Flow, half a second each">' for url in found.drawings)
    return (
        f'<p class="score">Motion bucket <strong>{found.bucket}</strong>, score {found.score:.4f} shortest sides per '
        f'second.</p><p>Arrows: how far each place moves in half a second.</p><div class="flow">{drawings}</div>'
    )


def settings_table(settings: Mapping[str, Any]) -> str:
    """What made a result, a line each."""
    lines = []
    for name, value in settings.items():
        items = value.items() if isinstance(value, Mapping) else [(name, value)]
        lines += [f"<tr><th>{escape(str(key))}</th><td>{escape(_shown(item))}</td></tr>" for key, item in items]
    return f'<details class="settings"><summary>Its settings</summary><table>{"".join(lines)}</table></details>'


def _result(job: Job) -> str:
    picture = job.folder / PICTURE
    if picture.exists():
        return f'<div class="stage"><img class="preview" src="{escape(url_of(picture))}" alt="The picture"></div>'
    files = {kind: path for kind in FORMATS for path in job.folder.glob(f"*.{kind}")}
    links = [f'<a class="download" href="{escape(url_of(path))}" download>{kind}</a>' for kind, path in files.items()]
    return (
        f'<div class="stage"><video src="{escape(url_of(files["mp4"]))}" autoplay loop muted playsinline controls>'
        f'</video></div><p class="downloads">Download {" ".join(links)}</p>'
    )


def _bar(progress: Optional[Progress]) -> str:
    progress = progress or Progress("loading")
    line = STAGES[progress.stage]
    if progress.total:
        line += f", {progress.done} of {progress.total}"
    if progress.seconds_left:
        line += f"; about {_duration(progress.seconds_left)} left"
    bounds = f'value="{progress.done}" max="{progress.total}"' if progress.total else ""
    return f'<p class="progress" role="status"><progress {bounds}></progress>{line}</p>'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
