"""The texts of `real_models.py`: to train on, and to measure on."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from real_models_store import locked

from hybridize.checkpoints import CheckpointReader
from hybridize.checkpoints.formats import read_config
from hybridize.checkpoints.load import load_tokenizer
from hybridize.console import console
from hybridize.data.documents import read_documents
from hybridize.data.load_text import load_packed_dataset
from hybridize.data.sources import TEACHER
from hybridize.output_files import write_atomically

_PART = 16_384
"""Tokens that are sampled before they are saved: minutes of work on a laptop."""

_ROW = 1024
"""Tokens that are sampled in a row, as `distill --data teacher` does."""

_LONG_LINE = 100
"""Characters; shorter lines, such as headings, may occur in two different texts."""


def training_files(
    sources: Sequence[str], model: Path, work: Path, tokens: int, seed: int, device: str
) -> tuple[str, ...]:
    """Return the files of the training text; sample the teacher's part of it if necessary.

    Args:
        sources: files, or ``teacher``.
        model: the teacher's directory.
        work: a directory for the samples. Interrupted sampling continues from what is there.
        tokens: number of tokens to sample.
        seed: random seed.
        device: where to sample.
    """
    return tuple(
        str(
            _samples(model, work / "teacher", tokens, seed, device) if source == TEACHER else source
        )
        for source in sources
    )


def check_disjoint(training: Sequence[str], held_out: Path) -> None:
    """Check that no long line of the held-out text occurs in the training text.

    Raises:
        SystemExit: there is such a line.
    """
    lines = set(_long_lines(held_out))
    for source in training:
        for line in _long_lines(Path(source)):
            if line in lines:
                raise SystemExit(
                    f"{source}: contains a line of the held-out text {held_out}: {line[:60]!r}; "
                    "train on another text"
                )


def excerpt(held_out: Path, model: Path, tokens: int, path: Path) -> Path:
    """Write the first lines of a text that have at least ``tokens`` tokens; return the path."""
    tokenizer = load_tokenizer(model)
    count, lines = 0, []
    for line in held_out.read_text("utf-8").splitlines(keepends=True):
        if count >= tokens:
            break
        lines.append(line)
        count += len(tokenizer(line, add_special_tokens=False).input_ids)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))
    return path


def _long_lines(path: Path) -> Iterator[str]:
    for document in read_documents(str(path), "data"):
        for line in document.splitlines():
            if len(line.strip()) >= _LONG_LINE:
                yield line.strip()


def _samples(model: Path, directory: Path, tokens: int, seed: int, device: str) -> Path:
    """Sample text from a model, part by part; return the file with all of it."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{tokens}.jsonl"
    with locked(directory / "lock"):
        if path.exists():
            return path
        parts = [directory / f"part-{number:05}.jsonl" for number in range(-(-tokens // _PART))]
        for number, part in enumerate(parts):
            if not part.exists():
                console.message(f"sampling from {model.name}: part {number + 1} of {len(parts)}")
                write_atomically(part, _sample(model, seed * 1_000_003 + number, device))
        write_atomically(path, "".join(part.read_text("utf-8") for part in parts))
    return path


def _sample(model: Path, seed: int, device: str) -> str:
    """Return one part of the text as lines of JSON.

    The documents keep their special tokens, such as those of a chat, but not the tokens with
    which `distill` begins and ends every document.
    """
    with CheckpointReader(model) as reader:
        length = min(_ROW, read_config(reader)[1].max_position_embeddings)
    dataset = load_packed_dataset(
        [TEACHER], model=model, length=length, tokens=_PART, seed=seed, device=device
    )
    tokenizer = load_tokenizer(model)
    begin = [token for token in tokenizer("").input_ids if token != tokenizer.eos_token_id]
    lines = []
    for ids, seq_idx in zip(dataset.ids, dataset.seq_idx, strict=True):
        starts = seq_idx.diff().nonzero()[:, 0] + 1
        for document in ids.tensor_split(starts):
            tokens = document.tolist()
            if begin and tokens[: len(begin)] == begin:
                tokens = tokens[len(begin) :]
            if tokens[-1:] == [tokenizer.eos_token_id]:
                tokens.pop()
            text = tokenizer.decode(tokens, skip_special_tokens=False)
            if text.strip():
                lines.append(json.dumps({"text": text}) + "\n")
    return "".join(lines)
