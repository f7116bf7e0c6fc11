"""The notebook runs from top to bottom, and is kept without outputs."""

import time
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "image_to_video.ipynb"
MOST_SECONDS = 300  # on two quiet cores
nbformat = pytest.importorskip("nbformat", reason="the notebook's tests need pip install -r requirements-dev.txt")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_kept_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8 and not [cell for cell in code if cell.outputs or cell.execution_count is not None]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    """From another folder below the project's, as Jupyter starts it."""
    client = pytest.importorskip("nbclient")
    start = time.monotonic()
    here = {"metadata": {"path": str(NOTEBOOK.parent)}}
    done = client.NotebookClient(notebook, timeout=600, resources=here).execute()
    assert time.monotonic() - start < MOST_SECONDS
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= 7 and any("<video" in output["data"].get("text/html", "")
                                                 for output in outputs if "data" in output)  # fmt: skip
