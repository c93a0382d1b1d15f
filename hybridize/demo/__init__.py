"""The bundled tiny checkpoint, its exam, and text for training and measurements.

``tools/bundled_checkpoint`` generated them. Importing this module imports neither torch nor
transformers.
"""

from pathlib import Path

_HERE = Path(__file__).parent

CHECKPOINT = _HERE / "checkpoint"
"""Directory of the trained Llama checkpoint (bfloat16 safetensors, tokenizer, model card)."""

EXAM = _HERE / "exam"
"""Directory of the exam in MMLU's CSV format: ``dev/`` has the shots, ``test/`` the questions."""

TEXT = _HERE / "text" / "train.jsonl.gz"
"""3,000 documents for calibration and distillation, which the checkpoint was not trained on."""

PROSE = _HERE / "text" / "held-out.txt"
"""Prose for measuring perplexity, which the checkpoint was not trained on."""

SUBJECTS = tuple(sorted(path.stem.removesuffix("_test") for path in EXAM.glob("test/*.csv")))
"""All subjects of the exam."""

RECALL_SUBJECTS = tuple(subject for subject in SUBJECTS if subject.startswith("recall_"))
"""Subjects whose answers are in a passage before the question, which the model must recall."""

KNOWLEDGE_SUBJECTS = tuple(subject for subject in SUBJECTS if subject not in RECALL_SUBJECTS)
"""Subjects whose answers are in the weights."""
