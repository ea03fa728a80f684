"""Version numbers, keys, bundles and cards, without any store."""

from __future__ import annotations

import pytest
import yaml
from fixtures_registry import make_manifest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.errors import IntegrityError, InvalidRecordError
from deepseek_ops.core.records import (
    Checkpoint,
    Evaluation,
    ExportedModel,
    ExportStatus,
    FileEntry,
    FileSet,
    Verdict,
    canonical_json,
    digest_of,
)
from deepseek_ops.registry import Bundle, InvalidBundleError, next_version
from deepseek_ops.registry.bundle import checked_evaluations, complete_exports, identity_of, parse_bundle
from deepseek_ops.registry.card import model_card
from deepseek_ops.registry.layout import alias_key, parts_of

MODEL = FileSet(files=(FileEntry(path="model.safetensors", size=3, digest=digest_of(b"abc")),))
CHECKPOINT = Checkpoint(plan="c" * 64, step=1, tokens=2, model=MODEL, metrics={"val_loss": 2.0})
versions = st.tuples(*[st.integers(0, 10**6)] * 3).map(lambda parts: ".".join(map(str, parts)))


def export(form: str, path: str = "model.bin2", model: str = MODEL.fingerprint) -> ExportedModel:
    return ExportedModel.load(
        {
            "format": form,
            "model": model,
            "status": ExportStatus.VERIFIED,
            "files": {"files": [{"path": path, "size": 3, "digest": digest_of(b"abc")}]},
        }
    )


def evaluation(stage: str, reason: str = "fine", model: str = MODEL.fingerprint) -> Evaluation:
    return Evaluation(
        stage=stage,
        model=model,
        dataset="d",
        metrics={"val_loss": 2.0},
        num_items=1,
        verdict=Verdict.PASS,
        reason=reason,
    )


@pytest.mark.parametrize(
    ("existing", "bump", "expected"),
    [
        ([], "minor", "0.1.0"),
        ([], "major", "1.0.0"),
        ([], "patch", "0.0.1"),
        (["0.9.0", "0.10.0"], "minor", "0.11.0"),
        (["v1.2.3", "0.9.9"], "minor", "1.3.0"),
        (["1.2.3"], "patch", "1.2.4"),
        (["1.2.3"], "major", "2.0.0"),
    ],
)
def test_the_next_version_follows_the_highest(existing: list[str], bump: str, expected: str) -> None:
    assert next_version(existing, bump) == expected  # type: ignore[arg-type]


@given(st.lists(versions, max_size=10), st.sampled_from(["major", "minor", "patch"]))
def test_the_next_version_is_new_and_the_highest(existing: list[str], bump: str) -> None:
    new = next_version(existing, bump)  # type: ignore[arg-type]
    assert all(parts_of(new) > parts_of(one) for one in existing)


@pytest.mark.parametrize("text", ["1.2", "1.2.3.4", "1.2.x", "", "champion", "1.2.-3", "1.2.³"])
def test_what_is_no_version_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRecordError, match=r"three numbers such as 1\.2\.0"):
        next_version([text])


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_newer_alias_entries_sort_first(one: int, other: int) -> None:
    keys = [alias_key("tiny", "champion", number) for number in (one, other)]
    assert (keys[0] < keys[1]) == (one > other)


def bundle(**changes: object) -> Bundle:
    parts: dict[str, object] = {
        "name": "tiny",
        "version": "0.1.0",
        "manifest": make_manifest(),
        "checkpoint": CHECKPOINT,
        "exports": complete_exports(CHECKPOINT, [export("onnx")]),
        "card": FileEntry(path="README.md", size=1, digest=digest_of(b"x")),
    }
    return Bundle.model_validate({**parts, **changes})


def test_a_bundle_names_every_file_below_its_folder() -> None:
    evidence = evaluation("quick").evolve(items=FileEntry(path="a/b/items.jsonl", size=1, digest=digest_of(b"i")))
    assert [entry.path for entry in bundle(evaluations=(evidence,)).files] == [
        "README.md",
        "evaluations/quick/items.jsonl",
        "onnx/model.bin2",
        "safetensors/model.safetensors",
    ]


