"""Error messages are one printable line, whatever text they quote."""

from hypothesis import example, given
from hypothesis import strategies as st

from hybridize.errors import HybridizeError, InputError


@given(quoted=st.text())
@example(quoted="two\nlines\r\x1b[31m\u2028 and \ud800 half a character")
def test_messages_are_one_printable_line(quoted):
    for error in (HybridizeError, InputError):
        text = str(error(f"config.json: {quoted!s}: not a number"))
        assert text.isprintable()
        text.encode()


def test_printable_messages_do_not_change():
    assert str(InputError("größe.json: ‘日本’ \\n: no")) == "größe.json: ‘日本’ \\n: no"


def test_long_messages_lose_their_middle():
    text = str(InputError(f"config.json: {'x' * 10_000}: not a number"))
    assert len(text) < 1000
    assert text.startswith("config.json: xxx")
    assert text.endswith("xxx: not a number")
