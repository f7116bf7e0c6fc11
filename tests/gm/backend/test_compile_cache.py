"""Compiled networks are kept between processes, and found again only by what they were made from."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gm.backend.compile_cache import KEPT, _prune
from gm.backend.user_cache import CACHE_ENABLE

PROJECT = Path(__file__).resolve().parents[3]
# Two layers under the name of a recipe, their weights all equal to a number; prints the output's first value of each.
PROGRAM = """
import sys
import numpy as np
from gm.backend.runtime import setup_runtime

setup_runtime(0, "CPU")
from mindspore import Tensor, nn, ops
from gm.backend.compile_cache import kept_compilation
from gm.networks.layers import Linear

class Network(nn.Cell):
    def __init__(self, factor):
        super().__init__()
        self.first, self.second, self.factor = Linear(8, 8), Linear(8, 8), factor

    def construct(self, x, num_frames):
        return ops.tanh(self.second(self.first(x))) * self.factor * num_frames

*factors, weight, rows = sys.argv[1:]
for factor in map(float, factors):
    network = Network(factor)
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(np.full(parameter.shape, float(weight), np.float32)))
    inputs = Tensor(np.full((int(rows), 8), 0.5, np.float32)), 2
    with kept_compilation({"factor": factor}, inputs):
        out = network(*inputs)
    print(out.asnumpy()[0, 0])
"""


@pytest.fixture
def run(tmp_path):
    """Runs the program in a process of its own; gives the last value that it prints."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)

    def call(*arguments, as_file=True, **environment):
        command = [str(script)] if as_file else ["-c", "import program"]
        variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": f"{PROJECT}:{tmp_path}"}
        variables = {**variables, **environment}
        if CACHE_ENABLE not in environment:
            variables.pop(CACHE_ENABLE, None)
        done = subprocess.run(
            [sys.executable, *command, *map(str, arguments)], env=variables, capture_output=True, text=True, check=True
        )
        return float(done.stdout.split()[-1])

    return call


def compiled(tmp_path):
    """Graph file -> time of its last change, of all networks that are kept."""
    return {path: path.stat().st_mtime_ns for path in tmp_path.glob("mindspore_svd/compiled-*/*/**/*.mindir")}


def value(factor, weight):
    return np.tanh((8 * 0.5 * weight + weight) * 8 * weight + weight) * factor * 2


def test_a_network_is_compiled_once_for_all_weights(run, tmp_path):
    assert run(3, 0.1, 4) == pytest.approx(value(3, 0.1), rel=1e-5)
    first = compiled(tmp_path)
    assert len(first) == 1
    assert run(3, 0.1, 4) == pytest.approx(value(3, 0.1), rel=1e-5)
    assert run(3, 0.2, 4) == pytest.approx(value(3, 0.2), rel=1e-5)
    assert compiled(tmp_path) == first


def test_another_recipe_or_size_is_compiled_anew(run, tmp_path):
    run(3, 0.1, 4)
    assert run(5, 0.1, 4) == pytest.approx(value(5, 0.1), rel=1e-5)
    assert run(3, 0.1, 6) == pytest.approx(value(3, 0.1), rel=1e-5)
    assert len(compiled(tmp_path)) == 3


def test_without_a_place_to_keep_it_everything_works(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(3, 0.1, 4, XDG_CACHE_HOME=str(tmp_path / "file")) == pytest.approx(value(3, 0.1), rel=1e-5)
    assert run(3, 0.1, 4, as_file=False) == pytest.approx(value(3, 0.1), rel=1e-5)  # has no source to compare
    assert run(3, 0.1, 4, **{CACHE_ENABLE: "0"}) == pytest.approx(value(3, 0.1), rel=1e-5)  # is not wanted
    assert not compiled(tmp_path)


def test_a_folder_whose_file_is_gone_is_filled_again(run, tmp_path):
    run(3, 0.1, 4)
    (path,) = compiled(tmp_path)
    path.unlink()
    assert run(3, 0.1, 4) == pytest.approx(value(3, 0.1), rel=1e-5)
    assert list(compiled(tmp_path)) == [path]


def test_of_several_networks_in_a_process_none_is_taken_for_another(run, tmp_path):
    assert run(3, 5, 0.1, 4) == pytest.approx(value(5, 0.1), rel=1e-5)
    assert run(3, 7, 0.1, 4) == pytest.approx(value(7, 0.1), rel=1e-5)
    assert run(7, 3, 0.1, 4) == pytest.approx(value(3, 0.1), rel=1e-5)
    assert run(5, 7, 0.1, 4) == pytest.approx(value(7, 0.1), rel=1e-5)


@pytest.mark.parametrize("size", [0, 300])
def test_a_damaged_file_is_replaced(run, tmp_path, size):
    run(3, 0.1, 4)
    (path,) = compiled(tmp_path)
    whole = path.stat().st_size
    path.chmod(0o600)
    os.truncate(path, size)
    assert run(3, 0.1, 4) == pytest.approx(value(3, 0.1), rel=1e-5)
    assert path.stat().st_size == whole


def test_networks_that_were_not_used_for_long_are_removed(tmp_path):
    for number in range(KEPT + 3):
        (tmp_path / f"{number}").mkdir()
        os.utime(tmp_path / f"{number}", (number, number))
    _prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{number}" for number in range(3, KEPT + 3)}
