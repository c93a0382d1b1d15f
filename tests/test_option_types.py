"""The types of options: which values they accept, and how they convert them."""

import json
import math
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridize.option_types import (
    Choice,
    Count,
    Flag,
    Float,
    Integer,
    IntegerOr,
    ItemError,
    Listed,
    Location,
    NameIn,
    OptionType,
    ParsedText,
    PerName,
    Repeated,
    Size,
    Text,
    TextOrFlag,
)

# Every type, with values that it accepts.
VALUES: dict[str, tuple[OptionType, st.SearchStrategy]] = {
    "Flag": (Flag(), st.booleans()),
    "Text": (Text("NAME"), st.text(min_size=1) | st.integers()),
    "ParsedText": (ParsedText("N", int), st.integers().map(str)),
    "TextOrFlag": (TextOrFlag("NAME", bare="all"), st.text(min_size=1)),
    "Choice": (Choice("a", "b"), st.sampled_from(["a", "b"])),
    "NameIn": (NameIn(lambda: ("a", "b")), st.sampled_from(["a", "b"])),
    "Integer": (Integer(-3, 10**12), st.integers(-3, 10**12)),
    "IntegerOr": (IntegerOr("all", Integer(1)), st.integers(1, 10**9) | st.just("all")),
    "Float": (Float(-2, 2), st.floats(-2, 2)),
    "Count": (Count(), st.integers(1, 10**15)),
    "Size": (Size(), st.integers(1, 10**15)),
    "Listed": (Listed(Integer(0)), st.lists(st.integers(0, 99)).map(tuple)),
    "Repeated": (Repeated(Count()), st.lists(st.integers(1, 10**6)).map(tuple)),
    "PerName": (
        PerName(Count(), "tokens", lambda: ("a", "b"), "Tokens of {}.".format),
        st.dictionaries(st.sampled_from(["a", "b"]), st.integers(1, 10**6)),
    ),
    "Location": (Location("FILE"), st.text(min_size=1)),
}
TYPED = (
    "Text",
    "TextOrFlag",
    "Choice",
    "NameIn",
    "Integer",
    "IntegerOr",
    "Float",
    "Count",
    "Size",
    "Listed",
)
"""Types whose text form can be converted back."""

ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(object)
    | st.lists(st.integers() | st.text())
    | st.dictionaries(st.text(), st.integers())
    | st.from_regex(r"-?[0-9.]{0,40} ?[kKmMgGbBiI%]{0,3}", fullmatch=True)
    | st.sampled_from(["nan", "inf", "-inf", "1e400", "9" * 5000, "٣k", "1_0", "²", ".", "0x1"])
)


def all_types(cls: type = OptionType) -> set[str]:
    return {cls.__name__}.union(*(all_types(sub) for sub in cls.__subclasses__()))


def test_every_type_is_tested():
    assert all_types() - {"OptionType"} == set(VALUES)


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_good_values_do_not_change_and_can_be_recorded(name, data):
    type_, values = VALUES[name]
    value = data.draw(values)
    converted = type_.convert(value)
    assert converted == (str(value) if name == "Text" else value)
    assert type_.convert(converted) == converted
    json.dumps(type_.to_json(converted))
    json.dumps(type_.to_json(None) if name in ("Location", "PerName") else None)


@pytest.mark.parametrize("name", TYPED)
@given(data=st.data())
def test_the_text_of_a_value_converts_back_to_it(name, data):
    type_, values = VALUES[name]
    value = type_.convert(data.draw(values))
    assert type_.convert(type_.to_text(value)) == value


@pytest.mark.parametrize("name", VALUES)
@given(value=ANYTHING)
def test_bad_values_raise_value_error_only(name, value):
    type_ = VALUES[name][0]
    with suppress(ValueError):
        converted = type_.convert(value)
        assert type_.convert(converted) == converted


@given(low=st.integers(-9, 9), span=st.integers(0, 9), value=st.integers(-30, 30))
def test_whole_numbers_have_limits(low, span, value):
    type_ = Integer(low, low + span)
    if low <= value <= low + span:
        assert type_.convert(f" {value} ") == value == type_.convert(float(value))
    else:
        with pytest.raises(ValueError, match=f"a whole number from {low} to {low + span}"):
            type_.convert(value)


@pytest.mark.parametrize("value", [0.5, "0.5", math.nan, math.inf, True, None, "", "9" * 5000])
def test_values_that_are_not_whole_numbers_are_rejected(value):
    with pytest.raises(ValueError, match="give a whole number of at least 0"):
        Integer(0).convert(value)
    with pytest.raises(ValueError, match="give a whole number of at least 0, or all"):
        IntegerOr("all", Integer(0)).convert(value)


@given(value=st.floats(allow_nan=True))
def test_numbers_are_finite_and_have_limits(value):
    for type_, good in (
        (Float(), math.isfinite(value)),
        (Float(0, 1), 0 <= value <= 1),
        (Float(0, 1, above=True), 0 < value <= 1),
        (Float(minimum=0, above=True), 0 < value < math.inf),
        (Float(maximum=3), -math.inf < value <= 3),
    ):
        if good:
            assert type_.convert(value) == value == type_.convert(str(value))
        else:
            with pytest.raises(ValueError, match="give a number"):
                type_.convert(value)


