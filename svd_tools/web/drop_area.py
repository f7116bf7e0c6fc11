"""An area of the page that files are dropped on, pasted to, or chosen for; `page.js` is what it does in the browser."""

from pathlib import Path

import gradio as gr

SCRIPT = Path(__file__).with_name("page.js")


def drop_area(html: str, name: str, max_bytes: int) -> gr.HTML:
    """The component. Its events: `upload` (path, name), `select` (the name of an example), `release` (down, across of
    the crop).

    Args:
        html: from :func:`svd_tools.web.views.drop_area`.
        name: its id.
        max_bytes: of a file.
    """
    return gr.HTML(html, js_on_load=SCRIPT.read_text(encoding="utf-8"), elem_id=name, max_bytes=max_bytes)
