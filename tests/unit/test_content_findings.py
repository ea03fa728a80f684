"""What a survey finds in records: schema, quality, leaks, known evaluation items; every finding names its place."""

from __future__ import annotations

import random

import pytest

from deepseek_ops.core.config import DataChecks
from deepseek_ops.data.content import DataGateError, examine
from deepseek_ops.data.content.languages import script_of
from deepseek_ops.data.content.lengths import Lengths, bin_of, least_of
from deepseek_ops.data.content.quality import pii_in
from deepseek_ops.data.content.rows import Row
from deepseek_ops.data.content.verdict import EmptyEvaluationSetError, evaluation_items

WORDS = [f"word{number}" for number in range(2000)]


def text_of(seed, count=60):
    return " ".join(random.Random(seed).choices(WORDS, k=count))  # noqa: S311


def rows_of(*texts, file="train.jsonl", **fields):
    return [Row(file, at, {"id": f"{file}-{at}", "text": text, **fields}) for at, text in enumerate(texts, 1)]


def report_of(rows, checks=None, items=(), before=None):
    return examine(lambda: iter(rows), DataChecks.model_validate(checks or {}), items=items, before=before).report


def finding(report, check):
    return next(one for one in report.findings if one.check == check)


def test_clean_data_passes():
    report = report_of(rows_of(*map(text_of, range(20))))
    assert (report.verdict, report.findings) == ("pass", ())


@pytest.mark.parametrize(
    ("rule", "value", "check"),
    [
        ({}, None, "schema.extra.required"),
        ({"type": "integer"}, "seven", "schema.extra.type"),
        ({"type": "integer"}, True, "schema.extra.type"),
        ({"min_length": 3}, "ab", "schema.extra.min_length"),
        ({"max_length": 3}, "abcd", "schema.extra.max_length"),
        ({"values": ["en", "de"]}, "fr", "schema.extra.values"),
        ({"pattern": "[a-z]+"}, "A1", "schema.extra.pattern"),
    ],
)
def test_a_broken_rule_names_file_row_field_value_and_remedy(rule, value, check):
    rows = rows_of(*map(text_of, range(3)))
    rows.append(Row("train.jsonl", 9, {"id": "bad", "text": text_of(9), "extra": value}))
    found = finding(report_of(rows, {"schema": {"fields": {"extra": {"required": True, **rule}}}}), check)
    example = next(one for one in found.examples if one.row == 9)
    assert (example.file, example.field, example.id) == ("train.jsonl", "extra", "bad")
    assert found.remedy
    assert found.action == "block"


def test_counts_are_complete_and_examples_bounded():
    checks = {"schema": {"fields": {"text": {"max_length": 1}}}, "examples": 2}
    found = finding(report_of(rows_of(*map(text_of, range(30))), checks), "schema.text.max_length")
    assert (found.count, len(found.examples)) == (30, 2)


def test_undeclared_fields_are_refused_when_asked():
    checks = {"schema": {"fields": {"id": {}, "text": {}}, "additional": False}}
    assert (
        finding(report_of(rows_of(text_of(1), colour="red"), checks), "schema.additional").examples[0].field == "colour"
    )


def test_unreadable_rows_block_and_are_all_counted():
    rows = [*rows_of(text_of(1)), Row("train.jsonl", 2, None, "not JSON"), Row("train.jsonl", 3, {"text": "\ud800"})]
    found = finding(report_of(rows), "unreadable")
    assert (found.count, found.action) == (2, "block")


@pytest.mark.parametrize(
    ("check", "limit", "text"),
    [
        ("empty", "max_empty", "... !!!"),
        ("control", "max_control", "bell \x07 rings"),
        ("replacement", "max_replacement", "caf\ufffd"),
    ],
)
def test_quality_limits_are_shares(check, limit, text):
    rows = rows_of(*map(text_of, range(8)), text, text + " ...")
    assert finding(report_of(rows, {"quality": {limit: "10%", "action": "block"}}), f"quality.{check}").count == 2
    assert report_of(rows, {"quality": {limit: "20%"}}).verdict == "pass"


@pytest.mark.parametrize(
    ("kind", "text", "is_one"),
    [
        ("email", "write to a.b@example.org now", True),
        ("card_number", "4111 1111 1111 1111", True),
        ("card_number", "4111 1111 1111 1112", False),
        ("iban", "DE89 3704 0044 0532 0130 00", True),
        ("iban", "DE89 3704 0044 0532 0130 01", False),
        ("ip_address", "at 8.8.8.8 and", True),
        ("ip_address", "at 10.0.0.1 and", False),
        ("api_key", "AKIAIOSFODNN7EXAMPLE", True),
        ("phone", "+49 30 1234567", True),
        ("phone", "in 1999 and 2001", False),
    ],
)
def test_personal_data_is_found_by_its_own_checks_and_shown_masked(kind, text, is_one):
    found = pii_in(text, [kind])
    assert (found is not None) is is_one
    assert found is None or found[1].endswith("***")


def test_leaks_between_splits_are_found_equal_loose_and_near():
    base = [text_of(seed) for seed in range(4)]
    near = base[2].split()
    near[-2:] = ["other", "end"]
    rows = rows_of(*base) + rows_of(base[0], base[1].upper() + " ", " ".join(near), file="test.jsonl")
    report = report_of(rows)
    assert report.verdict == "block"
    assert finding(report, "duplicates.leak").count == 2
    example = finding(report, "duplicates.near_leak").examples[0]
    assert {example.file, *example.problem.split()} >= {"train.jsonl", "test.jsonl,"}