@pytest.mark.parametrize(
    ("type_", "limits"),
    [
        (Float(0, 1), "from 0 to 1"),
        (Float(0, 1, above=True), "above 0 and at most 1"),
        (Float(0, above=True), "above 0"),
        (Float(0), "of at least 0"),
        (Float(maximum=0), "of at most 0"),
    ],
)
def test_errors_of_numbers_name_the_limits(type_, limits):
    with pytest.raises(ValueError, match=f"^give a number {limits}$"):
        type_.convert("x")


UNITS = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "": 1}
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(number=st.decimals(0, 5000, places=3), unit=st.sampled_from(sorted(UNITS)))
def test_counts_have_units(number, unit):
    want = number * UNITS[unit]
    if want >= 1 and want == int(want):
        assert (
            Count().convert(f"{number:f}{unit}")
            == Count().convert(f" {number:f} {unit.lower()}")
            == want
        )
    else:
        with pytest.raises(ValueError, match="give a count like 500k or 2M"):
            Count().convert(f"{number:f}{unit}")


@given(number=st.decimals(0, 5000, places=3), unit=st.sampled_from(sorted(BYTES)))
def test_sizes_have_units(number, unit):
    want = int(Decimal(number) * BYTES[unit])
    if want >= 1:
        assert (
            Size().convert(f"{number:f}{unit}")
            == Size().convert(f"{number:f} {unit.upper()}")
            == want
        )
    else:
        with pytest.raises(ValueError, match="give a size like 5GB or 500MiB"):
            Size().convert(f"{number:f}{unit}")


def test_a_size_that_is_typed_needs_a_unit():
    assert Size().convert(5) == 5
    with pytest.raises(ValueError, match="5GB"):
        Size().convert("5")


@pytest.mark.parametrize(
    ("type_", "value", "text"),
    [
        (Count(), 8_000_000, "8M"),
        (Count(), 1_500_000, "1.5M"),
        (Count(), 8192, "8192"),
        (Count(), 123_456_789_000, "123456789k"),
        (Size(), 5 * 10**9, "5GB"),
        (Size(), 2**30, "1GiB"),
        (Size(), 1234, "1.234KB"),
        (Listed(Integer(0)), (1, 2), "1,2"),
        (Repeated(Count()), (1000, 2), "1k, 2"),
    ],
)
def test_defaults_are_shown_briefly_and_exactly(type_, value, text):
    assert type_.to_text(value) == text


def test_lists_are_typed_with_commas():
    assert Listed(Integer(0)).convert(" 1, 2,3 ") == (1, 2, 3)
    assert Listed(Integer(0)).convert("") == ()
    assert Listed(Integer(0)).convert(4) == (4,)
    with pytest.raises(ValueError, match="a whole number of at least 0"):
        Listed(Integer(0)).convert("1,-2")
    with pytest.raises(ValueError, match="give at least 1"):
        Listed(Integer(0), at_least=1).convert("")
    assert Repeated(Text()).convert("a,b") == ("a,b",)


def test_names_can_be_registered_later():
    registered = ["a"]
    type_ = NameIn(lambda: registered)
    with pytest.raises(ValueError, match=r"choose one of a$"):
        type_.convert("b")
    registered.append("b")
    assert type_.convert("b") == "b"
    assert type_.metavar == "a|b"


def test_mappings_name_the_item_that_is_wrong():
    type_ = VALUES["PerName"][0]
    assert type_.convert({"a": "2k"}) == {"a": 2000}
    for mapping, name, complaint in (
        ({"a": 0}, "a", "count"),
        ({"c": 1}, "c", "choose from a, b"),
    ):
        with pytest.raises(ItemError, match=complaint) as caught:
            type_.convert(mapping)
        assert caught.value.name == name


def test_records_contain_only_the_last_part_of_a_path():
    assert Location().to_json("/home/me/data/text.txt") == "text.txt"
    assert Repeated(Location()).to_json(("/a/b", "c")) == ["b", "c"]


@pytest.mark.parametrize(
    ("metavar", "value", "recorded"),
    [
        ("MODEL", "some/model@v1", "some/model@v1"),
        ("FILE|DATASET|teacher", "some/texts:raw:test", "some/texts:raw:test"),
        ("FILE|DATASET|teacher", "teacher", "teacher"),
        ("MODEL", "/home/me/model", "model"),
        ("MODEL", "./model", "model"),
        ("MODEL", "a/b/model", "model"),
        ("FILE", "some/file", "file"),
    ],
)
def test_names_on_the_hub_are_recorded_whole_and_paths_are_not(metavar, value, recorded):
    assert Location(metavar).to_json(value) == recorded


def test_a_directory_that_looks_like_a_name_on_the_hub_is_recorded_as_one(tmp_path, monkeypatch):
    (tmp_path / "some" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert Location("MODEL").to_json("some/model") == "model"
