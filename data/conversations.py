"""Conversations and completions: what a row of training text contains beside plain text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridize.errors import InputError

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
"""The roles of messages. Templates often drop or mislabel messages of other roles silently."""

_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class Conversation:
    """Messages that a chat template renders.

    Attributes:
        where: the row in the words of an error message.
        messages: ``role``, ``content``, and what else the chat template reads.
        prompt: the number of first messages that are the prompt; None if the row does not say.
        tools: descriptions of tools for the chat template; None if there are none.
        options: other variables of the chat template.
    """

    where: str
    messages: list[dict[str, Any]]
    prompt: int | None = None
    tools: list[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(message.get("content") or "") for message in self.messages)


@dataclass(frozen=True)
class Completion:
    """A plain text in two parts.

    Attributes:
        where: the row in the words of an error message.
        prompt, completion: the parts.
    """

    where: str
    prompt: str
    completion: str

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


Document = str | Conversation | Completion


def read_messages(values: Any, where: str, first: int = 1) -> list[dict[str, Any]]:
    """Return messages with the fields ``role`` and ``content``.

    A message has these fields, or those of ShareGPT, ``from`` and ``value``.

    Args:
        values: a list of messages.
        where: the row in the words of an error message.
        first: the number of the first message, for error messages.

    Raises:
        InputError: a message is malformed.
    """
    if not isinstance(values, list):
        raise InputError(f"{where}: the messages are not a list, but {_type_name(values)}")
    return [_message(value, f"{where}: message {n}") for n, value in enumerate(values, first)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is not an object, but {_type_name(value)}")
    message = {key: without_nulls(each) for key, each in value.items() if each is not None}
    if "role" not in message and "from" in message:
        sender = message.pop("from")
        message["role"] = _SHAREGPT_ROLES.get(sender, sender) if isinstance(sender, str) else sender
        if "content" not in message and "value" in message:
            message["content"] = message.pop("value")
    role = message.get("role")
    if not isinstance(role, str):
        raise InputError(f"{where}: has no 'role' that is a string")
    if role not in ROLES:
        known = ", ".join((*ROLES, *_SHAREGPT_ROLES))
        raise InputError(f"{where}: the role {role!r} is unknown; use one of {known}")
    calls = message.get("tool_calls")
    if calls == []:  # as in columns where other rows have calls
        del message["tool_calls"]
    elif calls is not None and (
        not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)
    ):
        raise InputError(f"{where}: its 'tool_calls' are not a list of objects")
    content = _content(message, where)
    return message if content is None else message | {"content": content}


def _content(message: dict[str, Any], where: str) -> str | None:
    """Return the text of a message; None if it has only calls of tools."""
    role, content = message["role"], message.get("content")
    calls = role == "assistant" and message.get("tool_calls")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None and calls:
        return None
    if not isinstance(content, str):
        found = "missing" if content is None else _type_name(content)
        raise InputError(f"{where}: its content is not a string, but {found}")
    if role == "assistant" and not calls and not content.strip():
        raise InputError(f"{where}: the answer is empty")
    return content


def _part(part: Any, where: str) -> str:
    """Return the text of one part of a message. Many templates cannot render parts."""
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else _type_name(part)
    raise InputError(f"{where}: its content has a part that is not text ({kind})")


def without_nulls(value: Any) -> Any:
    """Return a value without null fields, which Parquet adds where other rows have the field."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
