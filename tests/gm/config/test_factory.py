"""YAML to objects: what is built, what is deferred, and one plain line for everything that cannot be."""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Callable, List, Optional, Sequence, Union

import pytest
import yaml

import gm.config.factory
from gm.config.factory import LazyConfig, find_class, instantiate, load_config, load_model
from gm.config.values import Range, describe, fits
from gm.errors import UserError
from modules.video_guidance import LinearPredictionGuider

HERE = __name__
CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """This file's classes, as if they were a model's."""
    own = {f"{HERE}.{name}" for name in ("Part", "Whole", "open_ended")}
    monkeypatch.setattr(gm.config.factory, "CLASSES", gm.config.factory.CLASSES | own)


class Part:
    def __init__(
        self,
        size: int,
        rate: float = 0.5,
        names: Sequence[str] = (),
        name: Optional[str] = None,
        share: Annotated[float, Range(0, 1)] = 0,
    ) -> None:
        self.size, self.rate, self.names, self.name = size, rate, names, name
        if size == 13:
            raise ValueError("thirteen")


class Whole:
    DEFERRED = ["later"]

    def __init__(self, part: Part, later: Optional[LazyConfig] = None, others: Sequence[Part] = ()) -> None:
        self.part, self.later, self.others = part, later, others


def open_ended(**options):
    return options


def node(cls, **params):
    return {"target": f"{HERE}.{cls}", "params": params}


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


# ----------------------------------------------------------------------------------------------------- building


def test_nested_targets_are_built_and_named_without_their_suffix():
    others = [node("Part", size=1), node("Part", size=2)]
    whole = instantiate(node("Whole", part_config=node("Part", size=3), others=others))
    assert (whole.part.size, whole.part.rate) == (3, 0.5)
    assert [part.size for part in whole.others] == [1, 2]


def test_a_deferred_part_is_built_anew_by_each_call():
    whole = instantiate(node("Whole", part=node("Part", size=3), later_config=node("Part", size=4)))
    assert isinstance(whole.later, LazyConfig)
    first, second = whole.later(), whole.later(size=5)
    assert first is not second and (first.size, second.size) == (4, 5)
    assert instantiate(node("Whole", part=node("Part", size=3), later_config=None)).later is None


def test_arguments_win_over_params_and_the_configuration_stays_as_it_is():
    recipe = node("Part", size=3, names=["a"])
    assert instantiate(recipe, size=4).size == 4
    assert recipe == node("Part", size=3, names=["a"])


def test_a_function_that_takes_anything_gets_everything():
    assert instantiate(node("open_ended", x=1, y={"z": [2]})) == {"x": 1, "y": {"z": [2]}}


def test_params_may_be_left_out():
    assert instantiate({"target": f"{HERE}.open_ended"}) == {}
    assert instantiate({"target": f"{HERE}.open_ended", "params": None}) == {}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (node("Part"), "Part lacks size"),
        (node("Part", size=3, sise=4), "no option sise; it has size, rate, names, name, share"),
        (node("Part", size="big"), "size=big; expected a whole number from 1 to 16384"),
        (node("Part", size=1.5), "size=1.5; expected a whole number"),
        (node("Part", size=True), "size=True; expected a whole number"),
        (node("Part", size=0), "size=0; expected a whole number from 1 to 16384"),
        (node("Part", size=10**40), f"size=1{'0' * 40}; expected"),
        (node("Part", size=3, rate=float("nan")), "rate=nan; expected a number from"),
        (node("Part", size=3, rate=1e300), "rate=1e+300; expected a number from"),
        (node("Part", size=3, share=2), "share=2; expected a number from 0 to 1"),
        (node("Part", size=13), "Part cannot be built from its options: thirteen"),
        (node("Part", size=3, rate="fast"), "rate=fast; expected a number"),
        (node("Part", size=3, names=["a", 4]), "names=[a,4]; expected a list, each item a word"),
        (node("Part", size=3, names="ab"), "names=ab; expected a list"),
        (node("Part", size=3, name=7), "name=7; expected a word"),
        (node("Whole", part={"size": 3}), "part={'size': 3}; expected a Part"),
        (node("Whole", part=node("open_ended")), "expected a Part"),
        ({"params": {}}, "needs `target: package.module.Class`"),
        ({"target": 5}, "needs `target: package.module.Class`"),
        ({"target": f"{HERE}.Part", "parms": {}}, "has parms beside the target"),
        ({"target": f"{HERE}.Part", "params": [3]}, "needs a mapping under `params`"),
        ({"target": f"{HERE}.Part", "params": {1: 2}}, "whose keys are words"),
        (node("Nothing"), "Nothing' is not a class of this project"),
        ({"target": "no.such.module.Class"}, "'no.such.module.Class' is not a class of this project"),
        ({"target": "word"}, "'word' is not a class of this project"),
    ],
)
def test_what_cannot_be_built_is_said_on_one_line(recipe, words):
    with pytest.raises(UserError) as error:
        instantiate(recipe)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_error_deep_inside_a_deferred_part_shows_when_it_is_built():
    whole = instantiate(node("Whole", part=node("Part", size=3), later=node("Part")))
    with pytest.raises(UserError, match="lacks size"):
        whole.later()


