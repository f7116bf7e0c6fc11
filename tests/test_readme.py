"""The README's flags, files and links are those that there are."""

import re
from pathlib import Path

import pytest
import yaml

import image_to_video
import train
from gm.config.command_parser import read_group
from gm.config.factory import load_config
from gm.sampling.samplers import SAMPLERS
from gm.sampling.schedules import SCHEDULES
from modules.video_guidance import GUIDERS
from svd_tools import text_to_video

PROJECT = Path(__file__).parents[1]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("*/README.md"), *PROJECT.glob("docs/*.md")])


def table_flags(text):
    """Flag -> default, from the README's table; a row may name two flags."""
    rows = re.findall(r"^\| (`--[^|]*)\|([^|]*)\|", text, flags=re.MULTILINE)
    return {flag: default.strip().strip("`") for flags, default in rows for flag in re.findall(r"`--([\w.]+)`", flags)}


def test_the_table_has_every_flag_with_its_default():
    defaults = {key: value for key, value in image_to_video.build_parser().get_defaults().items() if key != "config"}
    table = table_flags((PROJECT / "README.md").read_text(encoding="utf-8"))
    table.pop("config")
    assert table.keys() == defaults.keys()
    for flag, words in table.items():
        value = defaults[flag]
        if isinstance(value, bool):
            assert words == ("on" if value else "off")
        elif isinstance(value, (tuple, list)):
            assert words == ",".join(map(str, value))
        elif flag.rpartition(".")[2] in OF_THE_MODEL:
            assert value in (None, 0) and words == of_the_models(flag.rpartition(".")[2])
        elif words == "":
            assert value is None, flag
        else:
            assert words == str(value), flag


SIZES, SCALES = ("num_frames", "height", "width"), ("min_cfg", "max_cfg")
OF_THE_MODEL = (*SIZES, "sampling_steps", "sampler", "schedule", "guider", *SCALES)


def of_the_models(flag):
    """svd's value and, where it differs, svd_xt's, from their YAML files: "14 (svd_xt: 25)"."""

    def value(name):
        params = load_config(PROJECT / "configs" / f"{name}.yaml")["model"]["params"]
        sampler = params["sampler_config"]["params"]
        guider = sampler["guider_config"]
        classes = {"sampler": SAMPLERS, "schedule": SCHEDULES, "guider": GUIDERS}
        targets = {"sampler": params["sampler_config"], "schedule": sampler["discretization_config"], "guider": guider}
        if flag in classes:
            cls = targets[flag]["target"].rpartition(".")[2]
            return next(word for word, kind in classes[flag].items() if kind.__name__ == cls)
        scales = {"min_cfg": guider["params"]["min_scale"], "max_cfg": guider["params"]["max_scale"]}
        return f"{ {**params, **scales, 'sampling_steps': sampler['num_steps']}[flag]:g}"

    svd, svd_xt = value("svd"), value("svd_xt")
    return svd if svd == svd_xt else f"{svd} (svd_xt: {svd_xt})"


@pytest.mark.parametrize("flag", OF_THE_MODEL)
def test_help_shows_the_models_own_values(flag):
    helps = {action.dest: action.help for action in image_to_video.build_parser()._actions}
    assert f": {of_the_models(flag)}" in " ".join(helps[f"SVD.{flag}"].split())


@pytest.mark.parametrize("command", [image_to_video, train, text_to_video])
def test_every_flag_has_one_explanation_and_a_default_that_it_may_have(command):
    parser = command.build_parser()
    helps = {action.dest: action.help or "" for action in parser._actions}
    flags = [name for name, _ in parser.get_defaults().items()]
    assert len(flags) > 30 and not [flag for flag in flags if len(helps[flag].strip()) < 5]
    for prefix, group in parser._options.items():
        assert group() == read_group(group, parser.get_defaults(), prefix)


def test_training_s_flags_exist():
    text = (PROJECT / "README.md").read_text(encoding="utf-8").split("\n## Training\n")[1].split("\n## ")[0]
    named = set(re.findall(r"--((?:train|environment|LossScale)\.[\w.]*\w)", text))
    flags = list(train.build_parser().get_defaults().keys())
    assert len(named) > 15
    unknown = {name for name in named if not any(f"{flag}.".startswith(f"{name}.") for flag in flags)}
    assert not unknown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_links_lead_to_files(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (document.parent / link).exists()]
    assert not broken


def test_files_that_the_readme_names_exist():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    folders = "configs|examples|svd_tools|svd_tiny|checkpoints|benchmarks"
    named = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w/]+\.\w+", text))
    assert {"configs/svd.yaml", "svd_tools/convert.py"} <= named
    missing = sorted(name for name in named if not (PROJECT / name).exists())
    assert not missing


def test_checkpoints_that_the_readme_names_are_those_that_the_configurations_leave():
    """From-scratch training: each command starts from the file that the one before leaves."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8").split("\n### From scratch\n")[1].split("\n## ")[0]
    last = {}
    for path in (PROJECT / "svd_tiny/configs").glob("*.yaml"):
        train_options = yaml.safe_load(path.read_text(encoding="utf-8"))["train"]
        last[train_options["output_dir"]] = train_options["max_steps"]
    named = re.findall(r"(output/\w+)/checkpoints/step_(\d{8})/", text)
    assert len(named) == len(last) == 5
    assert {(folder, int(step)) for folder, step in named} == set(last.items())
