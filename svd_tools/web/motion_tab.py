"""The tab that scores a clip's motion."""

from typing import Any, List

import gradio as gr

from gm.errors import UserError
from svd_tools.web import views
from svd_tools.web.components import drop_area
from svd_tools.web.studio import QUICK, Studio

HINT = "Drop a clip here, or click to choose a file"
KINDS = "video/*,.mkv,.avi"


class MotionTab:
    """How much a clip moves, as the motion bucket that training would give it.

    Args:
        studio: reads the clip.
        bucket: the control of the video's motion bucket.
    """

    def __init__(self, studio: Studio, bucket: Any) -> None:
        self.studio = studio
        gr.HTML("<p>How much a clip moves, as the motion bucket that training would give it.</p>")
        clip = drop_area(self._show(), "clip", studio.limits.max_bytes)
        use = gr.Button("Use this motion bucket", visible=False, elem_id="use-bucket")
        found = gr.State(None)
        clip.upload(self.score, None, [clip, found, use], **QUICK)
        use.click(lambda value: value, [found], [bucket], **QUICK)

    async def score(self, event: gr.EventData) -> List[Any]:
        """An uploaded clip's motion."""
        try:
            motion = await self.studio.read("motion", *self.studio.uploaded(event))
        except UserError as error:
            return [self._show(text=str(error)), None, gr.update(visible=False)]
        return [self._show(below=views.motion(motion)), motion.bucket, gr.update(visible=True)]

    def _show(self, **parts: str) -> str:
        return views.drop_area(HINT, str(self.studio.limits), "A clip", KINDS, **parts)
