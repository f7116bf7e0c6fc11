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


# The house's rooms: each imports from those before it alone. The doors are the commands.
FLOOR_PLAN = (
    "gm.errors", "gm.files", "data", "gm.backend", "gm.config", "gm.weights", "gm.networks", "gm.sampling", "gm.model",
    "gm.text_model", "gm.options", "gm.pipeline", "gm.text_to_image", "gm.training", "modules", "modules.training",
    "image_to_video", "svd_tools", "svd_tiny", "train", "benchmarks",
)  # fmt: skip
GROUND = {"gm.errors", "gm.files"}
KNOWS_LITTLE = {"data": GROUND, "gm.backend": GROUND, "gm.config": GROUND}
SAMPLING_PATH = (  # from the command down to the layers
    "image_to_video.py", "modules/pipeline.py", "gm/model.py", "gm/sampling/samplers.py", "gm/sampling/schedules.py",
    "gm/sampling/guidance.py", "gm/sampling/denoiser.py", "gm/networks/unet.py", "gm/networks/blocks.py",
    "modules/video_blocks.py", "gm/networks/attention.py", "gm/networks/layers.py",
)  # fmt: skip
OF_A_MACHINE = re.compile(
    r"\b(cpu|gpu|npu|ascend|cuda|onednn|pynative|graph_mode|graph mode|winograd|numba|flash\w*|akg|zero.copy)\b", re.I
)


def room(module):
    """The room of a module: a package of two levels where there is one in the plan."""
    parts = module.split(".")
    return next(name for name in (".".join(parts[:2]), parts[0]) if name in FLOOR_PLAN)


def imported_rooms(path):
    modules = [node.module for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(node, ast.ImportFrom) and node.module]  # fmt: skip
    return {room(module) for module in modules if module.split(".")[0] in {name.split(".")[0] for name in FLOOR_PLAN}}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "__init__.py"], ids=relative)
def test_imports_follow_the_floor_plan(path):
    here = room(relative(path)[: -len(".py")].replace("/", "."))
    allowed = {*KNOWS_LITTLE.get(here, FLOOR_PLAN[: FLOOR_PLAN.index(here)]), here}
    if here in ("gm.weights", "gm.networks", "gm.sampling", "gm.model", "gm.training"):
        allowed -= {"data"}
    assert imported_rooms(path) <= allowed
    assert not imported_packages(path) & {"tests", "."}


def test_the_sampling_path_can_be_read_in_half_an_hour():
    """It is named in CONTRIBUTING.md, and says nothing of processors, modes and kernels."""
    guide = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    texts = {name: (PROJECT / name).read_text(encoding="utf-8") for name in SAMPLING_PATH}
    assert len(texts) <= 12 and sum(text.count("\n") for text in texts.values()) <= 1800
    assert not [name for name in texts if f"`{name}`" not in guide]
    found = {name: OF_A_MACHINE.findall(text) for name, text in texts.items()}
    assert not {name: words for name, words in found.items() if words}


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


@pytest.mark.parametrize(
    "name, file, tensors, unet",
    [
        ("sd_1_5", "sd15", 1131, 859_520_964),
        ("sd_2_1", "sd21", 1228, 865_910_724),
        ("sd_2_1_base", "sd21", 1228, 865_910_724),
        ("sd_xl_base", "sdxl_base", 2515, 2_567_463_684),
    ],
)
def test_stable_diffusion_has_exactly_the_published_names_and_shapes(shapes, name, file, tensors, unet):
    published = reference.stable_diffusion(file)
    assert len(published) == tensors
    assert shapes(name) == {key: shape for key, shape in published.items() if not key.endswith(".position_ids")}
    assert sum(prod(shape) for key, shape in shapes(name).items() if key.startswith("model.diffusion_model.")) == unet


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
    ["image_to_video.py", "train.py", "svd_tools/convert.py", "svd_tools/evaluate.py", "svd_tiny/evaluate.py",
     "svd_tools/text_to_image.py", "svd_tools/text_to_video.py"],
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
