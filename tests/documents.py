"""Find the code blocks of the README and the documentation pages."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL = ("", "bash", "sh", "console")

# A comment alone on the line above a block says that the block is not run, or dry run, and why.
_BLOCK = re.compile(
    r"^(?:<!-- (?P<how>not run|dry run): (?P<reason>[^\n]+?) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        line: number of its first line of text.
        language: as written; empty if there is none.
        text: the lines between the fences.
        how: ``"run"``, ``"dry run"`` or ``"not run"``.
        reason: why ``how`` is not ``"run"``.
    """

    line: int
    language: str
    text: str
    how: str
    reason: str


def blocks(document: str) -> Iterator[Block]:
    """Yield the fenced code blocks of a document in order."""
    for found in _BLOCK.finditer(document):
        yield Block(
            line=document.count("\n", 0, found.start("text")) + 1,
            language=found["language"],
            text=re.sub(f"^{found['indent']}", "", found["text"], flags=re.M),
            how=found["how"] or "run",
            reason=found["reason"] or "",
        )


def command_lines(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a shell block, split into words, without comments."""
    for line in re.sub(r"\\\n", " ", block.text).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def hybridize_words(words: list[str]) -> list[str] | None:
    """Return the words after ``hybridize``, also after a launcher; None for other commands."""
    if words[:1] == ["hybridize"]:
        return words[1:]
    if words[0] in ("torchrun", "accelerate", "python") and "-m" in words:
        after = words[words.index("-m") + 1 :]
        return after[1:] if after[:1] == ["hybridize"] else None
    return None


def documents(root: Path) -> list[Path]:
    """Return the README and all documentation pages."""
    return sorted([root / "README.md", *(root / "docs").rglob("*.md")])
