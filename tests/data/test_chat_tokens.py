"""Tokens of conversations, and which of them are learned, with templates of several families."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chats import (
    CHATML,
    ENDS,
    GEMMA,
    MARKED,
    MISTRAL,
    QWEN,
    TEMPLATES,
    THINKING,
    chat_tokenizer,
    conversation,
)
from hybridize.data.chat_tokens import ChatTokenizer
from hybridize.data.conversations import Completion, Conversation
from hybridize.errors import InputError

TURNS = ("QQ1 first?", "AA1 the answer", "QQ2 ü\nmore?", "AA2 is \U0001f600 here", "QQ3", "AA3.")


def tokens(template, messages, loss_on="assistant", **options):
    tokenizer = chat_tokenizer(template)
    document = Conversation("a.jsonl: line 1", messages, **options)
    ids, mask = ChatTokenizer(tokenizer, Path("model"), loss_on).tokens(document)
    return tokenizer, ids, mask


def reconstructed(tokenizer, text, spans):
    """The ids of a text, and which tokens are within some spans of characters."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [any(a <= begin and end <= b for a, b in spans) for begin, end in encoded.offset_mapping]
    return encoded.input_ids, mask


@pytest.mark.parametrize(
    ("style", "system"),
    [
        (style, system)
        for style in TEMPLATES
        for system in (None, "SYS be kind")
        if style != "gemma" or system is None  # this template has no system messages
    ],
)
def test_the_learned_tokens_are_those_of_the_answers(style, system):
    messages = conversation(*TURNS, system=system)
    for loss_on, answers in (("assistant", TURNS[1::2]), ("completion", TURNS[-1:])):
        tokenizer, ids, mask = tokens(TEMPLATES[style], messages, loss_on)
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spans = []
        for answer in answers:
            begin = text.index(answer) - (style == "mistral")  # it begins with a space
            end = begin + len(answer) + (style == "mistral")
            after = "<|im_end|>\n" if style == "marked" and loss_on == "completion" else ENDS[style]
            assert text[end:].startswith(after)
            spans.append((begin, end + len(after)))
        assert (ids, mask) == reconstructed(tokenizer, text, spans)
        learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        assert not any(turn in learned for turn in (*TURNS[::2], "SYS", "user", "system"))
    _, ids, mask = tokens(TEMPLATES[style], messages, "all")
    assert ids == tokenizer.apply_chat_template(messages)["input_ids"]
    assert mask is None


@settings(deadline=None, max_examples=60)
@given(
    style=st.sampled_from([name for name in TEMPLATES if name != "marked"]),
    contents=st.lists(st.text(st.sampled_from("ab \nü."), max_size=8), min_size=1, max_size=3),
)
def test_marks_and_prefixes_agree_with_the_text_or_the_row_is_refused(style, contents):
    """Any white space at the borders: the mask is exact, or the row is refused."""
    turns = [f"{part}{text}" for text in contents for part in ("Q", "")]
    if any(not turn.strip() for turn in turns):
        return
    try:
        tokenizer, ids, mask = tokens(TEMPLATES[style], conversation(*turns))
    except InputError:
        return
    for first, value in enumerate(mask):
        if value and not (first and mask[first - 1]):
            head = tokenizer.decode(ids[:first])
            assert head.endswith(("assistant\n", "assistant<|end_head|>\n\n", "[/INST]", "model\n"))
        if value and (first + 1 == len(mask) or not mask[first + 1]):
            assert tokenizer.decode(ids[: first + 1]).endswith(ENDS[style])


def test_tools_and_their_calls_are_rendered():
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "ZZ"}}}
    messages = [
        {"role": "user", "content": "QQ1"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "TT1"},
        {"role": "tool", "content": "TT2"},
        {"role": "assistant", "content": "AA2"},
    ]
    # The template writes a line end before a call only in the answer itself.
    tokenizer, ids, mask = tokens(QWEN, messages, tools=tools)
    assert ids == tokenizer.apply_chat_template(messages, tools=tools)["input_ids"]
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == (
        '<call>{"name": "clock", "arguments": {"zone": "ZZ"}}</call><|im_end|>\nAA2<|im_end|>\n'
    )
    with pytest.raises(InputError, match="line 1: the chat template leaves out the tools"):
        tokens(CHATML, conversation("a", "b"), "all", tools=tools)


def test_a_prompt_of_messages_is_not_learned():
    messages = conversation(*TURNS)
    for loss_on, expected in (
        ("assistant", "AA2 is \U0001f600 here<|im_end|>\nAA3.<|im_end|>\n"),
        (
            "completion",
            "AA2 is \U0001f600 here<|im_end|>\n<|im_start|>user\nQQ3<|im_end|>\n"
            "<|im_start|>assistant\nAA3.<|im_end|>\n",
        ),
    ):
        tokenizer, ids, mask = tokens(CHATML, messages, loss_on, prompt=3)
        assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == expected
    tokenizer, ids, mask = tokens(MARKED, messages, prompt=3)
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == "AA2 is \U0001f600 here<|im_end|>AA3.<|im_end|>"


