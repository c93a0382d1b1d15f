"""Tiny random Llamas with their tokenizers, small exams, and no network."""

import socket
from pathlib import Path
from typing import Any

import pytest
from exams import CONTEXT, CUSTOM, KNOWN, WORDS, write_exam


@pytest.fixture(scope="session")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exam of made-up questions in some of MMLU's subjects."""
    return write_exam(tmp_path_factory.mktemp("exam"), KNOWN)


@pytest.fixture(scope="session")
def mixed_exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exam of made-up questions in one of MMLU's subjects and in two others."""
    return write_exam(tmp_path_factory.mktemp("mixed"), ("anatomy", *CUSTOM))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random Llamas; the tokenizer of ``bos`` adds a BOS token, that of ``plain`` does not."""
    return {
        name: _write_checkpoint(tmp_path_factory.mktemp(name), seed, bos=name == "bos")
        for seed, name in enumerate(("bos", "plain"))
    }


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["bos"]


def _write_checkpoint(directory: Path, seed: int, *, bos: bool) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _train_tokenizer(bos)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.6,  # wide, so that answers depend on the question
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _train_tokenizer(bos: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompt = "The following are multiple choice questions (with answers) about. Answer:"
    # With BOS, the letters with their space are one token each; without it, two.
    letters = " A B C D" if bos else ""
    tokenizer.train_from_iterator([" ".join(WORDS), *[prompt + letters] * 9], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuse every connection; return the list of attempts."""
    tried: list[Any] = []

    def refuse(*address: Any) -> None:
        tried.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", lambda _socket, address: refuse(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_options: refuse(*address))
    return tried
