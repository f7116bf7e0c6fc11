"""The page itself: what is on it, and what happens when something is clicked."""

import asyncio
import secrets
from functools import partial
from pathlib import Path
from typing import Annotated, Any, AsyncIterator, Dict, List, Mapping, NamedTuple, Optional, Tuple

import gradio as gr

from data.image_reader import find_images
from gm.config.values import Range, expect, fits, show
from gm.errors import UserError
from svd_tools.web import views
from svd_tools.web.controls import (
    BASIC,
    CROP,
    MORE,
    NO_LORA,
    check,
    from_settings,
    make_controls,
    to_options,
    to_values,
)
from svd_tools.web.jobs import Job, JobQueue
from svd_tools.web.models import find_files
from svd_tools.web.process import Process
from svd_tools.web.reader import Motion, Picture, Uploads
from svd_tools.web.server import served
from svd_tools.web.videos import Request, Weights

PARTS = Path(__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples"
FIRST_MODEL = "svd_tiny"
READING_SECONDS = 120.0  # of an upload, after which it is refused
WATCH_SECONDS = 0.2  # between looks at a job
MAX_SEED = 2**53 - 1  # what a browser counts exactly
Seed = Annotated[int, Range(0, MAX_SEED)]
PICTURES = "image/*,.avif,.jp2,.tif,.tiff,.mp4"
CLIPS = "video/*,.mkv,.avi"
WEIGHT_NAMES = Weights._fields[2:]


class Limits(NamedTuple):
    """How much may be uploaded: bytes of a file, millions of pixels of a picture."""

    max_bytes: int
    max_megapixels: int

    def __str__(self) -> str:
        return f"At most {self.max_bytes / 1e6:g} MB and {self.max_megapixels} million pixels"


class Page:
    """A page for making videos, with the processes behind it.

    Args:
        models: the folder of checkpoints and LoRAs.
        folder: an empty folder for uploads and results; the server gives its files to the browser.
        limits: of uploads.
        make_videos: gives the function of the model's process; see :class:`svd_tools.web.videos.Videos`.
    """

    def __init__(self, models: Path, folder: Path, limits: Limits, make_videos: Any) -> None:
        self.models, self.folder, self.limits = models, folder, limits
        self.found = find_files(models)
        self.model_process = Process(make_videos, "the model's process")
        self.reader = Process(partial(Uploads, limits.max_megapixels), "the reading of uploads")
        self.loaded: Optional[Weights] = None
        self.jobs = JobQueue(self.make_video, self._folder("results"))
        self.copies = self._folder("pictures")

    def close(self) -> None:
        """Ends the processes."""
        self.model_process.stop()
        self.reader.stop()

    # ------------------------------------------------------------------------------------------------ what is shown

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        title = self._first_model()
        self.examples = self._copy_examples()
        values = self.found.models[title].defaults() if title else {}
        with gr.Blocks(title="Stable Video Diffusion", analytics_enabled=False) as blocks:
            gr.HTML("<h1>Stable Video Diffusion</h1><p>A picture becomes a short video.</p>", elem_id="title")
            with gr.Tab("Picture to video"):
                self._build_video_tab(title, values)
            with gr.Tab("Motion score"):
                self._build_motion_tab()
            blocks.load(self.look_again, [self.model], [self.model, self.lora_control])
            blocks.load(self.resume, [self.resumed], self.shown, js="() => [sessionStorage.getItem('video') || '']")
        return blocks

    def _build_video_tab(self, title: str, values: Mapping[str, Any]) -> None:
        self.picture = gr.State(None)
        self.job_key = gr.State("")
        self.wrong = gr.State("")
        self.resumed = gr.Textbox(visible=False)
        loras = list(self.found.loras)
        with gr.Row():
            with gr.Column(min_width=320):
                self.drop = self._drop_area(views.drop_area(**self._empty_drop()), "picture")
                self.model = gr.Dropdown(
                    [*self.found.models, *self.found.others], value=title, label="Model", elem_id="model",
                    info=f"The files of weights in {self.models.name}; each with the YAML file that it belongs to.",
                )  # fmt: skip
                basic = make_controls(BASIC[:1], values, loras)
                for pair in BASIC[1:3], BASIC[3:]:
                    with gr.Row():
                        basic += make_controls(pair, values, loras)
                with gr.Row():
                    self.seed = gr.Number(value=42, precision=0, label="Seed", elem_id="seed",
                                          info="The same seed and settings give the same video.")  # fmt: skip
                    self.random = gr.Checkbox(value=False, label="Random seed", elem_id="random")
                with gr.Accordion("More", open=False, elem_id="more"):
                    crop = make_controls(CROP, values, loras)
                    more = make_controls(MORE, values, loras)
            with gr.Column(min_width=320):
                with gr.Row():
                    self.run_button = gr.Button("Run", variant="primary", elem_id="run")
                    self.cancel_button = gr.Button("Cancel", interactive=False, elem_id="cancel")
                self.stage = gr.HTML(views.IDLE, elem_id="stage", js_on_load=(
                    "watch('value', () => { const job = element.querySelector('.job');"
                    " if (job) sessionStorage.setItem('video', job.dataset.job); });"))  # fmt: skip
                self.again_button = gr.Button("Use these settings again", visible=False, elem_id="again")
        self.controls = [*basic, *crop, *more]
        self.components = [control.component for control in self.controls]
        self.crop_components = [control.component for control in crop]
        self.lora_control = next(control.component for control in more if control.name == "lora")
        self.shown = [self.stage, self.job_key, self.seed, self.run_button, self.cancel_button, self.again_button]
        self._connect()

    def _connect(self) -> None:
        settings = [self.model, *self.components]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        taken = [self.picture, self.drop, self.model, self.random, self.seed, *self.components]
        self.drop.upload(self.take_upload, [self.picture, *settings], taken, **quick)
        self.drop.select(self.take_example, settings, [self.picture, self.drop], **quick)
        self.drop.release(self.move_crop, None, self.crop_components, **quick)
        self.model.input(self.choose_model, [self.model], [self.stage, *self.components], **quick)
        checked = [self.wrong, self.drop, *self.components]
        gr.on(
            [component.change for component in [self.model, *self.components]],
            self.check, [self.picture, self.wrong, *settings], checked, trigger_mode="always_last", **quick,
        )  # fmt: skip
        run = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        inputs = [self.picture, self.random, self.seed, *settings]
        self.run_button.click(self.run, inputs, self.shown, **run)
        self.cancel_button.click(self.cancel, [self.job_key], [self.cancel_button], **quick)
        used = [self.model, self.random, self.seed, *self.components]
        self.again_button.click(self.use_again, [self.job_key], used, **quick)

    def _build_motion_tab(self) -> None:
        gr.HTML("<p>How much a clip moves, as the motion bucket that training would give it.</p>")
        clip = self._drop_area(views.drop_area(views.CLIP_HINT, str(self.limits), "A clip", CLIPS), "clip")
        use = gr.Button("Use this motion bucket", visible=False, elem_id="use-bucket")
        bucket = gr.State(None)
        quick = {"show_progress": "hidden", "api_visibility": "private"}
        motion = next(control.component for control in self.controls if control.name == "motion_bucket_id")
        clip.upload(self.score_clip, None, [clip, bucket, use], queue=False, **quick)
        use.click(lambda value: value, [bucket], [motion], queue=False, **quick)

    def _drop_area(self, html: str, name: str) -> gr.HTML:
        script = (PARTS / "page.js").read_text(encoding="utf-8")
        return gr.HTML(html, js_on_load=script, elem_id=name, max_bytes=self.limits.max_bytes)

    def _empty_drop(self, text: str = "") -> Dict[str, str]:
        return {"hint": views.PICTURE_HINT, "limits": str(self.limits), "label": "A picture to animate",
                "accept": PICTURES, "below": views.examples(self.examples), "text": text}  # fmt: skip

    def show_picture(self, picture: Optional[Picture], title: str, values: Tuple[Any, ...], text: str = "") -> str:
        """The drop area, with what the model will see of the picture."""
        parts = self._empty_drop(text)
        if picture is not None:
            chosen = {(control.name, control.index): value for control, value in zip(self.controls, values)}
            size = tuple(max(1, int(chosen[name, None] or 1)) for name in ("height", "width"))
            offset = tuple(chosen["crop_offset", index] or 0 for index in (0, 1))
            parts["inner"] = views.crop(picture, size, offset)
            parts["below"] = views.crop_caption(picture, size) + parts["below"]
        return views.drop_area(**parts)

    # ----------------------------------------------------------------------------------------------- what is uploaded

    async def read(self, *request: Any) -> Any:
        """What the reading process makes of an upload."""
        return await asyncio.to_thread(self.reader.call, request, None, READING_SECONDS)

    async def take_upload(self, event: gr.EventData, picture: Optional[Picture], title: str, *values: Any) -> List[Any]:
        """A picture to animate; of a file that was made here, or by the commands, its settings."""
        unchanged = [gr.skip()] * (3 + len(values))
        try:
            path, name = self._uploaded(event)
            read = await self.read("picture", str(path), name, str(self.copies / f"{secrets.token_hex(16)}.jpg"))
            if isinstance(read, Picture):
                return [read, self.show_picture(read, title, values), *unchanged]
            return self._take_settings(read, name, picture, title, values)
        except UserError as error:
            return [gr.skip(), self.show_picture(picture, title, values, str(error)), *unchanged]

    def _take_settings(
        self, settings: Mapping[str, Any], name: str, picture: Optional[Picture], title: str, values: Tuple[Any, ...]
    ) -> List[Any]:
        changed, problems = self._controls_of(settings)
        text = f"The settings of {name} are taken; its picture was {settings.get('image', 'another')}."
        drop = self.show_picture(picture, title, values, " ".join([text, *(f"But {line}." for line in problems)]))
        return [gr.skip(), drop, *changed]

    def take_example(self, event: gr.EventData, title: str, *values: Any) -> List[Any]:
        """One of the examples."""
        example = next((item for item in self.example_pictures if item.name == getattr(event, "name", "")), None)
        return [example or gr.skip(), self.show_picture(example, title, values)]

    def move_crop(self, event: gr.EventData) -> List[float]:
        """The crop as it was dragged."""
        return [min(1.0, max(0.0, float(getattr(event, axis)))) for axis in ("down", "across")]

    async def score_clip(self, event: gr.EventData) -> List[Any]:
        """A clip's motion."""
        parts = (views.CLIP_HINT, str(self.limits), "A clip", CLIPS)
        try:
            path, name = self._uploaded(event)
            motion: Motion = await self.read("motion", str(path), name)
        except UserError as error:
            return [views.drop_area(*parts, text=str(error)), None, gr.update(visible=False)]
        return [views.drop_area(*parts, below=views.motion(motion)), motion.bucket, gr.update(visible=True)]

    def _uploaded(self, event: gr.EventData) -> Tuple[Path, str]:
        """The uploaded file that an event names: nothing but a file of the page's own folder.

        Raises:
            UserError: it names another one.
        """
        path, name = served(str(getattr(event, "path", "")), self.folder), str(getattr(event, "name", "file"))
        if path is None:
            raise UserError(f"{name} was not uploaded, or is not kept any more; upload it again")
        return path, name

    # ------------------------------------------------------------------------------------------------ what is chosen

    def look_again(self, title: str) -> List[Any]:
        """The files that are in the folder now."""
        self.found = find_files(self.models)
        choices = [*self.found.models, *self.found.others]
        title = title if title in choices else self._first_model()
        return [gr.update(choices=choices, value=title), gr.update(choices=[NO_LORA, *self.found.loras])]

    def choose_model(self, title: str) -> List[Any]:
        """A model's own values in the controls; or, of a file that is none, what it is."""
        if title not in self.found.models:
            line = self.found.others.get(title, f"{title} is not there any more; reload the page")
            return [f'<div class="stage empty">{views.problem(_plain(line))}</div>', *[gr.skip()] * len(self.controls)]
        return [views.IDLE, *to_values(self.controls, self.found.models[title].defaults())]

    def check(self, picture: Optional[Picture], wrong: str, title: str, *values: Any) -> Dict[Any, Any]:
        """Moves the crop, and explains below a control what cannot be so."""
        changes: Dict[Any, Any] = {}
        if picture is not None:
            changes[self.drop] = self.show_picture(picture, title, values)
        if title in self.found.models:
            name, line = check(self.controls, values, self.found.models[title], self.found)
            changes[self.wrong] = f"{name}: {line}"
            if changes[self.wrong] == wrong:
                return changes
            for control in self.controls:
                if control.name == name and not control.index:
                    changes[control.component] = gr.update(info=f"⚠ {line}", elem_classes=["wrong"])
                elif control.name == wrong.partition(": ")[0] and not control.index:
                    changes[control.component] = gr.update(info=control.component.info, elem_classes=[])
        return changes or {self.wrong: wrong}

    def use_again(self, key: str) -> List[Any]:
        """The settings of the video that is shown, in the controls."""
        job = self.jobs.find(key)
        return self._controls_of(job.settings)[0] if job else [gr.skip()] * (3 + len(self.controls))

    def _controls_of(self, settings: Mapping[str, Any]) -> Tuple[List[Any], List[str]]:
        """(updates of the model, the random seed, the seed and the controls; what could not be taken over)."""
        options, title, problems = from_settings(settings, self.found)
        seed = settings.get("seed")
        if not fits(seed, Seed):
            problems.append(f"its seed {show(seed)} is more than the page's {MAX_SEED}")
        changed = [title or gr.skip(), False, seed if fits(seed, Seed) else gr.skip()]
        return [*changed, *to_values(self.controls, options)], problems

    # --------------------------------------------------------------------------------------------------- what is made

    async def run(
        self, picture: Optional[Picture], random: bool, seed: Optional[int], title: str, *values: Any
    ) -> AsyncIterator[Dict[Any, Any]]:
        """Puts a video into the queue and shows how it comes along."""
        try:
            job = self._submit(picture, secrets.randbelow(MAX_SEED + 1) if random else seed, title, values)
        except UserError as error:
            yield {self.stage: f'<div class="stage empty">{views.problem(_plain(error))}</div>'}
            return
        async for changes in self.watch(job):
            yield changes

    async def resume(self, key: str) -> AsyncIterator[Dict[Any, Any]]:
        """Goes on showing the video that this tab of the browser showed before it was loaded again."""
        job = self.jobs.find(key)
        if job is None:
            yield {self.job_key: ""}
            return
        async for changes in self.watch(job):
            yield changes

    async def watch(self, job: Job) -> AsyncIterator[Dict[Any, Any]]:
        """Yields what the page shows of a job, until it is finished."""
        version = -1
        while True:
            if job.version != version:
                version, finished = job.version, job.finished
                yield {
                    self.stage: views.stage(job),
                    self.job_key: job.key,
                    self.seed: job.request.seed,
                    self.run_button: gr.update(interactive=finished),
                    self.cancel_button: gr.update(interactive=not finished),
                    self.again_button: gr.update(visible=bool(job.settings)),
                }
                if finished:
                    return
            job.look()
            await asyncio.sleep(WATCH_SECONDS)

    def cancel(self, key: str) -> Any:
        """Lets a video be, within a step."""
        job = self.jobs.find(key)
        if job is not None:
            self.jobs.cancel(job)
        return gr.update(interactive=False)

    def make_video(self, request: Request, on_report: Any) -> Dict[str, Any]:
        """Makes a video in the model's process; for another model, in a new one, so that memory is given back."""
        if self.loaded not in (None, request.weights):
            self.model_process.stop()
        self.loaded = request.weights

        def on_message(report: Any) -> None:
            if not on_report(report):
                self.model_process.cancel()

        try:
            return self.model_process.call(request, on_message)
        except UserError as error:
            raise UserError(_plain(error)) from error

    def _submit(self, picture: Optional[Picture], seed: Optional[int], title: str, values: Tuple[Any, ...]) -> Job:
        if picture is None:
            raise UserError("there is no picture yet; drop one, or click on an example")
        if title not in self.found.models:
            raise UserError(self.found.others.get(title, "choose a model first"))
        expect("seed", seed, Seed)
        model = self.found.models[title]
        name, line = check(self.controls, values, model, self.found)
        if line:
            raise UserError(f"{name}: {line}")
        options = to_options(self.controls, values, self.found)
        loaded_with = {name: options.pop(name) for name in WEIGHT_NAMES}
        weights = Weights(str(model.known.path), str(model.checkpoint), **loaded_with)
        return self.jobs.submit(lambda folder: Request(weights, options, picture.path, picture.name, seed, str(folder)))

    # ---------------------------------------------------------------------------------------------------------- files

    def _folder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        return folder

    def _first_model(self) -> str:
        titles = list(self.found.models)
        return next((title for title in titles if FIRST_MODEL in title), titles[0] if titles else "")

    def _copy_examples(self) -> List[Tuple[str, str]]:
        """(name, small copy) of each example."""
        self.example_pictures = []
        for path in find_images(EXAMPLES):
            copy = self.copies / path.name
            self.example_pictures.append(self.reader.call(("picture", str(path), path.name, str(copy)), None))
        return [(picture.name, picture.copy) for picture in self.example_pictures]


def make_theme() -> gr.themes.Base:
    """Gradio's plain theme with the system's fonts, and grey text dark enough to be read (WCAG AA)."""
    theme = gr.themes.Base(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        block_title_text_color="*neutral_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def _plain(line: Any) -> str:
    """An error line of the commands in the page's words: options have no flags here."""
    return str(line).replace("--SVD.", "")
