"""The text generator and the exam scores of the bundled checkpoint's trainer.

They are in `tools/`, which is not installed. This module imports them from any working directory.
"""

import sys
from pathlib import Path

# Append, so that the repository's folders do not hide installed packages.
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
