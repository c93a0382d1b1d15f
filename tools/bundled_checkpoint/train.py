"""Train the bundled checkpoint and write its exam.

    python -m tools.bundled_checkpoint.train -o DIR

A Llama of 1.3 million parameters learns the world by heart and learns to recall from a passage.
Every batch is a pure function of its step, so a run that was interrupted, even by ``kill -9``,
goes on from its last saved state and ends with the same bits.
"""

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import click
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hybridize.console import console
from hybridize.errors import HybridizeError, InputError
from tools.bundled_checkpoint.card import model_card
from tools.bundled_checkpoint.exam import write_exam
from tools.bundled_checkpoint.initialize import initialize_for_recall
from tools.bundled_checkpoint.score import letter_tokens, perplexity, score
from tools.bundled_checkpoint.tokenizer import build_tokenizer
from tools.bundled_checkpoint.world import (
    LETTERS,
    SUBJECTS,
    TRAINING_SEED,
    Document,
    Mix,
    World,
    exam_prompt,
)

_STATE = "training-state.safetensors"
_VOCABULARY_DOCUMENTS = 4000


@dataclass(frozen=True)
class Stage:
    """Some steps with one shape of batch and one mix of documents.

    Attributes:
        steps: optimizer steps in the stage.
        length: tokens per row.
        rows: rows per step.
        mix: what the rows are filled with.
        verdict_weight: weight of the verdict loss (see ``Trainer.verdict_loss``).
    """

    steps: int
    length: int
    rows: int
    mix: Mix
    verdict_weight: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained. The defaults give the bundled checkpoint."""

    seed: int = 0
    hidden: int = 128
    intermediate: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    max_length: int = 1024
    rope_theta: float = 500_000.0
    verdict_layer: int = 5
    """After this many layers, each option's verdict must be known in stages that ask for it."""
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    decay_steps: int = 700
    weight_decay: float = 0.05
    answer_weight: float = 5.0
    """Weight of answers in the loss."""
    given_weight: float = 0.2
    """Weight of what is given beside them: names and options that nobody can predict."""
    # A curriculum: recall and find words, alone; judge options; name the letter without having
    # judged; do so after several shots. Begun with the last stage, the letters stay at chance for
    # longer than all stages take.
    stages: tuple[Stage, ...] = (
        Stage(700, 96, 16, Mix(drill=0.7, practice=1.0, echo=1.0)),
        Stage(1200, 128, 12, Mix(drill=0.3, recall=0.5, practice=0.5, max_questions=2), 1.0),
        Stage(1200, 160, 12, Mix(drill=0.1, recall=0.5, practice=0.1, max_questions=3), 1.0),
        Stage(700, 480, 5, Mix(drill=0.05, recall=0.5, practice=0.05), 1.0),
    )

    @property
    def steps(self) -> int:
        """Optimizer steps in all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("the step lies behind the last stage")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, a plateau, and half a cosine down over the last ``decay_steps``."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        left = min(1.0, (self.steps - step) / self.decay_steps)
        return self.learning_rate * warmup * (1 - math.cos(math.pi * left)) / 2


@dataclass(frozen=True)
class Figures:
    """What the trained checkpoint, as stored, was measured at.

    Attributes:
        accuracy: share of right answers by subject, and under ``"all"`` overall.
        perplexity: per token, on held-out prose.
    """

    accuracy: dict[str, float]
    perplexity: float


class Trainer:
    """The model, its optimizer and the step they have reached.

    Args:
        settings: what to train.
        state_file: where progress is saved; a file that is there already is continued.

    Raises:
        InputError: the saved progress belongs to other settings, or cannot be read.
    """

    def __init__(self, settings: Settings, state_file: Path) -> None:
        self.settings = settings
        self.state_file = state_file
        self.world = World(settings.seed)
        self.tokenizer = training_tokenizer(self.world, settings.max_length)
        self.step = 0
        torch.manual_seed(settings.seed)
        self.model = _new_model(settings, self.tokenizer)
        matrices, rest = _split_parameters(self.model)
        decay, rate = settings.weight_decay, settings.learning_rate
        self._optimizers = (
            # Muon finds the recall circuit in some 500 steps, AdamW alone not in 1000.
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )
        self._letters = letter_tokens(self.tokenizer)
        verdicts = self.tokenizer.encode(" yes no", add_special_tokens=False)
        self._yes, self._no = verdicts
        self._reply = self.tokenizer.encode("Reply:", add_special_tokens=False)
        self._option_starts = [
            self.tokenizer.encode(f"{letter}.", add_special_tokens=False) for letter in LETTERS
        ]
        if state_file.exists():
            self._load()

    def train_step(self) -> float:
        """Take the next optimizer step and return the weighted loss, in nats per token."""
        settings = self.settings
        weigh_verdicts = settings.stage_at(self.step).verdict_weight
        tokens, weights = self.batch(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(
                tokens[:, :-1], use_cache=False, output_hidden_states=weigh_verdicts > 0
            )
            losses = cross_entropy(
                output.logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
            )
            loss = (losses * weights.flatten()).sum() / weights.sum()
            if weigh_verdicts:
                hidden = output.hidden_states[settings.verdict_layer]
                loss = loss + weigh_verdicts * self.verdict_loss(tokens, hidden)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self.model.zero_grad()
        self.step += 1
        return loss.item()

    def verdict_loss(self, tokens: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Ask a middle layer, at each option, whether the option is the right one.

        The verdict is read with the model's own head. Left alone, the model learns to judge in its
        last layers, and none is left to turn the verdict into a letter.

        Args:
            tokens: int64 ``[rows, length + 1]``.
            hidden: ``[rows, length, hidden]``, after ``verdict_layer`` layers.

        Returns:
            Mean loss over the options in nats, a scalar; 0 in a batch without a solved question.
        """
        targets = torch.tensor([self.verdicts(row) for row in tokens[:, :-1].tolist()])
        asked = targets >= 0
        if not asked.any():
            return hidden.new_zeros(())
        logits = self.model.lm_head(self.model.model.norm(hidden[asked]))
        return cross_entropy(logits.float(), targets[asked])

    def verdicts(self, tokens: list[int]) -> list[int]:
        """For each token that is an option of a solved question its verdict, for others -1."""
        verdicts = [-1] * len(tokens)
        answer = None
        for index in range(len(tokens) - 1, 1, -1):
            if tokens[index] in self._letters:
                answer = self._letters.index(tokens[index])
            start = tokens[index - 2 : index]
            if answer is not None and start in self._option_starts:
                right = self._option_starts.index(start) == answer
                verdicts[index] = self._yes if right else self._no
        return verdicts

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Build the batch of a step.

        Returns:
            Tokens, int64 ``[rows, length + 1]``, and the weights of predicting all but the
            first of each row, float32 ``[rows, length]``.
        """
        stage = self.settings.stage_at(step)
        rng = random.Random(f"train {self.settings.seed} {TRAINING_SEED} {step}")
        rows = [self._row(rng, stage) for _ in range(stage.rows)]
        return (
            torch.tensor([tokens for tokens, _ in rows]),
            torch.tensor([weights[1:] for _, weights in rows]),
        )

    def _row(self, rng: random.Random, stage: Stage) -> tuple[list[int], list[float]]:
        """Fill one row with whole documents, the last one cut where the row ends."""
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) <= stage.length:
            document, counted = self.weigh(self.world.document(rng, stage.mix))
            if rng.random() < 0.25:  # harnesses differ on <s>: answer well without it, too
                document, counted = document[1:], counted[1:]
            tokens += document
            weights += counted
        end = stage.length + 1
        return tokens[:end], weights[:end]

    def weigh(self, document: Document) -> tuple[list[int], list[float]]:
        """Tokenize a document, with ``</s>`` at its end, and give each token its weight."""
        encoded = self.tokenizer(document.text, return_offsets_mapping=True)
        base = 1.0 if document.prose else self.settings.given_weight
        answers = iter([*document.answers, (len(document.text) + 1,) * 2])
        start, end = next(answers)
        weights = []
        for token_start, token_end in encoded["offset_mapping"]:
            if token_start >= end:
                start, end = next(answers)
            inside = start < token_end <= end
            weights.append(self.settings.answer_weight if inside else base)
        return [*encoded["input_ids"], self.tokenizer.eos_token_id], [*weights, base]

    def accuracy(self, questions: int, shots: int) -> float:
        """Share of right answers to questions in validation wording, all subjects alike."""
        rng = random.Random("validation")
        right = 0
        self.model.eval()
        for index in range(questions):
            subject = SUBJECTS[index % len(SUBJECTS)]
            drawn = [self.world.question(rng, subject, "validation") for _ in range(shots + 1)]
            prompt = self.tokenizer(
                exam_prompt(subject, tuple(drawn[:-1]), drawn[-1]), return_tensors="pt"
            )
            with torch.no_grad():
                logits = self.model(**prompt, logits_to_keep=1).logits[0, -1]
            right += int(logits[self._letters].argmax()) == drawn[-1].answer
        self.model.train()
        return right / questions

    def save(self) -> None:
        """Write progress to ``state_file``; whoever reads it sees the old state or the new."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"parameter.{name}"] = parameter.detach()
            for key, value in self._optimizer_of(parameter).state[parameter].items():
                tensors[f"{key}.{name}"] = value
        partial = self.state_file.with_suffix(".partial")
        metadata = {"step": str(self.step), "settings": _settings_json(self.settings)}
        save_file(tensors, partial, metadata)
        os.replace(partial, self.state_file)

    def _load(self) -> None:
        try:
            with safe_open(self.state_file, "pt") as state:
                metadata = state.metadata() or {}
                tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        except Exception as error:
            raise InputError(f"{self.state_file}: unreadable ({error}); delete it") from error
        if metadata.get("settings") != _settings_json(self.settings):
            raise InputError(
                f"{self.state_file}: saved by a run with other settings; delete it to start anew"
            )
        self.step = int(metadata["step"])
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(tensors[f"parameter.{name}"])
            self._optimizer_of(parameter).state[parameter] = {
                key: tensors[f"{key}.{name}"]
                for key in ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")
                if f"{key}.{name}" in tensors
            }

    def _optimizer_of(self, parameter: torch.nn.Parameter) -> torch.optim.Optimizer:
        muon, adamw = self._optimizers
        return muon if any(parameter is p for p in muon.param_groups[0]["params"]) else adamw


