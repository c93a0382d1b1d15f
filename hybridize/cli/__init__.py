"""The command line: one small file per command, which is imported only when the command runs.

To add a command, add one entry to ``COMMANDS`` and one file to this folder.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NamedTuple

import click
from typing_extensions import override

from hybridize.cli.options import debug_option


class Entry(NamedTuple):
    """Where to import a command from, and its line in ``hybridize --help``.

    The command contains the same line. It is repeated here so that help imports no command.
    """

    target: str
    short_help: str


COMMANDS = {
    "demo": Entry(
        "hybridize.cli.demo:demo",
        "Run all commands on the bundled tiny checkpoint.",
    ),
    "inspect": Entry(
        "hybridize.cli.inspect:inspect",
        "Show a checkpoint's blocks, parameters and cache sizes.",
    ),
    "convert": Entry(
        "hybridize.cli.convert:convert",
        "Swap attention blocks for Mamba-2 and write the hybrid.",
    ),
    "distill": Entry(
        "hybridize.cli.distill:distill",
        "Train a converted checkpoint to behave like the original model.",
    ),
    "prune": Entry(
        "hybridize.cli.prune:prune",
        "Cut a model down to a budget of parameters, memory or time.",
    ),
    "quantize": Entry(
        "hybridize.cli.quantize:quantize",
        "Store the linear layers in FP8, for transformers and vLLM.",
    ),
    "eval": Entry(
        "hybridize.cli.evaluate:evaluate",
        "Measure accuracy and perplexity of checkpoints with lm-eval.",
    ),
    "bench": Entry(
        "hybridize.cli.bench:bench",
        "Measure speed and memory of checkpoints.",
    ),
    "report": Entry(
        "hybridize.cli.report:report",
        "Draw results of eval, bench and distill on one page.",
    ),
    "export": Entry(
        "hybridize.cli.export:export",
        "Write a checkpoint as ONNX graphs or as a GGUF file.",
    ),
    "generate": Entry(
        "hybridize.cli.generate:generate",
        "Continue a text with a checkpoint.",
    ),
    "verify": Entry(
        "hybridize.cli.verify:verify",
        "Check a checkpoint's tensors, index and hashes.",
    ),
}

_EPILOG = """
\b
Exit codes: 0 done, 1 the run failed, 2 the input or an option is wrong, 128 + n signal n.
Completion: eval "$(_HYBRIDIZE_COMPLETE=bash_source hybridize)"  (or zsh_source, fish_source)
"""


class ReaderEndedError(Exception):
    """The program that reads the output has ended. Click would exit with code 1."""


@contextmanager
def _reader_may_end() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderEndedError from error
    except SystemExit as leaving:  # rich leaves like this when it prints to a closed pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            raise ReaderEndedError from leaving
        raise


class LazyGroup(click.Group):
    """A group of commands that imports a command when it is called."""

    @override
    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _reader_may_end():  # it prints the help
            return super().make_context(*arguments, **options)

    @override
    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_end():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command ``cmd_name``; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` starts with, or suggest one with a similar name."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, COMMANDS) or list(COMMANDS)
            raise click.UsageError(f"no such command '{name}'; did you mean {_either(near)}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.short_help) for name, entry in COMMANDS.items()])


def _either(names: list[str]) -> str:
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} or {last}" if first else last


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(None, "--version", package_name="hybridize", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Turn a pretrained Transformer checkpoint into a fast Mamba-2 hybrid.

    MODEL is a checkpoint directory, or a model on the Hugging Face hub: OWNER/NAME, or
    OWNER/NAME@REVISION with a branch, a tag or a commit. Tables and results go to stdout, messages
    and progress to stderr.
    """
