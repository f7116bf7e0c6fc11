"""The tab in which a picture becomes a video."""

import secrets
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import gradio as gr

from gm.config.values import expect, fits, show
from gm.errors import UserError
from modules.compatibility import TOOLS
from modules.options import VideoOptions
from svd_tools.web import views
from svd_tools.web.components import Stage, drop_area
from svd_tools.web.controls import NO_LORA, Panel
from svd_tools.web.jobs import Job
from svd_tools.web.making import VideoRequest
from svd_tools.web.models import options_in
from svd_tools.web.reader import Picture
from svd_tools.web.studio import MAX_SEED, QUICK, Seed, Studio

EXAMPLES = Path(__file__).parents[2] / "examples"
FIRST_MODEL = "svd_tiny"
BASIC = ("motion_bucket_id", "fps", "num_frames", "sampling_steps", "noise_aug_strength")
MORE = ("crop_offset", "sampler", "schedule", "guider", "min_cfg", "max_cfg", "guidance_interval", "height", "width",
        "decode_chunk_size", "tile_size", "feature_cache", "offload", "lora", "lora_scale", "lora_alpha", "amp_level",
        "like", "noise", "resize")  # fmt: skip
HINT = "Drop a picture here, paste one, or click to choose a file"
LABEL = "A picture to animate"
KINDS = "image/*,.avif,.jp2,.tif,.tiff,.mp4"


