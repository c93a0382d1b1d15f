"""Tokenizers in GGUF files: known ones are recognized, and llama.cpp splits text equally."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hybridize import load_tokenizer
from hybridize.__main__ import main
from hybridize.errors import InputError
from hybridize.exporters.gguf.vocabulary import read_vocabulary
from tiny import write_stock, write_tokenizer

gguf = pytest.importorskip("gguf", reason="needs hybridize[gguf]")

# As Llama 3 and Qwen 2 publish them.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (
    "Once upon a time there were 12 small dogs, and they'd run 3456 miles!\n\nWe're here: it's "
    "the end... isn't it?  (No.)\tThe other 99 dogs don't mind; they sleep, eat and bark.\n"
) * 3
OTHER = 'äöüßéñ ΑΩλ доб 日本語 ½², _@#$%^&*[]{}<>/|~`+=-"\\🚀▁'
READABLE = st.text(st.sampled_from(sorted({*TEXT, *OTHER})), max_size=40)


def byte_level(*splits, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    steps = [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splits)]
    if splits and isinstance(splits[0], pre_tokenizers.Digits):
        steps[-1] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def sentencepiece(*, metaspace=False):
    """A BPE as Hugging Face converts SentencePiece's: the merges of a piece are adjacent."""
    pieces = ["▁t", "he", "▁the", "▁d", "og", "▁dog", "▁dogs", "in", "▁▁", "er", "▁there", "ing"]
    single = sorted({c for c in TEXT if c.isprintable() and c != " "} | {"▁"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces, *single]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


KNOWN = {
    "gpt-2": lambda: byte_level(),
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: byte_level(split(LLAMA3), ignore_merges=True),
    "qwen2": lambda: byte_level(split(QWEN2)),
    "default": lambda: sentencepiece(),
    "default, as Metaspace": lambda: sentencepiece(metaspace=True),
}


def save(tokenizer, directory, **special):
    directory.mkdir(exist_ok=True)
    special = {"bos_token": "<s>", "eos_token": "</s>"} | special
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


@pytest.fixture(scope="module", params=KNOWN)
def written(request, tmp_path_factory):
    """A checkpoint with a tokenizer, its file, and the rule's name."""
    directory = tmp_path_factory.mktemp("vocabulary")
    tokenizer = KNOWN[request.param]()
    rows = tokenizer.get_vocab_size() + 5  # embeddings are often larger than vocabularies
    write_stock(directory / "model", "granitemoehybrid", vocab_size=rows, bos_token_id=None)
    save(tokenizer, directory / "model")
    (directory / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    file = directory / "model.gguf"
    words = ["export", str(directory / "model"), "-o", str(file), "--to", "gguf", "--quiet"]
    assert main(words) == 0
    return directory / "model", file, request.param.partition(",")[0]


def test_the_file_contains_the_tokenizer(written):
    model, file, rule = written
    fields = gguf.GGUFReader(file).fields
    ours = load_tokenizer(model)

    def value(name):
        return fields[f"tokenizer.{name}"].contents()

    tokens, types = value("ggml.tokens"), value("ggml.token_type")
    assert value("ggml.pre") == rule
    assert value("ggml.model") == ("llama" if rule == "default" else "gpt2")
    assert [ours.convert_tokens_to_ids(token) for token in tokens[:-5]] == list(range(len(ours)))
    assert types[-5:] == [int(gguf.TokenType.UNUSED)] * 5
    assert types[tokens.index("<s>")] == types[tokens.index("</s>")] == gguf.TokenType.CONTROL
    assert types[tokens.index("e")] == gguf.TokenType.NORMAL
    if rule == "default":
        assert types[:4] == [2, 3, 3, 6]  # unknown, control, control, byte
        assert value("ggml.add_space_prefix")
    assert value("ggml.bos_token_id") == ours.bos_token_id
    assert value("ggml.eos_token_id") == ours.eos_token_id
    assert value("ggml.add_bos_token") == (ours("a").input_ids[0] == ours.bos_token_id)
    assert not value("ggml.add_eos_token")
    assert value("chat_template") == "{{ messages[0].content }}"


@pytest.fixture(scope="module")
def in_llama_cpp(written):
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    model, file, _ = written
    llama = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    yield llama, load_tokenizer(model)
    llama.close()


@given(text=READABLE)
@settings(max_examples=200)
def test_llama_cpp_splits_random_text_equally(in_llama_cpp, text):
    llama, ours = in_llama_cpp
    if isinstance(ours.backend_tokenizer.pre_tokenizer, pre_tokenizers.Metaspace):
        text = text.lstrip(" ▁")  # Metaspace adds no space before these; SentencePiece does
    expected = ours(text, add_special_tokens=False).input_ids
    assert llama.tokenize(text.encode(), add_bos=False, special=False) == expected


def test_llama_cpp_splits_prose_equally(in_llama_cpp):
    llama, ours = in_llama_cpp
    expected = ours(TEXT).input_ids
    assert llama.tokenize(TEXT.encode(), add_bos=True, special=False) == expected
    assert len(expected) < len(TEXT)  # something was merged


def rejected(directory, choice="auto", size=1000):
    with pytest.raises(InputError) as caught:
        read_vocabulary(directory, choice, size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_pre_tokenizers_are_rejected(tmp_path):
    others = [
        byte_level(split(LLAMA3)),  # Llama 3's pattern, but merges for whole words too
        byte_level(split(r"\w+|\W+")),
        byte_level(pre_tokenizers.Punctuation()),
    ]
    lowered = byte_level()
    lowered.normalizer = normalizers.Lowercase()
    spaced = byte_level()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for tokenizer in (*others, lowered, spaced):
        save(tokenizer, tmp_path / "model")
        assert "`tokenizer=NAME`" in rejected(tmp_path / "model")
    assert read_vocabulary(tmp_path / "model", "tekken", 1000).pre == "tekken"
    assert read_vocabulary(tmp_path / "model", "none", 1000).model == "none"


def test_tokenizers_that_llama_cpp_splits_differently_are_rejected(tmp_path):
    base = json.loads(sentencepiece().to_str())

    def changed(**fields):
        spec = json.loads(json.dumps(base))
        spec["model"] |= fields.pop("model", {})
        save(Tokenizer.from_str(json.dumps(spec | fields)), tmp_path / "model")
        return rejected(tmp_path / "model")

    merges, vocabulary = base["model"]["merges"], base["model"]["vocab"]
    # The only merge of ▁the is ▁t and he.
    kept = [merge for merge in merges if "".join(merge) != "▁the"]
    assert "no merge combines '▁t' and 'he' into '▁the'" in changed(model={"merges": kept})
    assert "are not adjacent" in changed(
        model={"vocab": vocabulary | {"▁do": 900}, "merges": [["▁d", "og"], ["▁", "▁"],
               ["▁d", "o"], ["▁do", "g"], *[m for m in merges if "".join(m) != "▁dog"]]}
    )  # fmt: skip
    assert "no normalizer Lowercase" in changed(normalizer={"type": "Lowercase"})
    assert "SentencePiece does not" in changed(normalizer=None)
    lacking = {token: number for token, number in vocabulary.items() if token != "<0x7F>"}
    assert "no token <0x7F>" in changed(model={"vocab": lacking})
    around = TemplateProcessing(
        single="<s> <s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = sentencepiece()
    save(tokenizer, tmp_path / "model")
    assert "a SentencePiece tokenizer; leave the option out" in rejected(
        tmp_path / "model", "gpt-2"
    )
    tokenizer.post_processor = around
    save(tokenizer, tmp_path / "model")
    assert "one token before and one after" in rejected(tmp_path / "model")


def test_missing_and_other_tokenizers(tmp_path):
    assert "no tokenizer.json; `tokenizer=none`" in rejected(tmp_path)
    write_tokenizer(tmp_path)  # words of single letters: nothing to merge
    assert "no pre-tokenizer of llama.cpp" in rejected(tmp_path)
    assert "has no merges" in rejected(tmp_path, "gpt-2")
    assert "the token id 63, but the embedding has 10 rows" in rejected(tmp_path, size=10)
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, "<s>"))
    save(words, tmp_path)
    assert "it is a WordLevel model, not BPE" in rejected(tmp_path)


def test_a_real_sentencepiece_vocabulary(materials):
    vocabulary = read_vocabulary(materials / "stories260K", "auto", 512)
    assert (vocabulary.model, vocabulary.pre, vocabulary.space_first) == ("llama", "default", True)
    assert vocabulary.special.add_special_token == {"bos": True, "eos": False}
