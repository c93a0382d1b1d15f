"""Numbers, durations and sizes as text."""

import pytest

from hybridize.units import duration_in_words, short_number, size_in_words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_short_to_read(seconds, text):
    assert duration_in_words(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0"), (32.34, "32.3"), (99.9, "99.9"), (100.4, "100"), (64_024.7, "64,025"),
     (999_999, "999,999"), (64_024_094.7, "64.0M"), (1.26e9, "1.3G"), (2e12, "2.0T")],
)  # fmt: skip
def test_large_numbers_are_short_to_read(value, text):
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"),
     (2**30, "1.0 GiB"), (5 * 2**42, "20.0 TiB")],
)  # fmt: skip
def test_sizes_have_powers_of_1024(size, text):
    assert size_in_words(size) == text