class VideoTab:
    """The picture with its crop, the settings, and the video.

    Args:
        studio: makes the videos.
        blocks: the page.
    """

    def __init__(self, studio: Studio, blocks: gr.Blocks) -> None:
        self.studio, self.panel = studio, Panel(VideoOptions)
        self.examples = [self._example(path) for path in sorted(EXAMPLES.glob("*.jpg"))]
        title = self._first()
        values = studio.found.videos[title].defaults() if title else {}
        add = self.panel.add
        self.picture, self.wrong = gr.State(None), gr.State("")
        with gr.Row():
            with gr.Column(min_width=320):
                self.drop = drop_area(self.show(None, ()), "picture", studio.limits.max_bytes)
                self.note = gr.HTML(elem_id="note")
                info = f"The files of weights in {studio.models.name}; each with the YAML file that it belongs to."
                self.model = gr.Dropdown(self._titles(), value=title, label="Model", info=info, elem_id="model")
                add(BASIC[:1], values)
                for pair in BASIC[1:3], BASIC[3:]:
                    with gr.Row():
                        add(pair, values)
                with gr.Row():
                    info = "The same seed and settings give the same video."
                    self.seed = gr.Number(value=42, precision=0, label="Seed", info=info, elem_id="seed")
                    self.random = gr.Checkbox(value=False, label="Random seed", elem_id="random")
                with gr.Accordion("More", open=False, elem_id="more"):
                    add(MORE, values, list(studio.found.loras))
            with gr.Column(min_width=320):
                idle, again = "The video appears here.", "Use these settings again"
                self.stage = Stage(studio, "video", "Run", idle, again, self.seed)
        self._connect(blocks)

    def _connect(self, blocks: gr.Blocks) -> None:
        controls, stage = self.panel.components, self.stage
        settings = [self.model, *controls]
        set_all = [self.model, self.random, self.seed, *controls]
        crop = [self.panel["crop_offset", index] for index in (0, 1)]
        shown = [self.picture, self.drop, self.note]
        self.drop.upload(self.take_upload, [self.picture, *controls], [*shown, *set_all], **QUICK)
        self.drop.select(self.take_example, controls, shown, **QUICK)
        self.drop.release(self.move_crop, None, crop, **QUICK)
        self.model.input(self.choose_model, [self.model], [stage.view, *controls], **QUICK)
        changes = [component.change for component in settings]
        checked = [self.wrong, self.drop, *controls]
        gr.on(changes, self.check, [self.picture, self.wrong, *settings], checked, trigger_mode="always_last", **QUICK)
        stage.connect(self.submit, [self.picture, self.random, self.seed, *settings], blocks)
        stage.again.click(self.use_again, [stage.key], set_all, **QUICK)
        blocks.load(self.look_again, [self.model], [self.model, self.panel["lora", None]], **QUICK)

    # ------------------------------------------------------------------------------------------------------ the picture

    async def take_upload(self, event: gr.EventData, picture: Optional[Picture], *values: Any) -> List[Any]:
        """A picture to animate; of a file that was made here, or by the commands, its settings."""
        unchanged = [gr.skip()] * (3 + len(values))
        try:
            path, name = self.studio.uploaded(event)
            settings = await self.studio.read("settings", path)
            if settings is None:
                read = await self.studio.read("picture", path, name, self.studio.new_copy())
                return [read, self.show(read, values), "", *unchanged]
            changed, problems = self._values_of(settings)
            text = f"The settings of {name} are taken; its picture was {settings.get('image', 'another')}."
            note = views.note(" ".join([text, *(f"But {line}." for line in problems)]))
            return [gr.skip(), gr.skip(), note, *changed]
        except UserError as error:
            return [gr.skip(), self.show(picture, values), views.problem(str(error)), *unchanged]

    def take_example(self, event: gr.EventData, *values: Any) -> List[Any]:
        """One of the examples."""
        example = next((item for item in self.examples if item.name == getattr(event, "name", "")), None)
        return [example or gr.skip(), self.show(example, values), ""]

    def move_crop(self, event: gr.EventData) -> List[float]:
        """The crop as it was dragged."""
        return [min(1.0, max(0.0, float(getattr(event, axis)))) for axis in ("down", "across")]

    def show(self, picture: Optional[Picture], values: Tuple[Any, ...]) -> str:
        """The drop area, with what the model will see of the picture."""
        below = views.examples((example.name, example.copy) for example in self.examples)
        inner = ""
        if picture is not None:
            chosen = self.panel.chosen(values)
            size = tuple(max(1, int(chosen[name, None] or 1)) for name in ("height", "width"))
            offset = tuple(chosen["crop_offset", index] or 0 for index in (0, 1))
            resize = chosen["resize", None] or TOOLS[chosen["like", None]].resize
            inner = views.crop(picture, size, offset, resize == "squash")
            below = views.crop_caption(picture, size) + below
        return views.drop_area(HINT, str(self.studio.limits), LABEL, KINDS, inner, below)

    def _example(self, path: Path) -> Picture:
        return self.studio.read_now("picture", str(path), path.name, str(self.studio.examples / path.name))

    # ----------------------------------------------------------------------------------------------------- the settings

    def look_again(self, title: str) -> List[Any]:
        """The files that are in the folder now."""
        found = self.studio.look_again()
        titles = self._titles()
        lora = gr.update(choices=[NO_LORA, *found.loras])
        return [gr.update(choices=titles, value=title if title in titles else self._first()), lora]

    def choose_model(self, title: str) -> List[Any]:
        """A model's own values in the controls; or, of a file that is none, what it is."""
        model = self.studio.found.videos.get(title)
        if model is None:
            unchanged = [gr.skip()] * len(self.panel.components)
            return [views.message("", views.plain(self.studio.found.problem(title))), *unchanged]
        return [self.stage.idle, *self.panel.values(model.defaults(), self.studio.found)]

    def check(self, picture: Optional[Picture], wrong: str, title: str, *values: Any) -> Dict[Any, Any]:
        """Moves the crop, and explains below a control what cannot be so."""
        changes: Dict[Any, Any] = {self.wrong: wrong}
        if picture is not None:
            changes[self.drop] = self.show(picture, values)
        model = self.studio.found.videos.get(title)
        if model is not None:
            name, line = self.panel.check(values, self.studio.found, model.check)
            changes[self.wrong] = f"{name}: {line}"
            if changes[self.wrong] != wrong:
                changes.update(self.panel.explain(wrong.partition(": ")[0], name, line))
        return changes

    def use_again(self, key: str) -> List[Any]:
        """The settings of the video that is shown, in the controls."""
        job = self.studio.jobs.find(key)
        return self._values_of(job.settings)[0] if job else [gr.skip()] * (3 + len(self.panel.components))

    def _values_of(self, settings: Mapping[str, Any]) -> Tuple[List[Any], List[str]]:
        """(updates of the model, the random seed, the seed and the controls; what could not be taken over).

        Raises:
            UserError: they are no video's.
        """
        stored = settings.get("SVD")
        if not isinstance(stored, Mapping):
            raise UserError("its settings are of another kind than a video's")
        found = self.studio.found
        options, problems = options_in(stored, self.panel.names, self.panel.hints, found)
        title, seed = found.title_of(stored), settings.get("seed")
        if not title:
            problems.append(f"its model {stored.get('checkpoint')} is not among the files here")
        if not fits(seed, Seed):
            problems.append(f"its seed {show(seed)} is no number up to {MAX_SEED}")
        changed = [title or gr.skip(), False, seed if fits(seed, Seed) else gr.skip()]
        return [*changed, *self.panel.values(options, found)], problems

    def _titles(self) -> List[str]:
        return [*self.studio.found.videos, *self.studio.found.others]

    def _first(self) -> str:
        titles = list(self.studio.found.videos)
        return next((title for title in titles if FIRST_MODEL in title), titles[0] if titles else "")

    # -------------------------------------------------------------------------------------------------------- the video

    def submit(
        self, picture: Optional[Picture], random: bool, seed: Optional[int], title: str, *values: Any
    ) -> Job:
        """Puts a video into the queue.

        Raises:
            UserError: there is no picture, or something cannot be used.
        """
        found = self.studio.found
        if picture is None:
            raise UserError("there is no picture yet; drop one, or click on an example")
        if title not in found.videos:
            raise UserError(found.problem(title))
        seed = secrets.randbelow(MAX_SEED + 1) if random else seed
        expect("seed", seed, Seed)
        model = found.videos[title]
        weights, options = self.panel.request(values, found, model)
        return self.studio.submit(
            lambda folder: VideoRequest(weights, options, seed, folder, picture.path, picture.name)
        )
