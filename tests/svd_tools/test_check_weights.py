"""The page that check_weights.py writes of a file."""

import numpy as np
import pytest

from gm.errors import UserError
from gm.weights.checkpoint import file_sha256, save_safetensors
from gm.weights.model_kind import PROJECT
from svd_tools.check_weights import main
from tests.svd_tools.small_model import CONFIG, save_random

TINY = PROJECT / "checkpoints" / "svd_tiny.safetensors"


def test_the_bundled_model_s_page(capsys):
    main([str(TINY)])
    page = capsys.readouterr().out
    assert "  model     svd_tiny: " in page and "safetensors, published names" in page
    assert file_sha256(TINY) in page and "all finite" in page and "all names and shapes are the model's" in page
    assert "  one step  64x64, finite" in page and page.count("\n") <= 10 and "!" not in page


def test_what_is_wrong_is_said_and_is_an_error(tmp_path, capsys):
    weights = save_random(tmp_path / "a.safetensors")
    name = next(name for name, array in weights.items() if array.ndim == 4)
    bad = {key: array for key, array in weights.items() if not key.endswith("out.2.bias")}
    bad[name] = np.full_like(weights[name], np.nan)
    save_safetensors(tmp_path / "b.safetensors", bad)
    (tmp_path / "c.safetensors").write_text("no weights")
    files = [str(tmp_path / f"{stem}.safetensors") for stem in "bc"]
    with pytest.raises(UserError, match="2 of 2 files cannot be used as they are"):
        main([*files, f"--config={CONFIG}", "--step=false"])
    page = capsys.readouterr().out
    assert f"values of 1 tensors are NaN or infinite: {name}" in page
    assert "1 missing of" in page and "out.2.bias" in page and "it is not a checkpoint" in page


def test_a_file_of_no_known_model_asks_for_its_yaml(tmp_path, capsys):
    save_random(tmp_path / "a.safetensors")
    with pytest.raises(UserError):
        main([str(tmp_path / "a.safetensors"), "--step=false"])
    assert "no model that configs/ describes" in capsys.readouterr().out
