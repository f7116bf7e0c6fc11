import re
from typing import Literal, Optional, Tuple

import pytest

from gm.config.command_parser import CommandParser, explain_usage_error
from gm.errors import UserError
from gm.files import FilePath


class Engine:
    """An engine.

    Args:
        cylinders: how many.
        fuel: what it burns.
        tilt: how it leans.
        turbo: whether it is charged.
    """

    def __init__(
        self,
        cylinders: int = 4,
        fuel: Optional[Literal["diesel", "petrol"]] = None,
        tilt: Tuple[float, float] = (0.5, 0.5),
        turbo: bool = False,
    ):
        self.settings = (cylinders, fuel, tilt, turbo)


@pytest.fixture
def parser():
    parser = CommandParser(description="A car.")
    parser.add_argument("--config", action="config")
    parser.add_argument("--mode", type=Literal[0, 1], default=1)
    parser.add_argument("--colour", type=str, required=True)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_class_arguments(Engine, "engine")
    return parser


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--mode=3"], "--mode: 3 cannot be used; expected one of 0, 1"),
        (["--engine.fuel=coal"], "--engine.fuel: coal cannot be used; expected one of diesel, petrol"),
        (["--engine.cylinders", "many"], "--engine.cylinders: many cannot be used; expected a whole number"),
        (["--engine.cylinders=4.5"], "--engine.cylinders: 4.5 cannot be used; expected a whole number"),
        (["--engine.cylinders="], "--engine.cylinders: an empty value cannot be used; expected a whole number"),
        (["--speed=fast"], "--speed: fast cannot be used; expected a number"),
        (["--engine.turbo=maybe"], "--engine.turbo: maybe cannot be used; expected true or false"),
        (["--engine.tilt=0.5"], "--engine.tilt: 0.5 .* expected a list such as .0.5,0.5., each item a number"),
        (["--engine.feul=diesel"], "unknown flag --engine.feul; did you mean --engine.fuel?"),
        (["--xyzzy"], "unknown flag --xyzzy; see --help"),
        (["--engine.cyl=3"], "unknown flag --engine.cyl; did you mean --engine.cylinders?"),
        (["stray"], "unexpected argument stray; each value follows its flag, see --help"),
        (["--colour"], "--colour: expected one argument"),
        (["--config=none.yaml"], r"--config: File does not exist: .*none\.yaml.*"),
    ],
)
def test_usage_errors_are_one_plain_line(parser, arguments, line, capsys):
    with pytest.raises(UserError) as error:
        parser.parse_args(["--colour=red", *arguments])
    message = str(error.value)
    assert message == line or re.fullmatch(line, message), message
    assert capsys.readouterr() == ("", "")


def test_a_missing_flag_is_named(parser):
    with pytest.raises(UserError, match="^--colour must be given; --help explains each flag$"):
        parser.parse_args([])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("colour: red\nengine:\n  fuel: coal\n", "--engine.fuel: coal cannot be used; expected one of diesel, petrol"),
        ("colour: red\nspede: 3\n", "unknown flag --spede in the YAML file; did you mean --speed?"),
        (
            "colour: red\nengine:\n  cylinder: 3\n",
            "unknown flag --engine.cylinder in the YAML file; did you mean --engine.cylinders?",
        ),
    ],
)
def test_errors_in_the_yaml_name_the_flag(parser, tmp_path, text, line):
    (tmp_path / "car.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parser.parse_args([f"--config={tmp_path / 'car.yaml'}"])
    assert str(error.value) == line


@pytest.mark.parametrize("text", ["colour: [red\n", "just text", ""])
def test_broken_yaml_is_one_line(parser, tmp_path, text):
    (tmp_path / "car.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parser.parse_args([f"--config={tmp_path / 'car.yaml'}"])
    assert "\n" not in str(error.value) and "config" in str(error.value)


def test_values_arrive(parser, tmp_path):
    (tmp_path / "car.yaml").write_text("colour: red\nspeed: 3\nengine:\n  fuel: diesel\n")
    flags = parser.parse_args([f"--config={tmp_path / 'car.yaml'}", "--speed", "-2", "--engine.tilt=[0,1]"])
    assert (flags.colour, flags.speed, flags.mode) == ("red", -2.0, 1)
    assert Engine(**flags.engine).settings == (4, "diesel", (0.0, 1.0), False)


@pytest.mark.parametrize(
    ("arguments", "turbo"),
    [
        (["--engine.turbo", "--colour=red"], True),
        (["--colour=red", "--engine.turbo"], True),
        (["--engine.turbo", "false", "--colour=red"], False),
        (["--engine.turbo=true", "--colour=red"], True),
        (["--colour=red"], False),
    ],
)
def test_a_switch_may_stand_alone(parser, arguments, turbo):
    assert parser.parse_args(arguments).engine.turbo is turbo


def test_help_explains_the_class_arguments(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--help"])
    assert end.value.code == 0
    assert "what it burns" in capsys.readouterr().out


def test_messages_of_an_unknown_kind_are_put_on_one_line():
    assert explain_usage_error("something\n   else", {}) == "something else"


def test_a_tilde_is_the_home_folder_in_flags_and_yaml(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = CommandParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--image", type=FilePath)
    parser.add_argument("--lora", type=Optional[FilePath], default=None)
    parser.add_argument("--word", type=str, default="~")
    flags = parser.parse_args(["--image=~/a.jpg", "--lora", "~/b", "--word=~/c"])
    assert (flags.image, flags.lora, flags.word) == (f"{tmp_path}/a.jpg", f"{tmp_path}/b", "~/c")
    (tmp_path / "flags.yaml").write_text("image: ~/a.jpg\nlora: ~/b c\n")
    flags = parser.parse_args(["--config=~/flags.yaml"])
    assert (flags.image, flags.lora) == (f"{tmp_path}/a.jpg", f"{tmp_path}/b c")
    for name in ("a: b.jpg", "[1].jpg", "2024", "x~/y", "~~", " ~/x", "it's"):  # names are names
        assert parser.parse_args([f"--image={name}", f"--lora={name}"]).lora == name


def test_every_path_flag_is_one():
    """Whatever the commands take as a file or folder, by the names of the flags."""
    import image_to_video
    import train
    from svd_tools import convert, convert_lora, evaluate, merge_lora, score_motion

    tools = (convert, convert_lora, merge_lora, score_motion)
    parsers = [image_to_video.build_parser(), train.build_parser(), evaluate.build_parser()]
    paths = r"(dir|folder|config|checkpoint|images?|lora|pretrained|resume|metadata|videos|output|\bout|base)$"
    for parser in parsers + [tool._parser() for tool in tools]:
        for name, annotation in parser._types().items():
            if re.search(paths, name) and name != "config":
                assert "'path'" in str(annotation), (parser.prog, name, annotation)