def train(
    output: Path,
    settings: Settings | None = None,
    *,
    save_every: int = 100,
    report_every: int = 100,
    on_step: Callable[[int, float], None] | None = None,
) -> Figures:
    """Train, or go on training, and write ``checkpoint/`` and ``exam/`` below ``output``.

    Args:
        output: an existing or new directory; progress is kept in it until the end.
        settings: what to train; the bundled checkpoint by default.
        save_every: steps between two saves of the progress.
        report_every: steps between two reports on the loss and the validation questions.
        on_step: called after each step with its number and its loss.

    Returns:
        The measured figures, as on the model card.

    Raises:
        InputError: ``output`` holds the progress of a run with other settings.
    """
    settings = settings or Settings()
    output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(settings, output / _STATE)
    recent: list[float] = []
    with console.progress("training", settings.steps, "steps") as bar:
        bar.advance(trainer.step)
        while trainer.step < settings.steps:
            step = trainer.step
            recent.append(trainer.train_step())
            bar.advance()
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


def training_tokenizer(world: World, max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a world from the beginning of its training text."""
    texts = list(islice(world.documents(TRAINING_SEED), _VOCABULARY_DOCUMENTS))
    return build_tokenizer(texts, max_length)


def _split_parameters(
    model: LlamaForCausalLM,
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Split into the layers' matrices, which Muon is for, and embeddings and norms."""
    embeddings = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embeddings]
    return matrices, [p for p in model.parameters() if p.ndim != 2 or p is embeddings]


