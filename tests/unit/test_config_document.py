"""Reading YAML: bounded work, no surprises of YAML 1.1, one clear error for what is no YAML."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.core.config import InvalidPipelineError, load_pipeline
from deepseek_ops.core.config.document import MAX_BYTES, parse_document, parse_scalar


def refusal(text: str | bytes) -> str:
    with pytest.raises(InvalidPipelineError) as refused:
        load_pipeline(text, file="f.yaml")
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("1e-4", 0.0001),
        ("3e-5", 0.00003),
        (".5", 0.5),
        ("1:30", "1:30"),
        ("012", 12),
        ("0x10", 16),
        ("0o17", 15),
        ("2026-11-22", "2026-11-22"),
        ("1.2.0", "1.2.0"),
        ("~", None),
        ("'12'", "12"),
        ("12345678901234567890123", 12345678901234567890123.0),
        ("[1, 2.5, x]", [1, 2.5, "x"]),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


def test_aliases_repeat_their_value():
    text = "data: &d {split: {train: 0.8, val: 0.1, test: 0.1}}\nname: x\n"
    assert load_pipeline(text, file="f").data.split.train == 0.8
    tree, problems = parse_document("a: &x [1, 2]\nb: *x\n", file="f")
    assert (tree.plain(), problems) == ({"a": [1, 2], "b": [1, 2]}, [])


class TestRefused:
    @pytest.mark.timeout(60)  # expanded, it has 31 thousand million values
    def test_an_alias_bomb_before_it_expands(self):
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        assert "20,000 values" in refusal("\n".join(lines))

    def test_an_alias_of_itself(self):
        assert "Does an alias contain itself?" in refusal("a: &a [*a]")

    def test_deep_nesting(self):
        assert "nested deeper than 50" in refusal("[" * 100_000)
        assert "nested deeper than 50" in refusal("{a: " * 10_000)

    def test_very_many_values(self):
        assert "20,000 values" in refusal("[" + "1," * 41_000 + "]")

    def test_a_large_file_before_it_is_read(self):
        assert f"{MAX_BYTES + 1:,} bytes" in refusal(b"#" * (MAX_BYTES + 1))
        assert "bytes" in refusal("ä" * MAX_BYTES)

    def test_what_is_not_utf_8_with_its_line(self):
        assert refusal(b"name: a\ndata: \xff\xfe\n").startswith("f.yaml:2: byte 0xff is not UTF-8.")

    def test_control_characters_with_their_line(self):
        assert refusal("name: a\ndata: \x00\n").startswith("f.yaml:2: character")

    @pytest.mark.parametrize(
        "tag", ["!!python/object/apply:os.system [id]", "!!python/name:os.system", "!secret x", "!!binary aGk="]
    )
    def test_tags(self, tag):
        assert "is not allowed" in refusal(f"name: {tag}")

    def test_duplicate_keys_with_both_lines(self):
        assert "f.yaml:3: training.nodes: the key stands there twice, first in line 2." in refusal(
            "training:\n  nodes: 1\n  nodes: 2\n"
        )

    @pytest.mark.parametrize("text", ["name: [a", "a: b: c", "\tname: x", "name: 'x", "a: *nothing", "a: 1\n---\nb: 2"])
    def test_broken_yaml_with_its_line(self, text):
        assert refusal(text).startswith("f.yaml:")
        assert "not valid YAML" in refusal(text)

    @pytest.mark.parametrize("text", ["", "# only a comment\n", b"\xef\xbb\xbf"])
    def test_an_empty_file(self, text):
        assert "the file is empty" in refusal(text)

    @pytest.mark.parametrize("number", [".nan", ".inf", "-.inf", "1e999"])
    def test_numbers_that_are_not_finite(self, number):
        assert "training.replay" in refusal(f"training: {{replay: {number}}}")

    def test_merge_keys_and_odd_keys(self):
        assert "merge keys are not supported" in refusal("a: &a {x: 1}\ndata: {<<: *a}")
        assert "a key must be a text" in refusal("? [a, b]\n: 1")


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert load_pipeline(b"\xef\xbb\xbfname: x", file="f").name == "x"


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60)))
def test_any_bytes_load_or_are_refused_with_a_message(data):
    with contextlib.suppress(InvalidPipelineError):
        assert load_pipeline(data, file="f.yaml").name


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_values_in_the_sections_are_judged_and_never_crash(value):
    for section in ("name", "triggers", "training", "alerts", "validation", "deployment", "experiment", "on"):
        with contextlib.suppress(InvalidPipelineError):
            assert load_pipeline(json.dumps({section: value, "jobs": value}), file="f").name
