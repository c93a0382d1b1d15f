"""The trainer of the bundled checkpoint: batches, losses, optimizer steps and saved progress."""

import os
import random
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hybridize.errors import InputError

from .initialize import initialize_for_recall
from .questions import LETTERS, exam_prompt
from .score import letter_tokens
from .settings import Settings, Stage
from .texts import TRAINING_SEED, Document, document, generate_documents
from .tokenizer import build_tokenizer
from .world import SUBJECTS, World

_VOCABULARY_DOCUMENTS = 4000


class Trainer:
    """The model, its optimizers and the number of steps done.

    Args:
        settings: what to train.
        state_file: where progress is saved; an existing file is resumed.

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
            # With Muon, recall emerges after about 500 steps; with AdamW alone, not within 1000.
            torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        )
        self._letters = letter_tokens(self.tokenizer)
        verdicts = self.tokenizer.encode(" yes no", add_special_tokens=False)
        self._yes, self._no = verdicts
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
        """Train a middle layer to predict, at each option, whether the option is right.

        The prediction uses the model's own norm and head. Without this loss, the model judges the
        options in its last layers, and no layer is left to turn the verdict into a letter.

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
        """Return the verdict token at each option of a solved question, and -1 elsewhere."""
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
            Tokens, int64 ``[rows, length + 1]``, and the loss weights of the tokens after the first
            one of each row, float32 ``[rows, length]``.
        """
        stage = self.settings.stage_at(step)
        rng = random.Random(f"train {self.settings.seed} {TRAINING_SEED} {step}")
        rows = [self._row(rng, stage) for _ in range(stage.rows)]
        return (
            torch.tensor([tokens for tokens, _ in rows]),
            torch.tensor([weights[1:] for _, weights in rows]),
        )

    def _row(self, rng: random.Random, stage: Stage) -> tuple[list[int], list[float]]:
        """Fill one row with documents; the last one is cut at the end of the row."""
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) <= stage.length:
            tokenized, counted = self.weigh(document(self.world, rng, stage.mix))
            if rng.random() < 0.25:  # some evaluation harnesses add no <s>
                tokenized, counted = tokenized[1:], counted[1:]
            tokens += tokenized
            weights += counted
        end = stage.length + 1
        return tokens[:end], weights[:end]

    def weigh(self, text: Document) -> tuple[list[int], list[float]]:
        """Tokenize a document, append ``</s>``, and return the tokens and their loss weights."""
        encoded = self.tokenizer(text.text, return_offsets_mapping=True)
        base = 1.0 if text.prose else self.settings.given_weight
        answers = iter([*text.answers, (len(text.text) + 1,) * 2])
        start, end = next(answers)
        weights = []
        for token_start, token_end in encoded["offset_mapping"]:
            if token_start >= end:
                start, end = next(answers)
            inside = start < token_end <= end
            weights.append(self.settings.answer_weight if inside else base)
        return [*encoded["input_ids"], self.tokenizer.eos_token_id], [*weights, base]

    def accuracy(self, questions: int, shots: int) -> float:
        """Return the accuracy on questions with validation patterns, equally many per subject."""
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
        """Write progress to ``state_file`` atomically."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"parameter.{name}"] = parameter.detach()
            for key, value in self._optimizer_of(parameter).state[parameter].items():
                tensors[f"{key}.{name}"] = value
        partial = self.state_file.with_suffix(".partial")
        metadata = {"step": str(self.step), "settings": self.settings.to_json()}
        save_file(tensors, partial, metadata)
        os.replace(partial, self.state_file)

    def _load(self) -> None:
        try:
            with safe_open(self.state_file, "pt") as state:
                metadata = state.metadata() or {}
                tensors = {name: state.get_tensor(name) for name in state.keys()}  # noqa: SIM118
        except Exception as error:
            raise InputError(f"{self.state_file}: unreadable ({error}); delete it") from error
        if metadata.get("settings") != self.settings.to_json():
            raise InputError(
                f"{self.state_file}: saved by a run with other settings; delete it to start again"
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


def training_tokenizer(world: World, max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a world from the beginning of its training text."""
    texts = list(islice(generate_documents(world, TRAINING_SEED), _VOCABULARY_DOCUMENTS))
    return build_tokenizer(texts, max_length)


def _split_parameters(
    model: LlamaForCausalLM,
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Return the matrices of the layers, for Muon, and all other parameters."""
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
    # On a CPU, at this width, eager attention trains 1.5 times as fast as the fused kernel.
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    initialize_for_recall(model)
    return model.train()
