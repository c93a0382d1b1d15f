"""Recognize what a row of training text contains: a text, a conversation, or a completion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridize.data.conversations import (
    Completion,
    Conversation,
    Document,
    read_messages,
    without_nulls,
)
from hybridize.errors import InputError
from hybridize.file_names import is_utf8

_CONTENTS = {
    "text": ("text",),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
}
"""The columns that each kind of content needs."""

_BESIDE = ("tools", "system", "chat_template_kwargs")
COLUMNS = ("text", "messages", "conversations", "prompt", "completion", *_BESIDE)
"""All columns that are read, by their usual names."""


def parse_column(given: str) -> tuple[str, str]:
    """Return the usual name of a column, and its name in the data.

    Args:
        given: ``NAME=COLUMN``.

    Raises:
        ValueError: the text is something else.
    """
    name, separator, column = given.partition("=")
    if not separator or not column or name not in COLUMNS:
        raise ValueError(f"give NAME=COLUMN, where NAME is one of {', '.join(COLUMNS)}")
    return name, column


def check_columns(columns: Sequence[str]) -> None:
    """Check the option ``data_column``, see `parse_column`.

    Raises:
        InputError: one of the texts is malformed, or two are about the same column.
    """
    names = []
    for given in columns:
        try:
            names.append(parse_column(given)[0])
        except ValueError as error:
            raise InputError(f"`data_column={given}`: {error}") from None
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"`data_column`: {name} has several columns; give one")


@dataclass(frozen=True)
class RowOptions:
    """How the rows of training text are read.

    Attributes:
        columns: ``NAME=COLUMN`` each, see `parse_column`; None where the user cannot choose.
        loss_on: ``all``, ``completion`` or ``assistant``, see `ChatTokenizer`.
        skip_bad: whether malformed rows are left out.
    """

    columns: Sequence[str] | None = None
    loss_on: str = "all"
    skip_bad: bool = False

    def settings(self) -> dict[str, Any]:
        """Return the options that are not the defaults, as JSON values."""
        values = {"columns": list(self.columns or ()), "skip_bad": self.skip_bad}
        if self.loss_on != "all":
            values["loss_on"] = self.loss_on
        return {name: value for name, value in values.items() if value}


DEFAULT_ROWS = RowOptions()


class RowReader:
    """Turns rows into documents, and counts the malformed rows that are left out.

    Args:
        options: how to read them.

    Attributes:
        names: the name of each column in the data, by its usual name.
    """

    def __init__(self, options: RowOptions = DEFAULT_ROWS) -> None:
        given = dict(map(parse_column, options.columns or ()))
        self.names = {name: given.get(name, name) for name in COLUMNS}
        self._chosen = set(given)
        self._can_choose = options.columns is not None
        self._skip = options.skip_bad
        self._skipped = set[str]()
        self._first = ""

    def read(self, row: Any, where: str) -> Document | None:
        """Return the content of a row; None if the row is malformed and left out.

        Args:
            row: a mapping from columns to values.
            where: the row in the words of an error message.

        Raises:
            InputError: the row is malformed, and such rows are not left out.
        """
        try:
            return self._read(row, where)
        except InputError as error:
            self.skip(error, where)
            return None

    def skip(self, error: InputError, where: str) -> None:
        """Count a malformed row.

        Raises:
            InputError: malformed rows are not left out.
        """
        if not self._skip:
            raise error
        self._first = self._first or str(error)
        self._skipped.add(where)  # a source may be read several times

    def note(self) -> str | None:
        """Return how many rows were left out, and why the first was; None if there are none."""
        count = len(self._skipped)
        if not count:
            return None
        rows = "1 malformed row was" if count == 1 else f"{count:,} malformed rows were"
        return f"{rows} skipped; the first: {self._first}"

    def size(self, row: Any) -> int:
        """Return the approximate number of characters of a row's content."""
        if not isinstance(row, Mapping):
            return 0
        return sum(len(str(row[n])) for n in self.names.values() if row.get(n) is not None)

    def check_columns(self, names: Sequence[str], where: str) -> list[str]:
        """Return which columns of a table are read.

        Raises:
            InputError: there is no content among them.
        """
        if not any(set(map(self.names.get, each)) <= set(names) for each in _CONTENTS.values()):
            contents = [c for each in _CONTENTS.values() for c in each]
            known = ", ".join(repr(self.names[column]) for column in contents)
            raise InputError(
                f"{where}: has no column {known}{self._advice('text=COLUMN')}; "
                f"its columns are {', '.join(names)}"
            )
        return [name for name in self.names.values() if name in names]

    def _read(self, row: Any, where: str) -> Document:
        kind = self._kind(row, where)
        if kind == "text":
            return self._text(row, "text", where)
        if kind == "prompt and completion":
            return self._completion(row, where)
        messages = read_messages(row[self.names[kind]], where)
        return self._conversation(row, messages, None, where)

    def _kind(self, row: Any, where: str) -> str:
        """Return the only kind of content that a row has.

        Columns that the user has named take precedence.
        """
        row = row if isinstance(row, Mapping) else {}
        found = [
            kind
            for kind, columns in _CONTENTS.items()
            if all(row.get(self.names[column]) is not None for column in columns)
        ]
        chosen = [kind for kind in found if self._chosen & set(_CONTENTS[kind])]
        found = chosen or found
        if len(found) > 1:
            raise InputError(
                f"{where}: has {' as well as '.join(found)}; "
                + (
                    f"choose with `data_column={_CONTENTS[found[-1]][0]}="
                    f"{self.names[_CONTENTS[found[-1]][0]]}`"
                    if self._can_choose
                    else "keep one of them"
                )
            )
        if not found:
            text = self.names["text"]
            others = ", ".join(repr(self.names[name]) for name in ("messages", "conversations"))
            pair = f"{self.names['prompt']!r} with {self.names['completion']!r}"
            raise InputError(
                f"{where}: {text!r} is missing or not a string, and there is no {others}, "
                f"or {pair}{self._advice('text=COLUMN')}"
            )
        return found[0]

    def _advice(self, example: str) -> str:
        return f" (`data_column={example}` names another column)" if self._can_choose else ""

    def _text(self, row: Any, name: str, where: str) -> str:
        text, column = row.get(self.names[name]), self.names[name]
        if not isinstance(text, str):
            raise InputError(f"{where}: {column!r} is missing or not a string")
        if not is_utf8(text):  # JSON allows "\ud800", which no tokenizer accepts
            raise InputError(f"{where}: {column!r} contains half of a surrogate pair")
        return text

    def _completion(self, row: Any, where: str) -> Document:
        prompt, completion = (row[self.names[name]] for name in ("prompt", "completion"))
        if isinstance(prompt, str) and isinstance(completion, str):
            prompt, completion = (self._text(row, n, where) for n in ("prompt", "completion"))
            if not completion.strip():
                raise InputError(f"{where}: {self.names['completion']!r} is empty")
            return Completion(where, prompt, completion)
        if isinstance(prompt, str) or isinstance(completion, str):
            raise InputError(
                f"{where}: one of {self.names['prompt']!r} and {self.names['completion']!r} is a "
                "string and the other is not; give two strings, or two lists of messages"
            )
        messages = read_messages(prompt, where)
        answer = read_messages(completion, where, len(messages) + 1)
        if not answer:
            raise InputError(f"{where}: {self.names['completion']!r} is empty")
        return self._conversation(row, messages + answer, len(messages), where)

    def _conversation(
        self, row: Any, messages: list[dict[str, Any]], prompt: int | None, where: str
    ) -> Conversation:
        if not messages:
            raise InputError(f"{where}: the conversation has no messages")
        system = row.get(self.names["system"])
        if system is not None and not isinstance(system, str):
            raise InputError(f"{where}: {self.names['system']!r} is not a string")
        if system and system.strip():
            if messages[0]["role"] == "system":
                raise InputError(
                    f"{where}: has a system message and a column {self.names['system']!r}; "
                    "keep one of them"
                )
            messages = [{"role": "system", "content": system}, *messages]
            prompt = None if prompt is None else prompt + 1
        tools = self._parsed(row, "tools", list, where)
        options = self._parsed(row, "chat_template_kwargs", dict, where)
        return Conversation(where, messages, prompt, tools or None, options or {})

    def _parsed(self, row: Any, name: str, wanted: type, where: str) -> Any:
        """Return the value of a column, which may be JSON as text."""
        value = row.get(self.names[name])
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{where}: {self.names[name]!r} is not valid JSON: {error}"
                ) from error
        if value is not None and value != "" and not isinstance(value, wanted):
            kind = "a list" if wanted is list else "an object"
            raise InputError(f"{where}: {self.names[name]!r} is not {kind}")
        return without_nulls(value)
