"""A small random checkpoint and its diffusers folder, made once."""

import pytest

from tests.svd_tools.small_model import run_convert, save_random


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """(file, weights) of a random published single file."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    return path, save_random(path)


@pytest.fixture(scope="session")
def folder(small, tmp_path_factory):
    """A diffusers folder of the same weights."""
    out = tmp_path_factory.mktemp("diffusers")
    run_convert(small[0], out, "--to=diffusers")
    return out / "small"
