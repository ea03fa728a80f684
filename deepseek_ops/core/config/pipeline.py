"""The pipeline file, ``deepseek.yaml``: one model tree, all sections optional, every default written here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from pydantic import Field, JsonValue, PrivateAttr, model_validator

from deepseek_ops.core.config.alerts import Alert
from deepseek_ops.core.config.base import Config, Place, Problem, Problems
from deepseek_ops.core.config.data import Data
from deepseek_ops.core.config.delivery import Deployment, Experiment, ReleaseRules, Validation
from deepseek_ops.core.config.recording import Records
from deepseek_ops.core.config.setup import Jobs
from deepseek_ops.core.config.training import Sweep, Training
from deepseek_ops.core.config.triggers import Changes, GitPushTrigger, GitTagTrigger, Trigger
from deepseek_ops.core.records import Name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class PipelineFile(Config):
    """What one model repository asks for: from what starts a run to who gets the model first."""

    name: Name = Field(default="deepseek", description="What the model is called in the registry.")
    triggers: tuple[Trigger, ...] = Field(default=(), description="What starts a run; none = only people.")
    changes: Changes = Field(default=Changes(), description="What a changed path means.")
    jobs: Jobs = Field(default=Jobs(), description="The environment of the jobs.")
    data: Data = Field(default=Data(), description="Raw data, preparation, dataset.")
    training: Training = Field(default=Training(), description="The training.")
    sweep: Sweep = Field(default=Sweep(), description="The search over hyperparameters.")
    alerts: tuple[Alert, ...] = Field(default=(), description="Rules over the metrics of the training.")
    validation: Validation = Field(default=Validation(), description="The gates.")
    deployment: Deployment | None = Field(default=None, description="Exports, registry, traffic; none = train only.")
    experiment: Experiment | None = Field(default=None, description="An A/B test between released versions.")
    records: Records = Field(default=Records(), description="How results are written into Git.")
    release: ReleaseRules = Field(default=ReleaseRules(), description="Tags and approval.")

    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _source: str = PrivateAttr(default="")

    @model_validator(mode="before")
    @classmethod
    def _named_after_the_pipeline(cls, data: object) -> object:
        """Fill in what the pipeline's name decides: the dataset's name and the endpoint's."""
        if not isinstance(data, dict):
            return data
        name = data.get("name", "deepseek")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return data
        filled = dict(data)
        filled["data"] = _with_default(data.get("data", {}), "dataset", name)
        if "deployment" in data:
            filled["deployment"] = _with_default(data["deployment"], "endpoint", name)
        return filled

    @model_validator(mode="after")
    def _searchable(self) -> PipelineFile:
        problems = []
        if self.sweep.sampler == "grid":
            for at, one in enumerate(self.training.hyperparameters):
                if one.choices is None:
                    place: Place = ("training", "hyperparameters", at)
                    text = f"the grid sampler cannot enumerate the range of {one.name}."
                    problems.append(Problem(place, text, "Give values, give the range a step, or use sampler: tpe."))
        problems += self._unsearchable_script()
        if problems:
            raise Problems(tuple(problems))
        return self

    def _unsearchable_script(self) -> list[Problem]:
        """Say which words a script that trains the trials must be called with: without them it trains something else.

        The bias update is ours and needs none. A trial has one rank, so a script on more must know the global batch.
        """
        script, searched = self.training.script, [one.name for one in self.training.searched]
        if script is None or not searched:
            return []
        wanted = {name: "the sweep searches it" for name in searched if name != "bias_update_rate"}
        if self.sweep.max_steps is not None:
            wanted["max_steps"] = f"a trial ends after sweep.max_steps = {self.sweep.max_steps}"
        if self.training.world_size > 1:
            wanted["batch_size"] = f"a trial has one rank, the training {self.training.world_size}"
        given = " ".join(script.args)
        missing = [f"{{{name}}} ({why})" for name, why in wanted.items() if f"{{{name}}}" not in given]
        if not missing:
            return []
        text = f"trials run {script.path}, which is not told {', '.join(missing)}."
        return [Problem(("training", "script", "args"), text, "Add each of these words to an argument of the script.")]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the file says that is understood differently or not acted on; one sentence each."""
        return self._warnings

    @property
    def grid_size(self) -> int | None:
        """How many combinations the search has; None when a range leaves infinitely many."""
        sizes = [None if one.choices is None else len(one.choices) for one in self.training.searched]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def num_trials(self) -> int:
        """Trials that a run makes: 0 without a search, never more than there are combinations."""
        if not self.training.searched:
            return 0
        return self.sweep.trials if self.grid_size is None else min(self.sweep.trials, self.grid_size)

    def wants_push(self, branch: str, paths: Sequence[str]) -> bool:
        """Return whether a push to the branch (short name) that changed these paths starts a run."""
        return any(one.wants(branch, paths) for one in self.triggers if isinstance(one, GitPushTrigger))

    def wants_tag(self, tag: str) -> bool:
        """Return whether a pushed tag (short name) starts a run."""
        return any(one.wants(tag) for one in self.triggers if isinstance(one, GitTagTrigger))

    def with_overrides(self, overrides: Mapping[str, JsonValue]) -> PipelineFile:
        """Return a checked copy with values replaced by dotted path, such as ``training.nodes``.

        A list entry is addressed by its ``name`` or position; ``training.hyperparameters.learning_rate`` replaces the
        entry, or adds it: a number fixes the value, a list gives the values to search, a mapping is the entry.
        Raises InvalidPipelineError naming each dotted path that does not exist or whose value is wrong.
        """
        from deepseek_ops.core.config.overrides import override

        return override(self, overrides)

    def remember(self, *, warnings: tuple[str, ...], source: JsonValue) -> PipelineFile:
        """Return this pipeline after it took note of what it was read from; only the reader calls this."""
        self._warnings, self._source = warnings, json.dumps(source)
        return self

    def source(self) -> dict[str, JsonValue]:
        """Return what the file says, as plain JSON and without defaults: the ground that overrides are applied to."""
        if self._source:
            content: dict[str, JsonValue] = json.loads(self._source)
            return content
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def document(self) -> dict[str, JsonValue]:
        """Return the file's content as plain JSON, defaults written out; it validates to an equal pipeline."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _with_default(section: object, key: str, value: str) -> object:
    return {key: value, **section} if isinstance(section, dict) else section
