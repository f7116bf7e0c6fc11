"""What the page shows as HTML. Every text goes through `escape`: names of files come from visitors."""

from html import escape
from pathlib import Path
from typing import Any, Iterable, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

from svd_tools.web.jobs import CANCELLED, DONE, FAILED, WAITING, Job
from svd_tools.web.reader import Motion, Picture
from svd_tools.web.videos import FORMATS, STAGES, Progress

IDLE = '<div class="stage empty"><p>The video appears here.</p></div>'
PICTURE_HINT = "Drop a picture here, paste one, or click to choose a file"
CLIP_HINT = "Drop a clip here, or click to choose a file"


def url_of(path: str) -> str:
    """Where the page serves a file of its own folder."""
    return f"gradio_api/file={quote(str(path))}"


def problem(text: str) -> str:
    """An error line."""
    return f'<p class="problem" role="alert">{escape(text)}</p>' if text else ""


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


def crop(picture: Picture, size: Tuple[int, int], offset: Tuple[float, float]) -> str:
    """The part of a picture that the model will see; CSS crops as :func:`data.image_reader.fit_image` does.

    Args:
        size: (height, width) of the video.
        offset: of the crop, down and across, 0 to 1.
    """
    position = f"{100 * offset[1]:g}% {100 * offset[0]:g}%"
    return (
        f'<img class="crop" draggable="false" src="{escape(url_of(picture.copy))}" '
        f'style="--shape:{size[1]} / {size[0]};object-position:{position}" '
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


def stage(job: Job) -> str:
    """A job as it stands: its place in the queue, its progress, its video, or what went wrong."""
    if job.state == DONE:
        return _marked(job, _video(job))
    if job.state == FAILED:
        return _marked(job, f'<div class="stage empty">{problem(job.error)}</div>')
    if job.state == CANCELLED:
        return _marked(job, '<div class="stage empty"><p role="status">Cancelled.</p></div>')
    if job.state == WAITING:
        line = f"Number {job.place} in the queue: another video is being made."
        return _marked(job, f'<div class="stage empty"><p role="status">{line}</p></div>')
    picture = f'<img class="preview" src="{job.preview}" alt="Rough preview">' if job.preview else ""
    return _marked(job, f'<div class="stage{"" if picture else " empty"}">{picture}{_bar(job.progress)}</div>')


def motion(found: Motion) -> str:
    """A clip's score and bucket, with its flow drawn."""
    drawings = "".join(f'<img src="{url}" alt="Flow, half a second each">' for url in found.drawings)
    return (
        f'<p class="score">Motion bucket <strong>{found.bucket}</strong>, score {found.score:.4f} shortest sides per '
        f'second.</p><p>Arrows: how far each place moves in half a second.</p><div class="flow">{drawings}</div>'
    )


def settings_table(settings: Mapping[str, Any]) -> str:
    """A video's settings, a line each."""
    rows = [(name, value) for name, value in settings.items() if name != "SVD"]
    rows += list(settings.get("SVD", {}).items())
    lines = [f"<tr><th>{escape(str(name))}</th><td>{escape(_shown(value))}</td></tr>" for name, value in rows]
    return f'<details class="settings"><summary>Its settings</summary><table>{"".join(lines)}</table></details>'


def _video(job: Job) -> str:
    files: List[Path] = [job.folder / f"video.{name}" for name in FORMATS]
    stem = Path(str(job.settings.get("image", "video"))).stem
    names = {path: f"{stem}_seed{job.settings.get('seed')}{path.suffix}" for path in files if path.exists()}
    links = [
        f'<a class="download" href="{escape(url_of(path))}" download="{escape(name)}">{path.suffix[1:]}</a>'
        for path, name in names.items()
    ]
    return (
        f'<div class="stage"><video src="{escape(url_of(files[0]))}" autoplay loop muted playsinline controls></video>'
        "</div>"
        f'<p class="downloads">Download {" ".join(links)}</p>{settings_table(job.settings)}'
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


def _marked(job: Job, content: str) -> str:
    return f'<div class="job" data-job="{job.key}" data-state="{job.state}">{content}</div>'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
