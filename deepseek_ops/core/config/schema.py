"""The JSON Schema of the pipeline file, with the shorthand forms that people may write."""

from __future__ import annotations

from pydantic import JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from deepseek_ops.core.config.pipeline import PipelineFile


def pipeline_schema() -> dict[str, JsonValue]:
    """Return the JSON Schema (2020-12) of the pipeline file for editors; every key has a description.

    It is a little wider than the checks: what needs more than one key (sums, references) only ``load_pipeline`` knows.
    """
    schema: JsonSchemaValue = PipelineFile.model_json_schema(by_alias=True, mode="validation")
    training = schema["$defs"]["Training"]["properties"]
    training["strategy"] = {**training["strategy"], "enum": ["deepspeed", "horovod"]}
    training["strategy"].pop("const", None)
    training["hyperparameters"] = _with_mapping_form(training["hyperparameters"], schema["$defs"]["Hyperparameter"])
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def _with_mapping_form(listed: JsonSchemaValue, entry: JsonSchemaValue) -> JsonSchemaValue:
    """Return the schema of ``[{name: x, ...}]`` or ``{x: 0.1, y: [1, 2], z: {range: [0, 1]}}``."""
    shared: JsonSchemaValue = {key: listed[key] for key in listed if key in ("description", "default", "title")}
    form = {key: value for key, value in entry["properties"].items() if key != "name"}
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    settings = {"type": "object", "properties": form, "additionalProperties": False}
    mapping = {
        "type": "object",
        "propertyNames": {"enum": entry["properties"]["name"]["enum"]},
        "additionalProperties": {"anyOf": [{"type": "number"}, numbers, settings]},
    }
    return {**shared, "anyOf": [{key: value for key, value in listed.items() if key not in shared}, mapping]}
