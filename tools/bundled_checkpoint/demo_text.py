"""Write the text that ``hybridize demo`` trains on and is measured on.

    python -m tools.bundled_checkpoint.demo_text

The text is of the kind that the bundled checkpoint learned from, and the checkpoint has read none
of it. It is stored because users have neither the world nor this script.
"""

import gzip
import json
from itertools import islice

from hybridize.demo import PROSE, TEXT
from tools.bundled_checkpoint.train import Settings
from tools.bundled_checkpoint.world import World

_TEXT_SEED, _TEXT_DOCUMENTS = 77, 3000
_PROSE_SEED, _PROSE_DOCUMENTS = 1_000_003, 60


def training_text() -> str:
    """Return the text to train on: JSON lines with one document each."""
    mix = Settings().stages[-1].mix
    documents = islice(World().documents(_TEXT_SEED, mix), _TEXT_DOCUMENTS)
    return "".join(json.dumps({"text": text}) + "\n" for text in documents)


def held_out_prose() -> str:
    """Return the text that perplexity is measured on."""
    return World().prose(_PROSE_SEED, _PROSE_DOCUMENTS)


if __name__ == "__main__":
    TEXT.parent.mkdir(exist_ok=True)
    TEXT.write_bytes(gzip.compress(training_text().encode(), mtime=0))
    PROSE.write_text(held_out_prose(), "utf-8")
