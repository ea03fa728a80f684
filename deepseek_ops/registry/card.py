"""The model card: README.md in the layout of the Hugging Face hub, made from the bundle's parts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import yaml
from pydantic import JsonValue

from deepseek_ops.core.records import Checkpoint, Evaluation, ExportedModel, RunManifest
from deepseek_ops.registry.weights import WeightSummary


def model_card(
    *,
    version: str,
    manifest: RunManifest,
    checkpoint: Checkpoint,
    exports: Sequence[ExportedModel],
    evaluations: Sequence[Evaluation],
    weights: WeightSummary | None = None,
) -> str:
    """Return the card. Equal parts give equal text: its digest is in the bundle."""
    front = yaml.safe_dump(_front_matter(manifest, evaluations), sort_keys=False, allow_unicode=True)
    sections = [
        f"---\n{front}---",
        f"# {manifest.name} v{version}",
        _summary(manifest, checkpoint),
        "## Evaluation",
        _evaluation_table(evaluations),
        "## Files",
        _format_table(exports),
        *(("## Weights", _weights_table(weights)) if weights else ()),
        "## Use",
        _use(version),
        "## Reproduce",
        _reproduce(manifest, checkpoint),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: RunManifest, evaluations: Sequence[Evaluation]) -> dict[str, JsonValue]:
    front: dict[str, JsonValue] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["deepseek", "deepseek-ops"],
    }
    results: list[JsonValue] = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": one.stage, "type": one.dataset or one.stage},
            "metrics": [{"type": name, "name": name, "value": value} for name, value in sorted(one.metrics.items())],
        }
        for one in evaluations
        if one.metrics
    ]
    if results:
        front["model-index"] = [{"name": manifest.name, "results": results}]
    return front


def _summary(manifest: RunManifest, checkpoint: Checkpoint) -> str:
    source = manifest.source
    rows = [
        ("Repository", _code(source.repository)),
        ("Commit", f"{_code(source.commit)} ({_code(source.short)})"),
        ("Dataset version", _code(manifest.dataset)),
        ("Base model", _code(manifest.base) if manifest.base else "none, trained from scratch"),
        ("Training", f"{checkpoint.step} steps, {checkpoint.tokens} tokens, {checkpoint.restarts} restarts"),
        ("Hardware", _text(manifest.hardware)),
        *((_text(name), _number(value)) for name, value in sorted(checkpoint.metrics.items())),
    ]
    return _table(("", ""), rows)


def _evaluation_table(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return "No evaluation was given when the version was registered."
    rows = [
        (
            _text(one.stage),
            str(one.verdict),
            ", ".join(f"{_text(name)} {_number(value)}" for name, value in sorted(one.metrics.items())),
            str(one.num_items),
            _comparison(one),
            _text(one.reason),
        )
        for one in evaluations
    ]
    return _table(("Stage", "Verdict", "Metrics", "Items", "Against the champion", "Reason"), rows)


def _comparison(one: Evaluation) -> str:
    if one.delta is None:
        return "no comparison"
    interval = f" [{_number(one.interval[0])}, {_number(one.interval[1])}]" if one.interval else ""
    return f"{_text(one.champion)}: {one.delta:+.6g}{interval}"


def _format_table(exports: Sequence[ExportedModel]) -> str:
    rows = []
    for export in exports:
        parity = export.parity
        shown = (
            f"{_text(parity.runtime)}: max error {parity.max_abs_error:.3g}, top-1 {parity.top1_agreement:.2%}"
            if parity
            else _text(export.reason) or "not compared"
        )
        size = f"{export.files.num_bytes:,}"
        rows.append((f"`{export.format}/`", str(export.status), str(len(export.files.files)), size, shown))
    return _table(("Folder", "Status", "Files", "Bytes", "Agreement with the checkpoint"), rows)


def _weights_table(weights: WeightSummary) -> str:
    dtypes = ", ".join(f"{_text(name)} {count:,}" for name, count in weights.dtypes.items())
    rows = [
        ("Parameters", f"{weights.num_parameters:,} in {weights.num_tensors:,} tensors"),
        ("Parameters by dtype", dtypes),
        ("Format", f"{_text(weights.format)} of {_text(weights.framework)}, {weights.num_bytes:,} bytes"),
        *((_text(key), _text(value[:200])) for key, value in list(weights.metadata.items())[:20]),
    ]
    return _table(("", ""), rows)


def _use(version: str) -> str:
    return (
        f"Copy the folder `v{version}/safetensors/` and load it with transformers:\n\n"
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("safetensors", local_files_only=True)\n'
        'tokenizer = AutoTokenizer.from_pretrained("safetensors", local_files_only=True)\n'
        "```"
    )


def _reproduce(manifest: RunManifest, checkpoint: Checkpoint) -> str:
    rows = [
        ("Training plan", _code(checkpoint.plan)),
        ("Pipeline file", _code(manifest.config_digest)),
        ("Environment", _code(manifest.environment)),
        ("Tree", _code(manifest.tree)),
        ("Seed", str(manifest.seed)),
        ("deepseek-ops", _text(manifest.software)),
    ]
    return _table(("What", "Digest or value"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _text(value: str) -> str:
    """Return text that cannot end its table cell or become markup."""
    plain = " ".join(value.split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in plain)


def _code(value: str) -> str:
    return "`" + " ".join(value.split()).replace("`", "'").replace("|", "\\|") + "`" if value else "none"


def _number(value: float) -> str:
    return f"{value:.6g}"
