"""Small chat templates in the styles of several families, and a tokenizer for them."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN = """\
{%- set first = messages[0].content if messages[0].role == 'system' else 'Be brief.' %}
{{- '<|im_start|>system\\n' + first }}
{%- if tools %}
    {{- '\\n\\nTools:' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
    {%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if m.content %}{{- '\\n' + m.content }}{%- endif %}
        {%- for call in m.tool_calls %}
            {{- '\\n<call>' }}{{- call.function | tojson }}{{- '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<result>' + m.content + '</result>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|head|>' + m.role + '<|end_head|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|end_head|>\n\n' }}{% endif %}"
)
MISTRAL = """\
{%- if messages[0].role == 'system' %}
    {%- set start = messages[0].content + '\\n\\n' %}{%- set turns = messages[1:] %}
{%- else %}
    {%- set start = '' %}{%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('the roles must alternate, user first') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' }}{%- if loop.first %}{{- start }}{%- endif %}{{- m.content + '[/INST]' }}
    {%- else %}
        {{- ' ' + m.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('no system role') }}{%- endif %}
{%- for m in messages %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
MARKED = CHATML.replace(
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}",
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}",
)
# Reasoning of earlier answers is left out, so that the text up to an answer is not a beginning.
THINKING = CHATML.replace(
    "m['content'] +", "(m['content'] if loop.last else m['content'].split('</think>')[-1]) +"
)
TEMPLATES = {
    "chatml": CHATML,
    "qwen": QWEN,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "marked": MARKED,
}
# What ends an answer, and what may follow before the next turn.
ENDS = {
    "chatml": "<|im_end|>\n",
    "qwen": "<|im_end|>\n",
    "llama": "<|eot|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>\n",
    "marked": "<|im_end|>",
}
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|end_head|>", "<|eot|>", "[INST]",
    "[/INST]", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
VOCABULARY = 320


def chat_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with merges across letters and line ends."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\s*[\r\n]+|\s+(?!\S)| ?\S+|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["assistant user system\n\n\n the answer is  here\n"] * 9, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def write_chat_tokenizer(directory: Path, template: str | None = CHATML) -> None:
    """Write the tokenizer into a checkpoint with at least `VOCABULARY` tokens."""
    chat_tokenizer(template).save_pretrained(directory)


def write_lines(path: Path, rows: list) -> Path:
    """Write JSON lines."""
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def conversation(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Return messages of the user and the assistant in turn."""
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]
    return [{"role": "system", "content": system}, *messages] if system else messages
