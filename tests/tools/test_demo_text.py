"""The text that the demo trains on and measures perplexity on."""

import gzip
from pathlib import Path

from hybridize.demo import PROSE, TEXT
from tools.bundled_checkpoint.demo_text import write_demo_text


def test_shipped_text_can_be_generated_again(tmp_path: Path) -> None:
    text, prose = tmp_path / "train.jsonl.gz", tmp_path / "held-out.txt"
    write_demo_text(text, prose)
    # The compressed bytes depend on the version of zlib.
    assert gzip.decompress(text.read_bytes()) == gzip.decompress(TEXT.read_bytes())
    assert prose.read_bytes() == PROSE.read_bytes()
