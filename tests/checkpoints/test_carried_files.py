"""What transformers and a redistributor need goes along to a result; nothing else does."""

import base64
import json
import re
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer
from transformers.integrations.mistral.constants import TEKKEN_VOCAB_FILE
from transformers.utils import (
    AUDIO_TOKENIZER_NAME,
    CHAT_TEMPLATE_FILE,
    FEATURE_EXTRACTOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
)

from disk import snapshot
from hybridize import convert, prune, quantize
from hybridize.checkpoints.carried_files import (
    copied_files,
    is_carried,
    is_tokenizer_file,
    left_behind,
)
from tiny import write_stock, write_tokenizer

CARRIED = (
    "tekken.json", "tokenizer.model.v3", "tokenizer.4.0.json", "qwen.tiktoken", "tiktoken.model",
    "source.spm", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/rag.jinja",
    "LICENSE", "LICENCE.md", "license.txt", "Notice", "NOTICE.txt", "USE_POLICY.md", "COPYING",
    "LICENSES/MIT.txt", "Llama-License.pdf", "THIRD_PARTY_NOTICES.txt", "SYSTEM_PROMPT.txt",
)  # fmt: skip
LEFT = (
    "README.md", "config.json", "params.json", "model.safetensors", "tokenizer.bin", "license.py",
    "tokenization_x.py", "tokenizer.gguf", ".license", "onnx/tokenizer.json", "vocab.h5",
    "original/tokenizer.model", "additional_chat_templates/x/y.jinja", "trainer_state.json",
    "tokenizer.model.index.json",
)  # fmt: skip


def names_in_transformers() -> set[str]:
    """Return the files of vocabularies in transformers' sources: importing them takes 10 s."""
    found = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/tokenization_*.py"):
        for block in re.findall(r"VOCAB_FILES_NAMES\s*=\s*\{(.*?)\}", path.read_text(), re.DOTALL):
            found |= set(re.findall(r':\s*"([^"]+)"', block))
    return found


def test_the_files_of_every_tokenizer_class_are_carried():
    names = names_in_transformers()
    assert {"vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"} <= names
    assert [name for name in sorted(names) if not is_tokenizer_file(name)] == []
    assert is_tokenizer_file(TEKKEN_VOCAB_FILE)


@pytest.mark.parametrize(
    "name",
    [
        AUDIO_TOKENIZER_NAME,
        CHAT_TEMPLATE_FILE,
        FEATURE_EXTRACTOR_NAME,
        LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
        PROCESSOR_NAME,
        VIDEO_PROCESSOR_NAME,
        *CARRIED,
    ],
)
def test_carried(name):
    assert is_carried(name)


@pytest.mark.parametrize("name", LEFT)
def test_left(name):
    assert not is_carried(name)


def test_every_command_that_writes_a_checkpoint_carries_them(tmp_path):
    source = tmp_path / "source"
    write_stock(source, "llama")
    write_tokenizer(source)
    for number, name in enumerate(CARRIED):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"%d\r\n" % number)
    expected = {path.relative_to(source): path.read_bytes() for path in copied_files(source)}
    assert {Path(name) for name in CARRIED} < set(expected)
    text = tmp_path / "text.txt"
    text.write_text("abcd" * 400)
    before = snapshot(source)
    convert(source, tmp_path / "converted", attention=1)
    quantize(source, tmp_path / "quantized", scheme="fp8")
    prune(source, tmp_path / "pruned", params="90%", calibration=str(text))
    for name in ("converted", "quantized", "pruned"):
        carried = {path: (tmp_path / name / path).read_bytes() for path in expected}
        assert carried == expected, name
    assert snapshot(source) == before


def test_a_file_that_looks_like_a_tokenizer_is_named(tmp_path, capsys):
    source = tmp_path / "source"
    write_stock(source, "llama")
    convert(source, tmp_path / "plain", attention=1)
    assert "not copied" not in capsys.readouterr().err
    (source / "tokenization_mine.py").write_text("")
    (source / "my_vocabulary.bpe").write_text("")
    (source / "README.md").write_text("")
    convert(source, tmp_path / "output", attention=1)
    assert left_behind(source) == ["my_vocabulary.bpe", "tokenization_mine.py"]
    assert (
        f"note: {source}: not copied to the result: my_vocabulary.bpe and 1 more (hybridize does "
        "not know it; copy it yourself if it is needed)\n"
    ) in capsys.readouterr().err


def test_a_tokenizer_of_mistral_works_in_the_result(tmp_path):
    source = tmp_path / "source"
    write_stock(source, "mistral")
    pieces = [bytes([value]) for value in range(256)] + [b"th", b"he"]
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for rank, piece in enumerate(pieces)
    ]
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    content = {
        "config": {
            "pattern": r"[^\r\n\p{L}\p{N}]?[\p{L}]+|\p{N}|\s+",
            "num_vocab_tokens": len(vocabulary),
            "default_vocab_size": len(vocabulary) + len(special),
            "default_num_special_tokens": len(special),
            "version": "v7",
        },
        "vocab": vocabulary,
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(special)
        ],
    }
    (source / "tekken.json").write_text(json.dumps(content))
    convert(source, tmp_path / "output", attention=1)
    ids = [AutoTokenizer.from_pretrained(d)("the").input_ids for d in (source, tmp_path / "output")]
    assert ids[0] == ids[1]
    assert len(ids[0]) > 1