def test_a_bundle_reads_back_only_as_it_was_written() -> None:
    one = bundle()
    assert parse_bundle(one.stored(), where="b") == one
    changed = one.stored().replace(b'"tokens":2', b'"tokens": 2')
    for data in (changed, b"", b"[]", b"{", one.stored()[:-1], canonical_json({"schema": "Checkpoint/1"})):
        with pytest.raises(IntegrityError, match=r"^b has digest"):
            parse_bundle(data, where="b")


def test_the_checkpoint_is_the_canonical_form_unless_one_was_exported() -> None:
    assert [one.format for one in complete_exports(CHECKPOINT, [export("onnx")])] == ["onnx", "safetensors"]
    given_one = export("safetensors", "sharded.safetensors")
    assert complete_exports(CHECKPOINT, [given_one]) == (given_one,)


def test_parts_of_different_models_are_not_registered_together() -> None:
    other = "0" * 64
    with pytest.raises(InvalidBundleError, match=r"exports\.onnx\.model=0000"):
        complete_exports(CHECKPOINT, [export("onnx", model=other)])
    with pytest.raises(InvalidBundleError, match=r"evaluations\.quick\.model=0000"):
        checked_evaluations(CHECKPOINT, [evaluation("quick", model=other)])


def test_a_format_or_a_stage_given_twice_is_refused() -> None:
    with pytest.raises(InvalidBundleError, match="onnx, onnx: a format is given twice"):
        complete_exports(CHECKPOINT, [export("onnx"), export("onnx", "other")])
    with pytest.raises(InvalidBundleError, match="a stage is given twice"):
        checked_evaluations(CHECKPOINT, [evaluation("quick"), evaluation("quick")])


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(InvalidBundleError, match="it has no files"):
        complete_exports(CHECKPOINT.evolve(model=FileSet(files=())), [])


@pytest.mark.parametrize(
    ("form", "path"), [("safetensors", "pytorch_model.bin"), ("safetensors", "a/x.PT"), ("onnx", "extra.pkl")]
)
def test_pickles_stay_out(form: str, path: str) -> None:
    with pytest.raises(InvalidBundleError, match="pickles stay out"):
        complete_exports(CHECKPOINT, [export(form, path)])


def test_torchscript_archives_are_let_in() -> None:
    assert complete_exports(CHECKPOINT, [export("torchscript", "model.pt")])


def test_the_identity_of_a_version_is_its_manifest_and_its_model() -> None:
    same = identity_of(make_manifest(), CHECKPOINT.evolve(restarts=3))
    assert identity_of(make_manifest(), CHECKPOINT) == same, "how often the ranks were restarted changes no model"
    assert identity_of(make_manifest(1), CHECKPOINT) != same
    assert identity_of(make_manifest(), CHECKPOINT.evolve(model=FileSet(files=()))) != same


def card(reason: str = "fine") -> str:
    return model_card(
        version="0.1.0",
        manifest=make_manifest(),
        checkpoint=CHECKPOINT,
        exports=complete_exports(CHECKPOINT, [export("onnx")]),
        evaluations=[evaluation("quick-check", reason)],
    )


def test_the_card_is_one_the_hub_understands() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: deepseek-ops[train]")
    found = hub.ModelCard(card()).data.eval_results
    assert [(one.dataset_name, one.metric_name, one.metric_value) for one in found] == [
        ("quick-check", "val_loss", 2.0)
    ]


def test_the_front_matter_of_the_card_is_plain_yaml() -> None:
    front = yaml.safe_load(card().split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["model-index"][0]["name"] == "tiny"


def test_text_from_outside_cannot_break_the_cards_tables() -> None:
    row = next(line for line in card("a|b\n---\n<b>`x`").splitlines() if line.startswith("| quick-check"))
    assert row.endswith(r"| a\|b --- \<b\>\`x\` |")