def test_near_duplicates_within_a_split_are_a_share():
    rows = rows_of(*(text_of(1) + f" end{number} a b" for number in range(10)))
    assert report_of(rows).verdict == "pass"
    assert finding(report_of(rows, {"duplicates": {"max_near": "50%"}}), "duplicates.near").count == 9


def items(*texts, name="quiz"):
    return list(evaluation_items(name, rows_of(*texts, file="quiz.jsonl")))


def test_a_question_inside_a_training_document_is_known_and_both_are_named():
    question = text_of("question", 20)
    rows = rows_of(*map(text_of, range(5)), f"{text_of(7, 300)} {question.upper()}! {text_of(8, 300)}")
    found = finding(report_of(rows, items=items(question, text_of("another", 20))), "contamination.quiz")
    assert (found.count, found.action) == (1, "block")
    assert found.examples[0].file == "quiz.jsonl"
    assert "train.jsonl line 6" in found.examples[0].problem
    assert "100%" in found.examples[0].problem


def test_a_shared_quotation_does_not_make_a_long_item_known():
    item = text_of("long", 100)
    quotation = " ".join(item.split()[:15])
    report = report_of(rows_of(f"{text_of(1)} {quotation} {text_of(2)}"), items=items(item))
    assert report.verdict == "pass"
    assert report.figures["evaluation_sets"]["quiz"] == {"items": 1, "touched": 1, "too_short": 0, "known": 0}
    strict = {"contamination": {"share": "10%"}}
    assert report_of(rows_of(f"{text_of(1)} {quotation} {text_of(2)}"), strict, items(item)).verdict == "block"


def test_items_shorter_than_a_run_need_all_their_words_and_the_shortest_are_only_counted():
    short = "alpha beta gamma delta epsilon zeta"
    rows = rows_of(f"{text_of(1)} {short} {text_of(2)}", text_of(3) + " alpha beta gamma yes no")
    report = report_of(rows, items=items(short, "yes no", "alpha beta gamma delta other thing"))
    assert finding(report, "contamination.quiz").count == 1
    assert report.figures["evaluation_sets"]["quiz"]["too_short"] == 1


def test_only_the_training_split_can_be_contaminated():
    question = text_of("question", 20)
    rows = rows_of(*map(text_of, range(5))) + rows_of(question, file="test.jsonl")
    assert report_of(rows, items=items(question)).verdict == "pass"


def test_an_edited_copy_of_an_item_is_known_by_similarity():
    words = text_of("copy", 120).split()
    for at in range(0, 120, 12):  # no run of 13 words is left
        words[at] = "changed" if at % 24 else words[at]
    rows = rows_of(*map(text_of, range(3)), " ".join(words))
    checks = {"duplicates": {"threshold": "50%"}, "contamination": {"ngram": 40, "action": "warn"}}
    found = finding(report_of(rows, checks, items(text_of("copy", 120))), "contamination.quiz")
    assert "like it" in found.examples[0].problem
    assert found.action == "warn"


def test_a_set_without_a_readable_item_is_refused():
    with pytest.raises(EmptyEvaluationSetError, match="evaluation set quiz holds no record"):
        list(evaluation_items("quiz", [Row("quiz.json", 1, None, "not JSON")]))


def test_language_and_drift_are_judged_per_split():
    german = "Der schnelle braune Fuchs springt jeden Morgen \u00fcber den faulen Hund im Garten Nummer "
    rows = rows_of(*(f"{german}{number} {number * 7}" for number in range(30)))
    assert report_of(rows, {"quality": {"languages": ["de"]}}).verdict == "pass"
    wrong = report_of(rows, {"quality": {"languages": ["en"], "action": "block"}})
    assert "de 100%" in finding(wrong, "quality.languages").problem
    before = {"train": {"length_histogram": {"200": 30}}}
    moved = report_of(rows, {"quality": {"max_drift": 0.5}}, before=before)
    assert (moved.verdict, finding(moved, "quality.drift").action) == ("warn", "warn")


def test_the_error_fits_on_a_screen():
    checks = {"schema": {"fields": {f"f{number}": {} for number in range(40)}}, "examples": 20}
    error = DataGateError("corpus", report_of(rows_of(*map(text_of, range(30))), checks))
    lines = str(error).splitlines()
    assert len(lines) <= 24
    assert "no version was made" in lines[0]
    assert max(map(len, lines)) <= 220


def test_length_bins_are_exact_at_first_and_never_far_off():
    for length in [*range(3000), 10**5, 10**9]:
        least = least_of(bin_of(length))
        assert least <= length < least_of(bin_of(length) + 1)
        assert length - least <= length / 64


def test_distances_of_lengths_are_those_of_the_definitions():
    left, right = Lengths(), Lengths()
    left.add_all([1, 2, 3, 4])
    right.add_all([3, 4, 5, 6])
    assert left.distances(right) == {"ks": 0.5, "wasserstein": 2.0}
    assert left.quantiles()["p50"] == 2
    assert Lengths.load(left.dump()).bins == left.bins


@pytest.mark.parametrize(("char", "script"), [("a", "LATIN"), ("\u4e2d", "HAN"), ("\u0436", "CYRILLIC"), ("1", "")])
def test_scripts(char, script):
    assert script_of(char) == script
