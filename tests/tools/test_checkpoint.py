"""The bundled checkpoint: its files, tokenizer, score and model card."""

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hybridize.demo import CHECKPOINT, EXAM
from tools.bundled_checkpoint.card import model_card
from tools.bundled_checkpoint.score import perplexity, score
from tools.bundled_checkpoint.settings import Settings
from tools.bundled_checkpoint.texts import generate_prose
from tools.bundled_checkpoint.trainer import training_tokenizer
from tools.bundled_checkpoint.world import RECALL_SUBJECTS, SUBJECTS, World

_ROW = re.compile(r"^\| (\S.*?) \| ([\d.]+)% \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def test_directory_is_small_and_has_no_pickle() -> None:
    files = list(CHECKPOINT.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4 * 2**20
    assert {file.suffix for file in files} == {".json", ".md", ".safetensors"}


def test_architecture() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] == 8
    assert config["num_attention_heads"] * config["head_dim"] == config["hidden_size"]
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "bfloat16"


def test_tokenizer_can_be_built_again(tokenizer) -> None:  # type: ignore[no-untyped-def]
    built = training_tokenizer(World())
    assert tokenizer.get_vocab() == built.get_vocab()
    text = "The owner of the lantern is Zoe. 你好\nAnswer: A"
    assert tokenizer.encode(text) == built.encode(text)


def test_accuracy_on_part_of_the_exam(model: PreTrainedModel, tokenizer) -> None:  # type: ignore[no-untyped-def]
    accuracy = score(model, tokenizer, EXAM, limit=8)
    assert set(accuracy) == {*SUBJECTS, "all"}
    assert accuracy["all"] >= 0.85
    assert sum(accuracy[subject] for subject in RECALL_SUBJECTS) / len(RECALL_SUBJECTS) >= 0.8


def test_perplexity_is_low_on_prose_and_high_on_sorted_words(
    model: PreTrainedModel, tokenizer
) -> None:  # type: ignore[no-untyped-def]
    prose = generate_prose(World(), 1, 18)
    assert perplexity(model, tokenizer, prose) < 6
    words = prose.split(" ")
    assert perplexity(model, tokenizer, " ".join(sorted(words))) > 6


def test_model_card_matches_its_template() -> None:
    card = (CHECKPOINT / "README.md").read_text(encoding="utf-8")
    accuracy = {name: float(percent) / 100 for name, percent in _ROW.findall(card)}
    accuracy["all"] = accuracy.pop("**all**")
    accuracy.pop("**recall subjects together**")
    assert set(accuracy) == {*SUBJECTS, "all"}
    (perplexity,) = re.findall(r"held-out prose: ([\d.]+)\.", card)
    (settings,) = re.findall(r"```json\n(.*)\n```", card)
    assert settings == Settings().to_json()
    assert card == model_card(settings, 1_300_000, accuracy, float(perplexity))
    assert "license: apache-2.0" in card
