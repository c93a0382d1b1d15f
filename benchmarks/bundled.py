"""The maker of the bundled checkpoint, for benchmarks that generate text or train like it.

It is in `tools/`, which is not installed. This module finds it from any working directory.
"""

import sys
from pathlib import Path

# At the end, so that the repository's folders hide no installed package.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from tools.bundled_checkpoint.score import score
from tools.bundled_checkpoint.settings import Settings
from tools.bundled_checkpoint.texts import generate_documents, generate_prose
from tools.bundled_checkpoint.world import RECALL_SUBJECTS, World

__all__ = [
    "RECALL_SUBJECTS",
    "Settings",
    "World",
    "generate_documents",
    "generate_prose",
    "score",
]
