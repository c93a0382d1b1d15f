import pytest

from hybridize.units import duration_in_words, size_in_words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_short_to_read(seconds, text):
    assert duration_in_words(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"),
     (2**30, "1.0 GiB"), (5 * 2**42, "20.0 TiB")],
)  # fmt: skip
def test_sizes_have_powers_of_1024(size, text):
    assert size_in_words(size) == text