def test_find_class():
    assert find_class(f"{HERE}.Part") is Part
    assert find_class("modules.video_guidance.LinearPredictionGuider") is LinearPredictionGuider


CODE = {  # target -> params
    "os.system": {"command": "touch made"},
    "os.popen": {"cmd": "touch made"},
    "subprocess.getoutput": {"cmd": "touch made"},
    "subprocess.check_output": {"args": ["touch", "made"]},
    "builtins.exec": {"source": "open('made', 'w')"},
    "builtins.open": {"file": "made", "mode": "w"},
    "pathlib.Path.touch": {"self": "made"},
    "shutil.rmtree": {"path": "kept"},
    "numpy.load": {"file": "made", "allow_pickle": True},
    "urllib.request.urlopen": {"url": "http://localhost"},
    "sys.exit": {"status": 0},
    "this.that": {},
    "antigravity.x": {},
    "gm.files.make_output_dir": {"path": "made", "flag": "x"},
    "gm.files.shutil": {},
    "gm.config.factory.__builtins__": {},
    "gm.config.factory.LazyConfig": {"node": {}},
    "modules.video_guidance.LinearPredictionGuider.scales": {},
    "svd_tools.convert.main": {},
}


@pytest.mark.parametrize("target", CODE)
@pytest.mark.parametrize("place", ["model", "part", "number", "item", "deferred"])
def test_nothing_but_a_model_s_class_is_imported_or_called(target, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").mkdir()
    evil = {"target": target, "params": CODE[target]}
    model = {
        "model": evil,
        "part": node("Whole", part_config=evil),
        "number": node("Part", size=evil),
        "item": node("Part", size=1, names=["a", evil]),
        "deferred": node("Whole", part=node("Part", size=1), later_config=evil),
    }[place]
    path = write(tmp_path, a=yaml.safe_dump({"model": model}))
    imported = set(sys.modules)
    with pytest.raises(UserError, match="is not a class of this project that it may name"):
        load_model(path).later()
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "a.yaml"}
    assert not {"antigravity", "this"} & (set(sys.modules) - imported)


