"""A training that is the user's own script, written for the Trainer of Hugging Face or for TRL.

The script runs as it is. What it needs to know reaches it through its arguments, where these words are replaced:

    {dataset}   folder of the plan's dataset: documents/<split>.jsonl, tokenizer/
    {base}      folder of the model to start from; empty without one
    {output}    folder for the script's own files, kept when ranks are started again
    {seed}, {eval_steps}, and every hyperparameter of the plan by its name, such as {learning_rate}; {max_steps} is -1
                where epochs decide, as transformers' Trainer has it, and {batch_size} counts over all ranks
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import FileSet, Record, TrainingPlan

_LINK = "+script:"
"""Between a nonce and the fingerprint of the script that the plan is of."""

_NO_LENGTH: Mapping[str, JsonValue] = {"epochs": 1.0, "max_steps": -1}
"""What a script is told of the length that the plan does not have; a number of steps overrides epochs there as here."""


class TrainingScript(Record):
    """Which script, and what it is called with."""

    code: FileSet = Field(description="Folder of the model repository that the script lies in.")
    path: str = Field(min_length=1, max_length=1024, description="Of the script below the code's folder.")
    args: tuple[str, ...] = Field(default=(), description="Command line; {words} are replaced.")
    bias_update_rate: float = Field(
        default=0.0, ge=0, description="Step of the routers' correction bias after each update; 0 leaves it alone."
    )


@dataclass(eq=False)
class UnlinkedScriptError(PermanentError):
    """A plan and a script do not belong together."""

    nonce: str
    script: str

    def __str__(self) -> str:
        return (
            f"the plan's nonce is {self.nonce!r}, the script's fingerprint {self.script}: another script would find "
            "this one's result. Make the plan with scripted(plan, script)."
        )


def scripted(plan: TrainingPlan, script: TrainingScript) -> TrainingPlan:
    """Return the plan as that of this script: the script decides the weights, so it decides the fingerprint too.

    A nonce of the plan's own stays in it: with another one the same is trained again. Done twice it changes nothing.
    """
    own = plan.nonce.rpartition(_LINK)[0] if _is_linked(plan, script) else plan.nonce
    return plan.evolve(nonce=f"{own}{_LINK}{script.fingerprint}" if own else script.fingerprint)


def require_linked(plan: TrainingPlan, script: TrainingScript) -> None:
    """Raise UnlinkedScriptError unless the plan was made for the script."""
    if not _is_linked(plan, script):
        raise UnlinkedScriptError(plan.nonce, script.fingerprint)


def _is_linked(plan: TrainingPlan, script: TrainingScript) -> bool:
    return plan.nonce.rpartition(_LINK)[2] == script.fingerprint


def arguments(script: TrainingScript, plan: TrainingPlan, folders: Mapping[str, str]) -> list[str]:
    """Return the script's arguments with the words replaced; other braces stay."""
    hyper = {**_NO_LENGTH, **plan.hyperparameters.model_dump(mode="json", exclude_none=True)}
    own = {"seed": str(plan.seed), "eval_steps": str(plan.eval_steps)}
    words = {**{name: str(value) for name, value in hyper.items()}, **own, **folders}
    told = []
    for argument in script.args:
        text = argument
        for name, value in words.items():
            text = text.replace("{" + name + "}", value)
        told.append(text)
    return told
