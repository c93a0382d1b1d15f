"""What a row of training text contains, and malformed rows."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chats import CHATML, chat_tokenizer, conversation, write_chat_tokenizer, write_lines
from hybridize.data.conversations import Completion, Conversation
from hybridize.data.documents import read_source
from hybridize.data.file_formats import read_file
from hybridize.data.load_text import load_packed_dataset, load_training_text
from hybridize.data.rows import RowOptions, RowReader
from hybridize.data.sources import parse_sources
from hybridize.errors import InputError
from tiny import write_stock

MESSAGES = conversation("question", "answer")
TOOLS = [{"type": "function", "function": {"name": "clock"}}]
SHAREGPT = [
    {"from": "human", "value": "question", "weight": None},
    {"from": "gpt", "value": "answer"},
]
SYSTEM = {"role": "system", "content": "kind"}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "ques"}] * 2}, MESSAGES[1]]
ROWS = {
    "text": ({"text": "abc", "n": 1}, "abc"),
    "messages": ({"messages": MESSAGES, "prompt": "question"}, Conversation("w", MESSAGES)),
    "roles in conversations": ({"conversations": MESSAGES}, Conversation("w", MESSAGES)),
    "sharegpt": ({"conversations": SHAREGPT, "system": ""}, Conversation("w", MESSAGES)),
    "system": (
        {"conversations": SHAREGPT, "system": "kind"},
        Conversation("w", [SYSTEM, *MESSAGES]),
    ),
    "tools": ({"messages": MESSAGES, "tools": TOOLS}, Conversation("w", MESSAGES, tools=TOOLS)),
    "tools as text": (
        {"messages": MESSAGES, "tools": json.dumps(TOOLS), "text": None},
        Conversation("w", MESSAGES, tools=TOOLS),
    ),
    "variables": (
        {"messages": MESSAGES, "chat_template_kwargs": {"thinking": False, "x": None}, "tools": []},
        Conversation("w", MESSAGES, options={"thinking": False}),
    ),
    "strings": ({"prompt": "a", "completion": " b"}, Completion("w", "a", " b")),
    "lists": (
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        Conversation("w", MESSAGES, prompt=1),
    ),
    "parts": (
        {"messages": PARTS},
        Conversation("w", [{"role": "user", "content": "quesques"}, MESSAGES[1]]),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_recognized(name):
    row, expected = ROWS[name]
    assert RowReader().read(row, "w") == expected


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "hub"])
def test_every_format_has_all_kinds_of_rows(tmp_path, kind, monkeypatch):
    """Parquet and the hub add null fields where other rows have a value."""
    rows = [ROWS[name][0] for name in ("text", "messages", "sharegpt", "tools as text", "strings")]
    expected = [ROWS[name][1] for name in ("text", "messages", "sharegpt", "tools as text")]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write_lines(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(merged(rows)).schema)
        pq.write_table(table, tmp_path / "a.parquet")
    if kind == "hub":
        datasets = pytest.importorskip("datasets")
        stored = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: stored.to_iterable_dataset())
    (source,) = parse_sources(["someone/chats" if kind == "hub" else str(path)], "data")
    found = [without_where(document) for _, document in read_source(source, "data")]
    assert found[:-1] == expected
    assert found[-1] == Completion("w", "a", " b")


def merged(rows):
    """One row that has the fields of all."""
    values = {}
    for row in rows:
        values |= {key: value for key, value in row.items() if value is not None}
    return [values]


def without_where(document):
    if isinstance(document, Conversation):
        return Conversation("w", *list(vars(document).values())[1:])
    if isinstance(document, Completion):
        return Completion("w", document.prompt, document.completion)
    return document


BAD = {
    "no content": ({"x": 1}, "'text' is missing .*'messages', 'conversations', or 'prompt' with"),
    "no row": ([1], "'text' is missing or not a string"),
    "two kinds": ({"text": "a", "messages": MESSAGES}, "has text as well as messages; choose with"),
    "no list": ({"messages": "hello"}, "the messages are not a list, but str"),
    "no messages": ({"messages": []}, "the conversation has no messages"),
    "no object": ({"messages": ["hello"]}, "message 1 is not an object, but str"),
    "no role": ({"messages": [{"content": "a"}]}, "message 1: has no 'role'"),
    "number as role": ({"messages": [{"role": 3, "content": "a"}]}, "message 1: has no 'role'"),
    "role": ({"messages": [{"role": "alien", "content": "a"}]}, "the role 'alien' is unknown"),
    "sender": ({"conversations": [{"from": "alien", "value": "a"}]}, "role 'alien' is unknown"),
    "list as sender": ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "has no 'role'"),
    "no content of user": ({"messages": [{"role": "user"}]}, "message 1: .*string, but missing"),
    "number": ({"messages": [{"role": "user", "content": 3}]}, "content is not a string, but int"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        r"message 1: .*not text .image",
    ),
    "empty answer": ({"messages": conversation("a", " \n")}, "message 2: the answer is empty"),
    "null answer": (
        {"messages": [{"role": "assistant", "content": None}]},
        "message 1: its content is not a string, but missing",
    ),
    "calls": (
        {"messages": [{"role": "assistant", "tool_calls": "x"}]},
        "'tool_calls' are not a list of objects",
    ),
    "tools": ({"messages": MESSAGES, "tools": "{"}, "'tools' is not valid JSON"),
    "tools object": ({"messages": MESSAGES, "tools": {"a": 1}}, "'tools' is not a list"),
    "empty completion": ({"prompt": "a", "completion": " "}, "'completion' is empty"),
    "no completion": ({"prompt": MESSAGES[:1], "completion": []}, "'completion' is empty"),
    "string and list": ({"prompt": "a", "completion": MESSAGES[1:]}, "two strings, or two lists"),
    "number as completion": ({"prompt": MESSAGES[:1], "completion": 3}, "not a list, but int"),
    "surrogate": ({"prompt": "\ud800", "completion": "a"}, "half of a surrogate pair"),
    "system twice": (
        {"messages": [SYSTEM, *MESSAGES], "system": "a"},
        "has a system message and a column 'system'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_row_is_one_line_with_its_place(tmp_path, name):
    row, complaint = BAD[name]
    path = write_lines(tmp_path / "a.jsonl", [{"text": "a"}, row])
    reader = RowReader(RowOptions(columns=()))
    with pytest.raises(InputError, match=rf"a\.jsonl: line 2: .*{complaint}") as caught:
        list(read_file(path, None, reader))
    assert "\n" not in str(caught.value)
    skipping = RowReader(RowOptions(skip_bad=True))
    assert [document for _, document in read_file(path, None, skipping)] == ["a"]
    assert skipping.note().startswith(f"1 malformed row was skipped; the first: {path}: line 2: ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "tool_calls", "type", "text", "function"]
            ),
            inner | st.sampled_from(["user", "assistant", "gpt", "human", "system", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
columns = st.sampled_from(["text", "messages", "conversations", "prompt", "completion", "tools"])


@settings(deadline=None, max_examples=200)
@given(row=st.dictionaries(columns, json_values, max_size=4))
def test_any_row_is_a_document_or_bad_input(row):
    try:
        document = RowReader().read(row, "row 1")
    except InputError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith("row 1: ")
        return
    assert isinstance(document, str | Conversation | Completion)
    for message in getattr(document, "messages", []):
        assert isinstance(message.get("content", ""), str)


def test_columns_can_have_other_names(tmp_path):
    reader = RowReader(RowOptions(columns=("text=content", "prompt=question", "completion=a=b")))
    assert reader.read({"content": "abc", "messages": MESSAGES}, "w") == "abc"  # the one named
    assert reader.read({"messages": MESSAGES}, "w") == Conversation("w", MESSAGES)
    assert reader.read({"question": "a", "a=b": "b"}, "w") == Completion("w", "a", "b")
    with pytest.raises(InputError, match="w: 'content' is missing"):
        reader.read({"text": "abc"}, "w")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["abc"], "text": ["x"]}), path)
    assert [text for _, text in read_file(path, None, reader)] == ["abc"]
    with pytest.raises(InputError, match=r"has no column 'other'.*its columns are content, text"):
        list(read_file(path, None, RowReader(RowOptions(columns=("text=other",)))))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "in"
    write_stock(directory, "llama", num_hidden_layers=1, vocab_size=320)
    write_chat_tokenizer(directory)
    return directory


def mixed_rows(count):
    return [
        {"text": f"plain text {n}"}
        if n % 3 == 0
        else {"messages": conversation(f"Q{n} what?", f"A{n} this")}
        for n in range(count)
    ]


def expected_tokens(rows):
    """The ids of all rows, and which are learned, from the text alone."""
    tokenizer, ids, mask = chat_tokenizer(CHATML), [], []
    for row in rows:
        if "text" in row:
            own = [*tokenizer(row["text"]).input_ids, tokenizer.eos_token_id]
            ids, mask = ids + own, mask + [True] * len(own)
            continue
        begin, answer = tokenizer.apply_chat_template(row["messages"], tokenize=False).split(
            "assistant\n"
        )
        for part, learned in ((f"{begin}assistant\n", False), (answer, True)):
            own = tokenizer(part, add_special_tokens=False).input_ids
            ids, mask = ids + own, mask + [learned] * len(own)
    return ids, mask


@pytest.mark.parametrize("cached", [False, True])
def test_the_mask_survives_packing(model, tmp_path, cached):
    rows = mixed_rows(40)
    path = write_lines(tmp_path / "a.jsonl", rows)
    dataset = load_packed_dataset(
        [str(path)],
        model=model,
        length=13,
        tokens=None,
        cache=tmp_path / "cache" if cached else None,
        rows=RowOptions(loss_on="assistant"),
    )
    ids, mask = expected_tokens(rows)
    assert dataset.ids.flatten().tolist() == ids[: dataset.tokens]
    assert dataset.mask(range(len(dataset))).flatten().tolist() == mask[: dataset.tokens]
    assert dataset.tokens > len(ids) - 13
    for chosen in ([3, 1, 2], [0], []):
        assert dataset.mask(chosen).tolist() == [mask[13 * n : 13 * n + 13] for n in chosen]
    everything = load_packed_dataset([str(path)], model=model, length=13, tokens=None)
    assert everything.mask([0]) is None
    assert everything.ids.equal(dataset.ids)


def test_masks_survive_mixing_and_interruption(model, tmp_path, monkeypatch):
    """With weights and held-out text; the second call goes on where the first one stopped."""
    from hybridize.data import token_shards

    monkeypatch.setattr(token_shards, "_SEQUENCES_PER_SHARD", 3)
    first, second = mixed_rows(60), mixed_rows(90)[60:]
    paths = [
        f"{write_lines(tmp_path / f'{n}.jsonl', rows)}:{n}"
        for n, rows in enumerate((first, second), 1)
    ]
    options = {"model": model, "length": 16, "tokens": 16 * 60, "held_out": 4}
    options |= {"rows": RowOptions(loss_on="assistant")}

    def load(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return load_training_text(
            paths, cache=folder / "cache", record=folder / "text.key", **options
        )

    whole = load("whole")
    write, calls = token_shards.ShardWriter.write, []

    def interrupted(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        write(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(token_shards.ShardWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("broken")
    again = load("broken")
    learned = {}
    for rows in (first, second):
        for row in rows:
            ids, mask = expected_tokens([row])
            learned[tuple(ids)] = mask
    for part, other in zip(whole, again, strict=True):
        every = range(len(part))
        assert len(part) == len(other) > 3
        assert part.ids.equal(other.ids)
        assert part.mask(every).equal(other.mask(every))
        for ids, seq_idx, mask in zip(*part.sequences(every), part.mask(every), strict=True):
            for number in range(1, int(seq_idx[-1])):  # whole documents
                inside = seq_idx == number
                assert learned[tuple(ids[inside].tolist())] == mask[inside].tolist()


def test_bad_rows_are_skipped_and_counted(model, tmp_path, capsys):
    rows = [*mixed_rows(9), {"messages": conversation("a", "")}, *mixed_rows(3), {"messages": 1}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text() + '\n{"text": \n' + json.dumps({"messages": []}) + "\n")
    options = {"model": model, "length": 8, "tokens": None}
    with pytest.raises(InputError, match="line 10: message 2: the answer is empty"):
        load_packed_dataset([str(path)], **options)
    capsys.readouterr()
    dataset = load_packed_dataset([str(path)], rows=RowOptions(skip_bad=True), **options)
    ids, _ = expected_tokens([*mixed_rows(9), *mixed_rows(3)])
    assert dataset.ids.flatten().tolist() == ids[: dataset.tokens]
    note = capsys.readouterr().err
    assert "4 malformed rows were skipped; the first:" in " ".join(note.split())


def test_a_missing_chat_template_is_not_a_bad_row(tmp_path):
    write_stock(tmp_path / "in", "llama", num_hidden_layers=1, vocab_size=320)
    write_chat_tokenizer(tmp_path / "in", None)
    path = write_lines(tmp_path / "a.jsonl", mixed_rows(9))
    with pytest.raises(InputError, match="in: its tokenizer has no chat template"):
        load_packed_dataset(
            [str(path)],
            model=tmp_path / "in",
            length=8,
            tokens=None,
            rows=RowOptions(skip_bad=True),
        )
