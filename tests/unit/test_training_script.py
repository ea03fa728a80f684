"""The plan of a script is that script's, and can be trained again."""

from __future__ import annotations

import pytest

from deepseek_ops.core.records import DatasetVersion, FileSet, Hyperparameters, TrainingPlan
from deepseek_ops.training.script import TrainingScript, UnlinkedScriptError, require_linked, scripted

DATASET = DatasetVersion(name="none", version="0" * 64, tree="0" * 64, num_files=0, num_bytes=0)
HYPER = Hyperparameters(learning_rate=0.01, batch_size=4, max_steps=2, sequence_length=16)
PLAN = TrainingPlan(dataset=DATASET, model={}, nproc_per_node=1, hyperparameters=HYPER)
SCRIPT, OTHER = (TrainingScript(code=FileSet(files=()), path=path) for path in ("train.py", "other.py"))


def test_a_nonce_of_the_plans_own_makes_another_training_of_the_same_script():
    first, again = scripted(PLAN, SCRIPT), scripted(PLAN.evolve(nonce="again"), SCRIPT)
    assert len({first.run_prefix, again.run_prefix, scripted(PLAN.evolve(nonce="more"), SCRIPT).run_prefix}) == 3
    for plan in (first, again):
        require_linked(plan, SCRIPT)
        assert scripted(plan, SCRIPT) == plan, "linked twice, it is the same plan"
        with pytest.raises(UnlinkedScriptError, match="scripted"):
            require_linked(plan, OTHER)
