"""Tokenize conversations with the tokenizer's chat template, and find the tokens to learn.

The answers are where the template's ``{% generation %}`` marks say. Without marks, the conversation
is rendered up to each answer and up to its end, and the answer is what the second text has more.
Both ways are checked: every text must be a beginning of the whole conversation, and its tokens must
be the first tokens of the whole conversation. A conversation that fails a check is refused.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridize.data.conversations import Completion, Conversation
from hybridize.errors import HybridizeError, InputError, first_line
from hybridize.file_names import is_utf8

LOSS_ON = ("all", "completion", "assistant")

_MARKS = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_BEGIN, _END = "\ufdd0", "\ufdd1"  # no text has these code points
_BORDERS = re.compile(f"([{_BEGIN}{_END}])")
_SHOWN = 20  # characters of a rendered text in an error message

Span = tuple[int, int]
"""The begin and the end of an answer, in characters."""


class ChatTokenizer:
    """Turns conversations and completions into tokens.

    Args:
        tokenizer: a tokenizer of transformers.
        model: its directory, for error messages.
        loss_on: the tokens that are learned. ``all``; ``completion``: what follows the prompt,
            which is all but the last message if the row does not say; or ``assistant``: all
            messages of the assistant, outside the prompt if the row says what that is. An answer
            includes what the template writes to end it.
    """

    def __init__(self, tokenizer: Any, model: Path, loss_on: str = "all") -> None:
        self._tokenizer, self._model, self._loss_on = tokenizer, model, loss_on

    def check_template(self) -> None:
        """Check that the tokenizer can render conversations.

        Raises:
            InputError: it has no chat template.
            HybridizeError: the package for templates is missing or too old.
        """
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError(
                f"{self._model}: its tokenizer has no chat template, which conversations need; "
                "add the file chat_template.jinja, or give plain text"
            )
        try:
            self._tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        except ImportError as error:
            raise HybridizeError(f"chat templates: {first_line(error)}") from error
        except Exception:  # the template may need other messages
            return

    def tokens(self, document: Conversation | Completion) -> tuple[list[int], list[bool] | None]:
        """Return token ids, and which of them are learned; None for all.

        Raises:
            InputError: the document cannot be tokenized, or the answers cannot be found exactly.
        """
        if isinstance(document, Completion):
            return self._completion(document)
        text = self._render(document, len(document.messages))
        if not text:
            raise InputError(f"{document.where}: the chat template renders nothing")
        self._check_complete(document, text)
        ids = self._ids([text])[0]
        if self._loss_on == "all":
            return ids, None
        return ids, self._mask(document, text, ids, self._spans(document, text))

    def _completion(self, document: Completion) -> tuple[list[int], list[bool] | None]:
        eos = self._tokenizer.eos_token_id
        text = document.prompt + document.completion
        ids, prompt = self._tokenizer([text, document.prompt], verbose=False).input_ids
        if eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        elif (
            eos is not None
            and prompt[-1:] == [eos]
            and not document.prompt.endswith(self._tokenizer.eos_token)
        ):
            prompt.pop()  # the tokenizer ends every text with it
        if self._loss_on == "all":
            return ids, None
        if ids[: len(prompt)] != prompt:
            raise InputError(
                f"{document.where}: the tokenizer joins the end of the prompt and the beginning of "
                f"the completion ({document.prompt[-_SHOWN:]!r} and "
                f"{document.completion[:_SHOWN]!r}) into one token; move white space from the end "
                "of prompts to the beginning of completions, or use `loss_on=all`"
            )
        return ids, [index >= len(prompt) for index in range(len(ids))]

    def _render(
        self,
        document: Conversation,
        count: int,
        *,
        prompt: bool = False,
        tools: bool = True,
        template: str | None = None,
    ) -> str:
        """Return the first messages as text, with the beginning of an answer if ``prompt``."""
        try:
            text = self._tokenizer.apply_chat_template(
                document.messages[:count],
                tools=document.tools if tools else None,
                chat_template=template,
                add_generation_prompt=prompt,
                tokenize=False,
                **document.options,
            )
        except Exception as error:  # templates raise errors of any type
            part = "it" if count == len(document.messages) else f"its first {count} messages"
            raise InputError(
                f"{document.where}: the chat template cannot render {part}: {first_line(error)}"
            ) from error
        if not is_utf8(text):
            raise InputError(f"{document.where}: contains half of a surrogate pair")
        return str(text)

    def _check_complete(self, document: Conversation, text: str) -> None:
        """Check that the template leaves out nothing but parts of answers.

        Raises:
            InputError: a message or the tools are not in the text.
        """
        for number, message in enumerate(document.messages, 1):
            content = message.get("content", "").strip()
            if message["role"] in ("system", "developer", "user") and content not in text:
                raise InputError(
                    f"{document.where}: the chat template leaves out or changes message {number} "
                    f"(role {message['role']!r}); give its text in another message"
                )
        if document.tools and text == self._render(document, len(document.messages), tools=False):
            raise InputError(
                f"{document.where}: the chat template leaves out the tools; describe them in the "
                "system message, or use another template"
            )

    def _spans(self, document: Conversation, text: str) -> list[Span]:
        """Return where the answers are in the text of the whole conversation."""
        messages, prompt = document.messages, document.prompt
        if self._loss_on == "completion":
            if prompt is None and messages[-1]["role"] != "assistant":
                raise InputError(
                    f"{document.where}: the last message is not the assistant's, so there is no "
                    "completion; `loss_on=assistant` uses earlier answers"
                )
            count = len(messages) - 1 if prompt is None else prompt
            return [(self._length(document, count, text, prompt=True), len(text))]
        answers = [
            index
            for index, message in enumerate(messages)
            if message["role"] == "assistant" and index >= (prompt or 0)
        ]
        if not answers:
            raise InputError(
                f"{document.where}: there is no message of the assistant to learn; "
                "`loss_on=all` learns all messages"
            )
        if _MARKS.search(str(self._tokenizer.get_chat_template(tools=document.tools))):
            return self._marked(document, text, answers)
        return [
            (
                self._length(document, index, text, prompt=True),
                self._length(document, index + 1, text),
            )
            for index in answers
        ]

    def _length(
        self, document: Conversation, count: int, text: str, *, prompt: bool = False
    ) -> int:
        """Return the length of the first messages as text."""
        if count == len(document.messages) and not prompt:
            return len(text)
        if not count:
            raise InputError(
                f"{document.where}: the first message is the assistant's, so the beginning of the "
                f"answer cannot be found; put a message before it, or use `loss_on=all`"
            )
        part = self._render(document, count, prompt=prompt)
        if not text.startswith(part):
            advice = "" if self._loss_on == "completion" else "`loss_on=completion` or "
            raise InputError(
                f"{document.where}: the chat template renders the first {count} messages "
                f"differently {'before an answer' if prompt else 'when others follow'}, so the "
                f"answers cannot be found; use {advice}`loss_on=all`, or a template with "
                "{% generation %} marks"
            )
        return len(part)

    def _marked(self, document: Conversation, text: str, answers: Sequence[int]) -> list[Span]:
        """Return the spans between the template's marks, outside the prompt."""
        template = str(self._tokenizer.get_chat_template(tools=document.tools))
        marked = self._render(document, len(document.messages), template=_with_borders(template))
        same = _BORDERS.sub("", marked) == text
        found, length = list[list[int]](), 0
        for part in _BORDERS.split(marked) if same else ():  # texts, with the borders between them
            if part == _BEGIN:
                found.append([length])
            elif part == _END:
                found[-1].append(length)
            else:
                length += len(part)
        first = 0
        if document.prompt is not None:
            first = self._length(document, document.prompt, text, prompt=True)
        spans = [(begin, end) for begin, end in found if first <= begin < end]
        inside, position = "\0".join(text[begin:end] for begin, end in spans), 0
        for index in answers:
            content = document.messages[index].get("content", "").strip()
            if content in text:
                position = inside.find(content, position)
            if not same or position < 0:
                raise InputError(
                    f"{document.where}: the {{% generation %}} marks of the chat template do not "
                    f"enclose message {index + 1}, an answer; put marks around every answer, or "
                    "remove them all"
                )
            position += len(content) if content in text else 0
        return spans

    def _mask(
        self, document: Conversation, text: str, ids: list[int], spans: Sequence[Span]
    ) -> list[bool]:
        """Return which tokens are in the spans."""
        borders = sorted({border for span in spans for border in span})
        counts = {0: 0}
        for border, part in zip(borders, self._ids([text[:b] for b in borders]), strict=True):
            if ids[: len(part)] != part:
                around = text[max(0, border - _SHOWN) : border], text[border : border + _SHOWN]
                raise InputError(
                    f"{document.where}: the tokenizer joins the text before and after the border "
                    f"of an answer ({around[0]!r} and {around[1]!r}), so no token begins there; "
                    "use `loss_on=all`, or a template with other marks"
                )
            counts[border] = len(part)
        mask = [False] * len(ids)
        for begin, end in spans:
            for index in range(counts[begin], counts[end]):
                mask[index] = True
        return mask

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of rendered texts; the template has written the special tokens."""
        found: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, verbose=False
        ).input_ids
        return found


def _with_borders(template: str) -> str:
    """Return a chat template that writes a character at each of its marks.

    transformers' own search for the marks counts wrongly within macros. The blocks keep the white
    space as the marks do.
    """
    return _MARKS.sub(
        lambda mark: f"{{%{mark[1]} if true %}}{_END if mark[2] else _BEGIN}{{% endif {mark[3]}%}}",
        template,
    )
