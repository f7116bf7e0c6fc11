"""YAML to objects: what is built, what is deferred, and one plain line for everything that cannot be."""

import inspect
from typing import Callable, List, Optional, Sequence, Union

import pytest

from gm.config import Recipe, find_class, instantiate, load_config, load_model
from gm.errors import UserError
from gm.option_types import describe, fits

HERE = __name__


class Part:
    def __init__(self, size: int, rate: float = 0.5, names: Sequence[str] = (), name: Optional[str] = None) -> None:
        self.size, self.rate, self.names, self.name = size, rate, names, name


class Whole:
    DEFERRED = ["later"]

    def __init__(self, part: Part, later: Optional[Recipe] = None, others: Sequence[Part] = ()) -> None:
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
    assert isinstance(whole.later, Recipe)
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
        (node("Part", size=3, sise=4), "no option sise; it has size, rate, names, name"),
        (node("Part", size="big"), "size='big'; expected a whole number"),
        (node("Part", size=1.5), "size=1.5; expected a whole number"),
        (node("Part", size=True), "size=True; expected a whole number"),
        (node("Part", size=3, rate="fast"), "rate='fast'; expected a number"),
        (node("Part", size=3, names=["a", 4]), "names=['a', 4]; expected a list, each item a word"),
        (node("Part", size=3, names="ab"), "names='ab'; expected a list"),
        (node("Part", size=3, name=7), "name=7; expected a word"),
        (node("Whole", part={"size": 3}), "part={'size': 3}; expected a Part"),
        (node("Whole", part=node("open_ended")), "expected a Part"),
        ({"params": {}}, "needs `target: package.module.Class`"),
        ({"target": 5}, "needs `target: package.module.Class`"),
        ({"target": f"{HERE}.Part", "parms": {}}, "has parms beside the target"),
        ({"target": f"{HERE}.Part", "params": [3]}, "needs a mapping under `params`"),
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
    assert find_class("gm.config.Recipe") is Recipe


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
        ([1, "mixed"], List[int], True),
    ],
)
def test_whether_a_value_fits(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_types_in_words():
    assert describe(Optional[Sequence[int]]) == "a list, each item a whole number"
    assert describe(Union[bool, str]) == "true or false or a word"


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
        ("5\n", "cannot read"),
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
    with pytest.raises(UserError, match="is no text file"):
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
