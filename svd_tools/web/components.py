"""The page's own components: an area for files, and a stage on which a job is shown."""

from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict

import gradio as gr

from gm.errors import UserError
from svd_tools.web import views
from svd_tools.web.jobs import Job
from svd_tools.web.studio import LASTING, QUICK, Studio

SCRIPT = Path(__file__).with_name("page.js")  # what a drop area does in the browser
REMEMBER = """watch('value', () => {
  const job = element.querySelector('.job');
  if (job) sessionStorage.setItem('NAME', job.dataset.job);
});"""


def drop_area(html: str, name: str, max_bytes: int) -> gr.HTML:
    """An area that files are dropped on, pasted to, or chosen for. Its events: `upload` (path, name), `select` (the
    name of an example), `release` (down, across of the crop).

    Args:
        html: from :func:`svd_tools.web.views.drop_area`.
        name: its id.
        max_bytes: of a file.
    """
    return gr.HTML(html, js_on_load=SCRIPT.read_text(encoding="utf-8"), elem_id=name, max_bytes=max_bytes)


class Stage:
    """Run, Cancel, and below them a job's place in the queue, its progress and its result. A page that is loaded again
    goes on showing its job.

    Args:
        studio: has the jobs.
        name: of the stage, for its ids.
        run, idle, again: the words of the button, of the empty stage, and of the button below a result.
        seed: the component that shows the seed used.
    """

    def __init__(self, studio: Studio, name: str, run: str, idle: str, again: str, seed: Any) -> None:
        self.studio, self.name, self.idle, self.seed = studio, name, views.message(idle), seed
        with gr.Row():
            self.run = gr.Button(run, variant="primary", elem_id=f"{name}-run")
            self.cancel = gr.Button("Cancel", interactive=False, elem_id=f"{name}-cancel")
        self.view = gr.HTML(self.idle, js_on_load=REMEMBER.replace("NAME", name), elem_id=f"{name}-stage")
        self.again = gr.Button(again, visible=False, elem_id=f"{name}-again")
        self.key = gr.State("")
        self.shown = [self.view, self.key, self.seed, self.run, self.cancel, self.again]
        self.cancel.click(studio.cancel, [self.key], [self.cancel], **QUICK)

    def connect(self, submit: Callable[..., Job], inputs: Any, blocks: gr.Blocks) -> None:
        """Lets Run submit what `submit` makes of the inputs, and a page that is loaded again find its job."""

        async def start(*values: Any) -> AsyncIterator[Dict[Any, Any]]:
            try:
                job = submit(*values)
            except UserError as error:
                yield {self.view: views.message("", views.plain(error))}
                return
            async for changes in self._show(job):
                yield changes

        self.run.click(start, inputs, self.shown, **LASTING)
        remembered = gr.Textbox(visible=False)
        recall = f"() => [sessionStorage.getItem('{self.name}') || '']"
        blocks.load(self._resume, [remembered], self.shown, js=recall, **LASTING)

    async def _resume(self, key: str) -> AsyncIterator[Dict[Any, Any]]:
        job = self.studio.jobs.find(key)
        if job is None:
            yield {self.key: ""}
            return
        async for changes in self._show(job):
            yield changes

    async def _show(self, job: Job) -> AsyncIterator[Dict[Any, Any]]:
        async for _ in self.studio.watch(job):
            yield {
                self.view: views.job(job),
                self.key: job.key,
                self.seed: job.request.seed,
                self.run: gr.update(interactive=job.finished),
                self.cancel: gr.update(interactive=not job.finished),
                self.again: gr.update(visible=bool(job.settings)),
            }
