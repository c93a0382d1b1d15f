"""The tokenizer of the bundled checkpoint: whole words of the world, bytes for other text."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"


def build_tokenizer(texts: Iterable[str], max_length: int) -> "PreTrainedTokenizerFast":
    """Build a byte-level BPE tokenizer in which each word of ``texts`` is one token.

    A word outside the vocabulary is encoded as bytes, so any text encodes and decodes without
    loss. With ``ignore_merges``, whole words need no merges, whose fragments would otherwise fill
    most of a small vocabulary.

    Args:
        texts: the texts whose words become tokens, without special tokens.
        max_length: maximum sequence length of the model, in tokens.

    Returns:
        A tokenizer that adds ``<s>`` before a text, as Llama's does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
    byte_tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted(word for word in counts if len(word) > 1)
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, PAD, *byte_tokens, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
