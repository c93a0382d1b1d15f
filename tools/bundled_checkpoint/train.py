"""Train the bundled checkpoint and write its exam.

    python -m tools.bundled_checkpoint.train -o DIR

A Llama of 1.3 million parameters learns the facts of the synthetic world, and to recall facts from
a passage. Every batch is a pure function of its step, so an interrupted run, even by ``kill -9``,
resumes from its last saved state and ends with the same bits.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from transformers import LlamaForCausalLM

from hybridize.console import console
from hybridize.errors import HybridizeError

from .card import model_card
from .exam import write_exam
from .score import perplexity, score
from .settings import Settings
from .texts import generate_prose
from .trainer import Trainer
from .world import SUBJECTS

_STATE = "training-state.safetensors"


@dataclass(frozen=True)
class Figures:
    """The measured quality of the stored checkpoint.

    Attributes:
        accuracy: by subject, and for all questions under ``"all"``.
        perplexity: per token, on held-out prose.
    """

    accuracy: dict[str, float]
    perplexity: float


def train(
    output: Path,
    settings: Settings | None = None,
    *,
    save_every: int = 100,
    report_every: int = 100,
    on_step: Callable[[int, float], None] | None = None,
) -> Figures:
    """Train, or resume training, and write ``checkpoint/`` and ``exam/`` below ``output``.

    Args:
        output: a directory; the saved progress is in it until the end.
        settings: what to train; the bundled checkpoint by default.
        save_every: steps between saves.
        report_every: steps between messages with the loss and the validation accuracy.
        on_step: called after each step with the step and its loss.

    Returns:
        The figures of the model card.

    Raises:
        InputError: ``output`` contains the progress of a run with other settings.
    """
    settings = settings or Settings()
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings, output / _STATE)
    recent: list[float] = []
    with console.progress("training", settings.steps, "steps", completed=trainer.step) as progress:
        while trainer.step < settings.steps:
            step = trainer.step
            recent.append(trainer.train_step())
            progress.advance()
            if not math.isfinite(recent[-1]):
                raise HybridizeError(
                    f"step {step}: the loss is not finite; lower the learning rate"
                )
            if on_step:
                on_step(step, recent[-1])
            if trainer.step % save_every == 0:
                trainer.save()
            if trainer.step % report_every == 0:
                shots = settings.stage_at(step).mix.max_questions - 1
                console.message(
                    f"step {trainer.step}: loss {sum(recent) / len(recent):.3f}, validation "
                    f"accuracy {trainer.accuracy(20 * len(SUBJECTS), shots):.2f}"
                )
                recent = []
    figures = _write(output, trainer)
    trainer.state_file.unlink(missing_ok=True)
    return figures


def _write(output: Path, trainer: Trainer) -> Figures:
    """Write the exam and the checkpoint, and measure the stored checkpoint."""
    write_exam(trainer.world, output / "exam")
    target, partial = output / "checkpoint", output / "checkpoint.partial"
    shutil.rmtree(partial, ignore_errors=True)
    trainer.model.bfloat16().save_pretrained(partial)
    (partial / "model.safetensors").chmod(0o644)
    trainer.tokenizer.save_pretrained(partial)
    _use_portable_tokenizer_class(partial / "tokenizer_config.json")
    stored = LlamaForCausalLM.from_pretrained(partial, dtype=torch.float32)
    figures = Figures(
        accuracy=score(stored, trainer.tokenizer, output / "exam"),
        perplexity=perplexity(stored, trainer.tokenizer, generate_prose(trainer.world, 1, 200)),
    )
    parameters = sum(parameter.numel() for parameter in stored.parameters())
    card = model_card(trainer.settings.to_json(), parameters, figures.accuracy, figures.perplexity)
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return figures


def _use_portable_tokenizer_class(path: Path) -> None:
    """Name a tokenizer class that transformers 4, vLLM and SGLang also know."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory for checkpoint/ and exam/. An interrupted run is resumed.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Number of CPU threads."
)
def main(output: Path, threads: int) -> None:
    """Train the bundled checkpoint from scratch on a CPU."""
    torch.set_num_threads(threads)
    try:
        figures = train(output)
    except HybridizeError as error:
        console.error(str(error))
        raise SystemExit(error.exit_code) from error
    console.json(asdict(figures))


if __name__ == "__main__":
    main()
