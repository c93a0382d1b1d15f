"""A config class from outside the package becomes a Python function, a command and a record."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hybridize.cli.config_options import TypedText, config_options
from hybridize.cli.options import common_options
from hybridize.errors import InputError, as_flags
from hybridize.option_types import Choice, Count, Flag, Integer, Listed, Location, PerName, Text
from hybridize.options import Config, dry_run_option, force_option, option, takes_options


@dataclass(frozen=True, kw_only=True)
class CakeConfig(Config):
    layers: int = option(Integer(1, 9), 3, help="Number of layers; more with `tall`.")
    flavor: str | None = option(Text(), None, help="The flavor.", default_text="plain")
    toppings: tuple[str, ...] = option(Listed(Text()), (), help="The toppings.")
    sugar: bool = option(Flag(), True, help="Add sugar.")
    tall: bool = option(Flag(), False, help="Bake a tall cake.")
    minutes: Mapping[str, int] | None = option(
        PerName(Count(), "minutes", lambda: ("bake", "cool"), "Minutes to {}.".format),
        None,
        help="Minutes of each stage.",
    )
    recipe: str = option(Location("FILE"), help="The recipe.", flags=("-r", "--recipe-file"))
    force: bool = force_option()
    dry_run: bool = dry_run_option()

    def check_options(self) -> None:
        if self.tall and self.layers < 2:
            raise InputError(f"`tall` needs `layers=2` or more, not `layers={self.layers}`")


@takes_options(CakeConfig)
def bake(name: str, output: str = "oven", *, config: CakeConfig) -> tuple[str, str, CakeConfig]:
    """Bake a cake.

    Args:
        name: its name.
    """
    if config.flavor == "fish":
        raise InputError("`flavor=fish`: `name` and `sugar=False` do not go with it; use `force`")
    return name, output, config


@click.command()
@click.argument("name")
@click.option("-o", "--output", default="oven")
@config_options(CakeConfig)
def bake_command(name: str, output: str, config: CakeConfig) -> None:
    """Bake a cake."""
    name, output, config = bake(name, output, config=config)
    click.echo(json.dumps([name, output, config.record()]))


def run(*words: str):
    return CliRunner().invoke(bake_command, list(words))


def test_keywords_and_a_config_are_the_same_call():
    config = CakeConfig(layers="4", recipe=Path("/home/me/best.txt"))
    assert config.layers == 4
    want = ("Sacher", "oven", config)
    assert bake("Sacher", config=config) == want
    assert bake("Sacher", layers=4, recipe="/home/me/best.txt") == want
    assert bake(name="Sacher", output="oven", layers=4, recipe="/home/me/best.txt") == want


def test_the_signature_and_the_docstring_list_the_options():
    parameters = inspect.signature(bake).parameters
    options = ["layers", "flavor", "toppings", "sugar", "tall", "minutes", "recipe"]
    assert list(parameters) == ["name", "output", *options, "force", "dry_run"]
    assert parameters["layers"].default == 3
    assert "    layers: Number of layers; more with `tall`." in inspect.getdoc(bake).splitlines()


def test_configs_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        CakeConfig(recipe="x").layers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": "x", "layer": 3}, r"bake\(\) has no option 'layer'"),
        ({"recipe": "x", "config": CakeConfig(recipe="x")}, "a config or keywords, not both"),
        ({"layers": 3}, "recipe"),
    ],
)
def test_wrong_keywords_are_type_errors(arguments, message):
    with pytest.raises(TypeError, match=message):
        bake("Sacher", **arguments)


def test_the_command_line_gives_the_same_config():
    done = run(
        "Sacher", "-r", "/home/me/best.txt", "--layers", "4", "--toppings", "nuts, cream",
        "--no-sugar", "--tall", "--bake-minutes", "1k", "--force",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    config = CakeConfig(
        recipe="best.txt", layers=4, toppings=("nuts", "cream"), sugar=False, tall=True,
        minutes={"bake": 1000},
    )  # fmt: skip
    assert json.loads(done.stdout) == ["Sacher", "oven", config.record()]
    assert config.record() == {
        "layers": 4,
        "flavor": None,
        "toppings": ["nuts", "cream"],
        "sugar": False,
        "tall": True,
        "minutes": {"bake": 1000},
        "recipe": "best.txt",
    }


def test_the_command_line_has_the_same_defaults():
    done = run("Sacher", "-r", "x")
    assert json.loads(done.stdout) == ["Sacher", "oven", CakeConfig(recipe="x").record()]


def test_help_shows_the_options_in_the_order_of_the_fields():
    text = " ".join(run("--help").stdout.split())
    flags = [
        "--layers N", "--flavor TEXT", "--toppings A,B,…", "--sugar / --no-sugar", "--tall",
        "--bake-minutes N", "--cool-minutes N", "-r, --recipe-file FILE", "--force", "--dry-run",
        "--json", "--quiet", "--debug",
    ]  # fmt: skip
    starts = [text.index(f" {flag} ") for flag in flags]
    assert starts == sorted(starts)
    assert "Number of layers; more with --tall. [default: 3]" in text
    assert "The flavor. [default: plain]" in text
    assert "Add sugar. [default: sugar]" in text
    assert "Minutes to bake." in text
    assert "[required]" in text


@pytest.mark.parametrize(
    ("words", "keywords", "message", "typed"),
    [
        (
            ["--layers", "0"],
            {"layers": 0},
            "`layers=0`: give a whole number from 1 to 9",
            "--layers 0: give a whole number from 1 to 9",
        ),
        (
            ["--layers", ""],
            {"layers": ""},
            "`layers=`: give a whole number from 1 to 9",
            "--layers '': give a whole number from 1 to 9",
        ),
        (
            ["--layers", "`"],
            {"layers": "`"},
            "`layers='`: give a whole number from 1 to 9",
            "--layers ': give a whole number from 1 to 9",
        ),
        (
            ["--tall", "--layers", "1"],
            {"tall": True, "layers": 1},
            "`tall` needs `layers=2` or more, not `layers=1`",
            "--tall needs --layers 2 or more, not --layers 1",
        ),
        (
            ["--bake-minutes", "x"],
            {"minutes": {"bake": "x"}},
            "`minutes[bake]=x`: give a count like 500k or 2M",
            "--bake-minutes x: give a count like 500k or 2M",
        ),
        (  # NAME is an argument and has no flag
            ["--flavor", "fish"],
            {"flavor": "fish"},
            "`flavor=fish`: `name` and `sugar=False` do not go with it; use `force`",
            "--flavor fish: `name` and --no-sugar do not go with it; use --force",
        ),
    ],
    ids=["value", "empty value", "backtick", "two options", "item of a mapping", "argument"],
)
def test_errors_name_keywords_in_python_and_flags_on_the_command_line(
    words, keywords, message, typed
):
    with pytest.raises(InputError) as caught:
        bake("Sacher", recipe="x", **keywords)
    assert str(caught.value) == message
    done = run("Sacher", "-r", "x", *words)
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == typed


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`d_state=0`: no", "--d-state 0: no"),
        ("give `d_state` or `bias=True`", "give --d-state or --bias"),
        ("`bias=False`, `force=False`", "--no-bias, `force=False`"),
        ("`output=/a b/c`: exists", "-o /a b/c: exists"),
        ("`other=1` and `D_state` stay", "`other=1` and `D_state` stay"),
        ("tokens[kl] and `tokens[kl]=3`", "tokens[kl] and --kl-tokens 3"),
    ],
)
def test_as_flags(message, shown):
    flags = {
        "d_state": "--d-state",
        "bias": "--bias/--no-bias",
        "force": "--force",
        "output": "-o",
        "tokens[kl]": "--kl-tokens",
    }
    assert as_flags(message, flags) == shown


def test_commands_without_a_config_name_flags_too():
    @click.command()
    @click.option("--limit", type=int)
    @common_options
    def count(limit: int) -> None:
        raise InputError(f"`limit={limit}`: too many for `model`")

    assert (
        str(CliRunner().invoke(count, ["--limit", "9"]).exception)
        == "--limit 9: too many for `model`"
    )


def test_shells_complete_names():
    type_ = TypedText(Choice("auto", "cpu", "cuda"))
    context = click.Context(bake_command)
    found = type_.shell_complete(context, bake_command.params[0], "c")
    assert [item.value for item in found] == ["cpu", "cuda"]
    assert TypedText(Integer()).shell_complete(context, bake_command.params[0], "") == []