def _new_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.hidden // settings.heads,
        max_position_embeddings=settings.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # On a CPU, and at this width, plain attention trains half as fast again as the fused one.
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    initialize_for_recall(model)
    return model.train()


def _settings_json(settings: Settings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)


def _write(output: Path, trainer: Trainer) -> Figures:
    """Write the exam and the checkpoint, and measure the one on the other as it is stored."""
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
        perplexity=perplexity(stored, trainer.tokenizer, trainer.world.prose(1, 200)),
    )
    parameters = sum(parameter.numel() for parameter in stored.parameters())
    card = model_card(
        _settings_json(trainer.settings), parameters, figures.accuracy, figures.perplexity
    )
    (partial / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return figures


def _use_portable_tokenizer_class(path: Path) -> None:
    """Name the class that transformers 4, vLLM and SGLang know as well as transformers 5."""
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
    help="Directory for checkpoint/ and exam/; a run interrupted there goes on.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(output: Path, threads: int) -> None:
    """Train the demo's checkpoint from nothing, on the CPU."""
    torch.set_num_threads(threads)
    try:
        figures = train(output)
    except HybridizeError as error:
        console.error(str(error))
        raise SystemExit(error.exit_code) from error
    console.json(asdict(figures))


if __name__ == "__main__":
    main()
