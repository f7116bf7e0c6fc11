"""The tab in which words become a picture, for the other tab to animate."""

from pathlib import Path
from typing import Any, List, Optional

import gradio as gr

from gm.config.values import expect
from gm.errors import UserError
from gm.options import PictureOptions
from svd_tools.web import views
from svd_tools.web.components import Stage
from svd_tools.web.controls import Panel
from svd_tools.web.jobs import Job
from svd_tools.web.making import PICTURE, PictureRequest
from svd_tools.web.reader import Picture
from svd_tools.web.studio import QUICK, Seed, Studio
from svd_tools.web.video_tab import VideoTab

BASIC = ("height", "width", "sampling_steps", "cfg")
MORE = ("sampler", "schedule", "guidance_interval", "timestep", "prompt_weights", "feature_cache", "tile_size",
        "offload", "amp_level")  # fmt: skip


class TextTab:
    """Prompts, settings, and the picture.

    Args:
        studio: makes the pictures.
        blocks: the page.
        video: the tab that takes a picture.
        tabs: of the page, to change to that one.
    """

    def __init__(self, studio: Studio, blocks: gr.Blocks, video: VideoTab, tabs: gr.Tabs) -> None:
        self.studio, self.video, self.panel = studio, video, Panel(PictureOptions, "picture-")
        titles = list(studio.found.pictures)
        if not titles:
            where = f"No Stable Diffusion checkpoint is in {studio.models.name}"
            gr.HTML(views.message(f"{where}: put one of 1.5, 2.1 or XL there, and start the page again."))
            return
        values = studio.found.pictures[titles[0]].defaults()
        with gr.Row():
            with gr.Column(min_width=320):
                weighs = "In English; (word:1.2) weighs a part of it."
                prompt = gr.Textbox(label="Prompt", info=weighs, lines=2, elem_id="prompt")
                negative = gr.Textbox(label="Negative prompt", info="What it should not show.", elem_id="negative")
                model = gr.Dropdown(titles, value=titles[0], label="Model", elem_id="picture-model")
                for pair in BASIC[:2], BASIC[2:]:
                    with gr.Row():
                        self.panel.add(pair, values)
                seed = gr.Number(value=42, precision=0, label="Seed", elem_id="picture-seed")
                with gr.Accordion("More", open=False, elem_id="picture-more"):
                    self.panel.add(MORE, values)
            with gr.Column(min_width=320):
                idle = "The picture appears here."
                stage = Stage(studio, "picture", "Make the picture", idle, "Animate this picture", seed)
        controls = self.panel.components
        stage.connect(self.submit, [prompt, negative, seed, model, *controls], blocks)
        model.input(self.choose_model, [model], controls, **QUICK)
        taken = [video.picture, video.drop, tabs]
        stage.again.click(self.animate, [stage.key, *video.panel.components], taken, **QUICK)

    def choose_model(self, title: str) -> List[Any]:
        """A model's own values in the controls."""
        return self.panel.values(self.studio.found.pictures[title].defaults(), self.studio.found)

    def submit(self, prompt: str, negative: str, seed: Optional[int], title: str, *values: Any) -> Job:
        """Puts a picture into the queue.

        Raises:
            UserError: there is no prompt, or something cannot be used.
        """
        if not prompt.strip():
            raise UserError("there is no prompt yet; say what the picture shows")
        expect("seed", seed, Seed)
        weights, options = self.panel.request(values, self.studio.found, self.studio.found.pictures[title])
        return self.studio.submit(
            lambda folder: PictureRequest(weights, options, seed, folder, prompt.strip(), negative.strip() or None)
        )

    async def animate(self, key: str, *values: Any) -> List[Any]:
        """The picture that is shown, in the tab that animates it."""
        job = self.studio.jobs.find(key)
        path = job and str(Path(job.folder) / PICTURE)
        if path is None:
            return [gr.skip(), gr.skip(), gr.skip()]
        picture: Picture = await self.studio.read("picture", path, PICTURE, self.studio.new_copy())
        return [picture, self.video.show(picture, values), gr.Tabs(selected="video")]