MACRO = """\
{%- macro turn(m) %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' %}
    {% generation -%}
        {{ m.content + '<|im_end|>' }}
    {%- endgeneration %}
    {%- else %}{{- m.content + '<|im_end|>' }}{% endif %}
    {{- '\\n' }}
{%- endmacro %}
{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- for m in messages %}{{- turn(m) }}{% endfor %}
"""
LAST_ONLY = MARKED.replace("{% if m.role == 'assistant' %}", "{% if loop.last %}").replace(
    "{% if m['role'] == 'assistant' %}", "{% if loop.last %}"
)


def test_marks_in_macros():
    tokenizer, ids, mask = tokens(MACRO, conversation(*TURNS))
    text = tokenizer.decode(ids)
    assert text == tokenizer.apply_chat_template(conversation(*TURNS), tokenize=False)
    spans = []
    for answer in TURNS[1::2]:
        begin = text.index(answer)
        spans.append((begin, begin + len(answer) + len("<|im_end|>")))
    assert (ids, mask) == reconstructed(tokenizer, text, spans)


def test_marks_are_those_of_transformers():
    messages = conversation(*TURNS, system="SYS")
    tokenizer, ids, mask = tokens(MARKED, messages)
    stock = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True)
    assert (ids, mask) == (stock["input_ids"], [bool(each) for each in stock["assistant_masks"]])


@pytest.mark.parametrize(
    ("template", "messages", "loss_on", "complaint"),
    [
        (GEMMA, conversation("a", "b", system="c"), "all", "cannot render it: no system role"),
        (MISTRAL, conversation("a", "b")[::-1], "all", "roles must alternate"),
        ("{{ messages[0].x.y }}", conversation("a", "b"), "all", "cannot render it: "),
        ("", conversation("a", "b"), "all", "renders nothing"),
        (CHATML, conversation("a"), "assistant", "no message of the assistant .*`loss_on=all`"),
        (CHATML, conversation("a"), "completion", "the last message is not the assistant's"),
        (CHATML, conversation("a", "b")[::-1], "assistant", "the first message is the assistant's"),
        (
            THINKING,
            conversation("a", "x</think>b", "c", "d"),
            "assistant",
            r"first 2 messages differently when others follow.*`loss_on=completion` or",
        ),
        (
            CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>"),
            conversation("a", "b"),
            "completion",
            "first 1 messages differently before an answer",
        ),
        (CHATML, conversation("a", "\n b"), "assistant", "no token begins there"),
        (MARKED, conversation("a", "b\ufdd1"), "assistant", "not enclose message 2"),
        (LAST_ONLY, conversation("a", "bb", "c", "dd"), "assistant", "not enclose message 2"),
        (
            QWEN,
            [*conversation("a"), {"role": "developer", "content": "dev"}, *conversation("c", "d")],
            "all",
            "leaves out or changes message 2 .role 'developer'",
        ),
        (CHATML, conversation("a \ud800", "b"), "all", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_exact_is_refused(template, messages, loss_on, complaint):
    with pytest.raises(InputError, match=f"a.jsonl: line 1: .*{complaint}") as caught:
        tokens(template, messages, loss_on)
    assert "\n" not in str(caught.value)


def test_completion_of_a_thinking_template():
    """Only the last answer is needed, so the other answers may be rendered differently."""
    messages = conversation("a", "x</think>b", "c", "y</think>d")
    tokenizer, ids, mask = tokens(THINKING, messages, "completion")
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == "y</think>d<|im_end|>\n"


def test_a_missing_template_is_one_error():
    chats = ChatTokenizer(chat_tokenizer(None), Path("model"))
    with pytest.raises(InputError, match="model: its tokenizer has no chat template"):
        chats.check_template()
    ChatTokenizer(chat_tokenizer(GEMMA), Path("model")).check_template()


@pytest.mark.parametrize("loss_on", ["all", "completion", "assistant"])
def test_prompts_and_completions_of_plain_text(loss_on):
    tokenizer = chat_tokenizer(None)
    chats = ChatTokenizer(tokenizer, Path("model"), loss_on)
    ids, mask = chats.tokens(Completion("row", "the system is", " the answer"))
    whole = "the system is the answer</s>"
    assert ids == tokenizer(whole).input_ids
    if loss_on == "all":
        assert mask is None
    else:
        assert (ids, mask) == reconstructed(tokenizer, whole, [(13, 28)])
    with_end = chats.tokens(Completion("row", "", "a</s>"))[0]
    assert with_end == tokenizer("a</s>").input_ids  # no second one
    if loss_on != "all":
        with pytest.raises(InputError, match="row: the tokenizer joins the end of the prompt"):
            chats.tokens(Completion("row", "the sys", "tem is"))