@pytest.mark.parametrize(
    "value",
    ["${oc.env:SECRET}", "${ oc.env:SECRET}", "x${oc.env:SECRET,y}", "${a.${oc.env:SECRET}}", "${oc.${b}:SECRET}",
     "${oc.create:${b}}", "${oc.dict.keys:c}"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["value", "item", "base", "override"])
def test_interpolations_call_no_functions(value, place, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    text = {"value": f"a: '{value}'", "item": f"a: [{{x: '{value}'}}]", "base": f"base: '{value}'", "override": ""}
    path = write(tmp_path, a=f"b: env\nc: {{d: 1}}\n{text[place]}\n")
    with pytest.raises(UserError, match="no functions") as error:
        load_config(path, [f"a={value}"] if place == "override" else None)
    assert "hidden" not in str(error.value)


def test_a_file_that_grows_without_end_is_refused(tmp_path):
    aliases = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    with pytest.raises(UserError, match="more than 100000 values"):
        load_config(write(tmp_path, a=aliases))
    for n in range(24):
        (tmp_path / f"base{n}.yaml").write_text(f"base: [base{n - 1}.yaml, base{n - 1}.yaml]\n" if n else "a: 1\n")
    with pytest.raises(UserError, match="more than 32 files"):
        load_config(tmp_path / "base23.yaml")
    nested, itself, long, digits = "[" * 100_000, "a: &a [*a]", "#" * (1 << 21), f"a: {'9' * 5000}"
    for text, words in ((nested, "nest"), (itself, "holds itself"), (long, "more than 1 MiB"), (digits, "digits")):
        with pytest.raises(UserError, match=words):
            load_config(write(tmp_path, a=text))


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, float, True),
        (3.0, int, False),
        (False, bool, True),
        (1, bool, False),
        (None, Optional[int], True),
        ("x", Optional[int], False),
        ("x", Union[int, str], True),
        ([], Sequence[int], True),
        ((1, 2), Sequence[int], True),
        ([[1], ["a"]], Sequence[Sequence[int]], False),
        ("anything", inspect.Parameter.empty, True),
        ("anything", Callable[[int], int], True),
        ([1, "mixed"], List[int], False),
    ],
)
def test_whether_a_value_fits(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_types_in_words():
    assert describe(Optional[Sequence[int]]) == "a list, each item a whole number"
    assert describe(Union[bool, str]) == "true or false or a word"


@pytest.mark.parametrize(
    ("part", "option", "value"),
    [
        ("network_config", "num_res_blocks", "100000"),
        ("network_config", "model_channels", "0"),
        ("network_config", "model_channels", "many"),
        ("network_config", "num_head_channels", "-1"),
        ("network_config", "channel_mult", "[0,0]"),
        ("network_config", "num_groups", "[4]"),
        ("sampler_config", "num_steps", "1000000000000"),
        ("sampler_config.params.guider_config", "max_scale", "-5"),
        ("sampler_config.params.discretization_config", "sigma_max", ".nan"),
    ],
)
def test_a_model_s_numbers_have_ranges_and_the_line_names_the_file(part, option, value):
    path = CONFIGS / "svd_tiny.yaml"
    with pytest.raises(UserError, match=rf"^--SVD.config: {path}: .* cannot have {option}=.*; expected a"):
        load_model(path, [f"model.params.{part}.params.{option}={value}"], "--SVD.config").parameter_shapes()


# ------------------------------------------------------------------------------------------------------ reading


def test_a_file_is_its_bases_and_its_own_values_over_them(tmp_path):
    path = write(
        tmp_path,
        top="base: [first, second.yaml]\na: {x: top}\n".replace("first", "first.yaml"),
        first="a: {x: 1, y: first, list: [1, 2, 3]}\n",
        second="base: third.yaml\na: {y: second, list: [4]}\n",
        third="a: {z: third}\nb: ${a.z}\n",
    )
    assert load_config(path) == {"a": {"x": "top", "y": "second", "z": "third", "list": [4]}, "b": "third"}


def test_overrides_come_last(tmp_path):
    path = write(tmp_path, a="model:\n  size: 1\n  rate: ${.size}\n")
    assert load_config(path, ["model.size=5"]) == {"model": {"size": 5, "rate": 5}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2\nb: 3\n", "is no valid YAML: line 2"),
        ("<<<<<<< HEAD\na: 1\n", "is no valid YAML: line 2"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("a: \x00", "is no valid YAML"),
        ("a: ${nowhere}", "is no valid configuration: Interpolation key 'nowhere' not found"),
        ("- a\n- b\n", "holds no mapping"),
        ("5\n", "holds no mapping"),
        ("base: gone.yaml\n", "no file at"),
        ("base: a.yaml\n", "is its own `base`"),
        ("base: ../folder\n", "no file at"),
        ("base: 5\n", "no file at"),
    ],
)
def test_an_unusable_file_is_said_on_one_line(tmp_path, text, words):
    (tmp_path / "folder").mkdir()
    path = write(tmp_path / "folder", a=text)
    with pytest.raises(UserError) as error:
        load_config(path, flag="--SVD.config")
    message = str(error.value)
    assert message.startswith("--SVD.config: ") and words in message and "\n" not in message


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(UserError, match="no file at .*configs/ has the ones"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="no file at"):
        load_config(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00weights")
    with pytest.raises(UserError, match="it is no UTF-8 text"):
        load_config(tmp_path / "binary")
    with pytest.raises(UserError, match="cannot read .*[Nn]ot a directory"):
        load_config(tmp_path / "binary" / "x.yaml")


def test_a_model_from_a_file(tmp_path):
    path = write(tmp_path, a=f"model:\n  target: {HERE}.Part\n  params: {{size: 3}}\n")
    assert load_model(path).size == 3
    assert load_model(path, ["model.params.size=7"]).size == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "describes no `model`"),
        ("train: {epochs: 3}\n", "describes no `model`"),
        ("model: word\n", "describes no `model`"),
        (f"model:\n  target: {HERE}.Part\n  params: {{}}\n", "lacks size"),
    ],
)
def test_a_file_without_a_usable_model_is_named(tmp_path, text, words):
    path = write(tmp_path, a=text)
    with pytest.raises(UserError) as error:
        load_model(path, flag="--svd_config")
    assert str(error.value).startswith(f"--svd_config: {path}") and words in str(error.value)
