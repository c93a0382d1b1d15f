"""`verify` reports all problems of a checkpoint at once."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridize
from hybridize.__main__ import main
from hybridize.errors import InputError
from tiny import write_stock

Damage = Callable[[Path], None]


def in_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    """Change tensors with the safetensors library."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return damage


def in_config(**fields: object) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def in_file(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@torch.no_grad()
def set_value(tensors: dict[str, torch.Tensor], name: str, value: float) -> None:
    tensors[name].view(-1)[-1] = value


NORM, GATE = "model.norm.weight", "model.layers.0.shared_mlp.output_linear.weight"
CHANGED = r"{} was changed after it was written: its SHA-256 differs"
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "a bit of the weights": (
        in_file("model.safetensors", flip_last_bit),
        [CHANGED.format(r"model\.safetensors")],
    ),
    "a tokenizer file": (
        in_file("tokenizer.json", lambda _: b"{ }"),
        [r"tokenizer\.json has 3 bytes; hybridize\.json says 2"],
    ),
    "a tokenizer file of the same length": (
        in_file("tokenizer.json", lambda _: b"[]"),
        [CHANGED.format(r"tokenizer\.json")],
    ),
    "a missing file": (
        lambda directory: (directory / "tokenizer.json").unlink(),
        [r"tokenizer\.json is missing; hybridize\.json lists it"],
    ),
    "NaN": (
        in_weights(lambda tensors: set_value(tensors, NORM, torch.nan)),
        [rf"tensor '{NORM}' has NaN or infinity", CHANGED.format(r"model\.safetensors")],
    ),
    "infinity": (
        in_weights(lambda tensors: set_value(tensors, GATE, -torch.inf)),
        [rf"tensor '{GATE}' has NaN or infinity", CHANGED.format(r"model\.safetensors")],
    ),
    "a shape": (
        in_weights(lambda tensors: tensors.update({NORM: torch.ones(31)})),
        [
            rf"tensor '{NORM}' has shape \[31\]; config\.json implies \[32\]",
            r"model\.safetensors has \d+ bytes; hybridize\.json says \d+",
        ],
    ),
    "a dtype": (
        in_weights(lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int32)})),
        [rf"tensor '{NORM}' has dtype int32; weights are", CHANGED.format(r"model\.safetensors")],
    ),
    "a missing tensor": (
        in_weights(lambda tensors: tensors.pop(NORM)),
        [rf"tensor '{NORM}' is missing", r"model\.safetensors has \d+ bytes"],
    ),
    "an extra tensor": (
        in_weights(lambda tensors: tensors.update({"stray": torch.ones(1)})),
        ["tensor 'stray' is not part of", r"model\.safetensors has \d+ bytes"],
    ),
    "other sizes in config.json": (
        in_config(vocab_size=65),
        [
            r"tensor 'model\.embed_tokens\.weight' has shape \[64, 32\].*implies \[65, 32\]",
            r"tensor 'lm_head\.weight' has shape",
            r"config\.json (has \d+ bytes|was changed)",
        ],
    ),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """The output of a conversion, with a tokenizer file and a provenance record."""
    root = tmp_path_factory.mktemp("verify")
    write_stock(root / "in", "llama")
    (root / "in" / "tokenizer.json").write_text("{}")
    hybridize.convert(root / "in", root / "out", attention=2)
    return root / "out"


@pytest.fixture
def checkpoint(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def matches(problems: tuple[str, ...], patterns: list[str]) -> bool:
    """Return whether every problem matches a pattern, and every pattern a problem."""
    return len(problems) == len(patterns) and all(
        any(re.match(pattern, problem) for problem in problems) for pattern in patterns
    )


def test_a_sound_checkpoint_has_no_problems(checkpoint, capsys):
    report = hybridize.verify(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    assert report.problems == ()
    assert (report.files, report.tensors, report.records) == (1, len(tensors), 1)
    assert report.bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert any("SHA-256" in check for check in report.checks)
    assert main(["verify", str(checkpoint)]) == 0
    assert capsys.readouterr().err == f"no problems: {checkpoint}\n"


def test_hashes_are_checked_only_if_they_are_recorded(tmp_path):
    write_stock(tmp_path, "qwen2", shard="20KB")
    report = hybridize.verify(tmp_path)
    assert report.problems == ()
    assert report.files > 2
    assert report.records == 0
    assert not any("SHA-256" in check for check in report.checks)


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_reported(checkpoint, capsys, what):
    damage, patterns = DAMAGES[what]
    damage(checkpoint)
    problems = hybridize.verify(checkpoint).problems
    assert matches(problems, patterns), problems
    assert main(["verify", str(checkpoint)]) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert lines == [f"error: {problem}" for problem in problems]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    assert last == f"error: {checkpoint}: {count}"


def test_all_damage_is_reported_at_once(checkpoint):
    for what in ("NaN", "a shape", "a missing file", "an extra tensor"):
        if what == "a shape":  # of a tensor other than the one with NaN
            in_weights(lambda tensors: tensors.update({GATE: torch.ones(2)}))(checkpoint)
        else:
            DAMAGES[what][0](checkpoint)
    problems = hybridize.verify(checkpoint).problems
    patterns = [
        rf"tensor '{NORM}' has NaN",
        rf"tensor '{GATE}' has shape \[2\]",
        "tensor 'stray' is not part of",
        r"tokenizer\.json is missing",
        r"model\.safetensors has \d+ bytes",
    ]
    assert matches(problems, patterns), problems


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        (torch.float32, 0.0, []),
        (torch.bfloat16, 0.0, ["tensor 'lm_head.weight' differs"]),
        (torch.float32, 1.0, ["tensor 'lm_head.weight' differs"]),
    ],
)
def test_a_stored_tied_head_must_equal_the_embedding(tmp_path, dtype, value, expected):
    write_stock(tmp_path, "llama", tie_word_embeddings=True)

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = (tensors["model.embed_tokens.weight"] + value).to(dtype)

    in_weights(add_head)(tmp_path)
    problems = hybridize.verify(tmp_path).problems
    assert len(problems) == len(expected)
    assert all(p.startswith(e) for p, e in zip(problems, expected, strict=True))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "lists no files"),
        ([], "lists no files"),
        ({"../in/config.json": {}}, "is invalid"),
        ({"/etc/passwd": {}}, "is invalid"),
        ({"config.json": 7}, "is invalid"),
    ],
)
def test_invalid_provenance_is_an_input_error(checkpoint, files, reason):
    path = checkpoint / "hybridize.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": files}))
    with pytest.raises(InputError, match=rf"hybridize\.json: .*{reason}"):
        hybridize.verify(checkpoint)


def test_a_recorded_name_that_no_file_can_have_is_missing(checkpoint):
    path = checkpoint / "hybridize.json"
    record = json.loads(path.read_text())
    record["files"] = {"x" * 300: {"bytes": 1}}
    path.write_text(json.dumps(record))
    (problem,) = hybridize.verify(checkpoint).problems
    assert "is missing" in problem
