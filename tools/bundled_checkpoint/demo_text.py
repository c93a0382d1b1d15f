"""Write the text that ``hybridize demo`` trains on and measures perplexity on.

    python -m tools.bundled_checkpoint.demo_text

The text has the same distribution as the training text of the bundled checkpoint, but the
checkpoint was not trained on it. It is stored because these scripts are not installed.
"""

import gzip
import json
from itertools import islice
from pathlib import Path

from hybridize.demo import PROSE, TEXT

from .settings import Settings
from .texts import generate_documents, generate_prose
from .world import World

_TEXT_SEED, _TEXT_DOCUMENTS = 77, 3000
_PROSE_SEED, _PROSE_DOCUMENTS = 1_000_003, 60


def training_text() -> str:
    """Return the text to train on: JSON lines with one document each."""
    mix = Settings().stages[-1].mix
    texts = islice(generate_documents(World(), _TEXT_SEED, mix), _TEXT_DOCUMENTS)
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def held_out_prose() -> str:
    """Return the text to measure perplexity on."""
    return generate_prose(World(), _PROSE_SEED, _PROSE_DOCUMENTS)


def write_demo_text(text: Path, prose_file: Path) -> None:
    """Write both files: JSON lines in gzip, and plain text."""
    text.write_bytes(gzip.compress(training_text().encode(), mtime=0))
    prose_file.write_text(held_out_prose(), "utf-8")


if __name__ == "__main__":
    write_demo_text(TEXT, PROSE)
