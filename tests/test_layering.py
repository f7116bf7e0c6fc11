"""The tree keeps its layers: the engine knows nothing of video, imports need no path edits, configurations fit."""

import ast
import re
import subprocess
import sys
import textwrap
from math import prod
from pathlib import Path

import pytest

from gm.config.factory import instantiate, load_config, load_model
from gm.errors import UserError
from modules.video_unet import is_temporal
from tests import reference

PROJECT = Path(__file__).parents[1]
PACKAGES = ("gm", "modules", "data", "svd_tools", "svd_tiny", "benchmarks")
SOURCES = sorted([*PROJECT.glob("*.py"), *(path for name in PACKAGES for path in PROJECT.glob(f"{name}/**/*.py"))])
FRAMEWORKS = {"torch", "diffusers", "transformers"}
MODELS = sorted(path.stem for path in PROJECT.glob("configs/*.yaml") if "_train" not in path.stem)


def relative(path):
    return path.relative_to(PROJECT).as_posix()


def imported_packages(path):
    """The top-level names of all imports of a file, inside functions too."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add("." if node.level else node.module.split(".")[0])
    return packages


@pytest.mark.parametrize(
    ("layer", "above"),
    [
        ("gm", {"modules", "data", "svd_tools", "svd_tiny", "benchmarks", "tests", "image_to_video", "train"}),
        ("data", {"modules", "svd_tools", "svd_tiny", "benchmarks", "tests", "image_to_video", "train"}),
        ("modules", {"svd_tools", "svd_tiny", "benchmarks", "tests", "image_to_video", "train"}),
        ("svd_tools", {"svd_tiny", "benchmarks", "tests"}),
    ],
)
def test_no_layer_imports_what_is_above_it(layer, above):
    files = sorted((PROJECT / layer).rglob("*.py"))
    assert len(files) > 5
    upward = {relative(path): imported_packages(path) & (above | {"."}) for path in files}
    assert not {path: names for path, names in upward.items() if names}


def test_the_import_path_is_edited_once_in_a_script_and_nowhere_else():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        edits = [line for line in text.splitlines() if "sys.path" in line]
        if path.parent.name in ("svd_tools", "svd_tiny", "benchmarks") and 'if __name__ == "__main__":' in text:
            assert len(edits) == 1 and edits[0].startswith("sys.path.insert(0, ") and "__file__" in text, relative(path)
        else:
            assert not edits, relative(path)


def test_pytorch_is_imported_by_one_module_when_it_reads_a_pickle():
    sources = [path for path in SOURCES if path.parent.name != "benchmarks"]
    users = [path for path in sources if imported_packages(path) & FRAMEWORKS]
    assert [relative(path) for path in users] == ["svd_tools/conversion/weight_files.py"]
    lines = users[0].read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.match(r"(import|from) (.*\W)?torch\b", line)]


# ----------------------------------------------------------------------------------------------- configurations


@pytest.fixture(scope="module")
def shapes():
    """Parameter names and shapes of a configuration, built once."""
    tables = {}

    def table(name):
        if name not in tables:
            tables[name] = load_model(PROJECT / "configs" / f"{name}.yaml").parameter_shapes()
        return tables[name]

    return table


@pytest.mark.parametrize("name", ["svd", "svd_xt"])
def test_the_full_model_has_exactly_the_published_names_and_shapes(shapes, name):
    published = reference.published()
    assert len(published) == 2446
    assert shapes(name) == published


@pytest.mark.parametrize("name", ["svd_image_decoder", "svd_xt_image_decoder"])
def test_the_image_decoders_autoencoder_is_the_conditioners(shapes, name):
    encoder, first_stage = "conditioner.embedders.3.encoder.", "first_stage_model."
    expected = {key: shape for key, shape in reference.published().items() if not key.startswith(first_stage)}
    plain = {key.replace(encoder, first_stage): shape for key, shape in expected.items() if key.startswith(encoder)}
    assert len(plain) == 248 and len({**expected, **plain}) == 2322
    assert shapes(name) == {**expected, **plain}


def test_the_temporal_tensors_of_the_full_model(shapes):
    prefix = "model.diffusion_model."
    temporal = {name for name in shapes("svd") if name.startswith(prefix) and is_temporal(name)}
    assert len(temporal) == 738
    assert sum(prod(shapes("svd")[name]) for name in temporal) == 656_076_838


@pytest.mark.parametrize("name", MODELS)
def test_every_configuration_is_accepted_to_its_last_option(shapes, name):
    assert shapes(name)  # an option that its class does not have is refused


def test_an_option_too_many_would_be_noticed():
    config = load_config(PROJECT / "configs" / "svd_tiny.yaml")
    config["model"]["params"]["network_config"]["params"]["dropout"] = 0.1
    with pytest.raises(UserError, match="VideoUNet has no option dropout"):
        instantiate(config["model"]).parameter_shapes()


@pytest.mark.parametrize(
    "command",
    ["image_to_video.py", "train.py", "svd_tools/convert.py", "svd_tools/evaluate.py", "svd_tiny/evaluate.py"],
)
def test_help_does_without_mindspore(command):
    """gm.backend.runtime imports it, once the environment that it reads is set; not for the sake of an error."""
    script = f"""
        import runpy, sys
        sys.argv = [{command!r}, "--help"]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit:
            print(*sys.modules, file=sys.stderr)
        """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert "usage" in result.stdout
    modules = result.stderr.split()
    assert "gm.errors" in modules and not {"mindspore", "torch"} & set(modules)
