"""The bundled tiny checkpoint: its world, its exam, and the script that trained it.

Nothing here imports torch or transformers; ``train`` and ``score`` do, when they are used.
"""

from pathlib import Path

_HERE = Path(__file__).parent

CHECKPOINT = _HERE / "checkpoint"
"""Directory of the trained Llama checkpoint (bf16 safetensors, tokenizer, model card)."""

EXAM = _HERE / "exam"
"""Directory of its exam in MMLU's CSV layout: ``dev/`` for the shots, ``test/`` for the score."""
