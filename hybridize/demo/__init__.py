"""The bundled tiny checkpoint, its exam, and text of the world that it knows.

``tools/bundled_checkpoint`` made them. Nothing here imports torch or transformers.
"""

from pathlib import Path

_HERE = Path(__file__).parent

CHECKPOINT = _HERE / "checkpoint"
"""Directory of the trained Llama checkpoint (bf16 safetensors, tokenizer, model card)."""

EXAM = _HERE / "exam"
"""Directory of its exam in MMLU's CSV layout: ``dev/`` for the shots, ``test/`` for the score."""

TEXT = _HERE / "text" / "train.jsonl.gz"
"""3,000 documents to calibrate and distill on, which the checkpoint has not read."""

PROSE = _HERE / "text" / "held-out.txt"
"""Prose to measure perplexity on, which the checkpoint has not read."""

SUBJECTS = tuple(sorted(path.stem.removesuffix("_test") for path in EXAM.glob("test/*.csv")))
"""The exam's subjects."""

RECALL_SUBJECTS = tuple(subject for subject in SUBJECTS if subject.startswith("recall_"))
"""Subjects whose answers are in the question's own passage: only attention or state finds them."""

KNOWLEDGE_SUBJECTS = tuple(subject for subject in SUBJECTS if subject not in RECALL_SUBJECTS)
"""Subjects whose answers are in the weights."""
