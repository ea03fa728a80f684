"""The pipeline file: what it means, and how it says what is wrong with it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from deepseek_ops.core.config import InvalidPipelineError, PipelineFile, load_pipeline
from deepseek_ops.core.config.alert_actions import ACTS, NOTIFICATIONS
from deepseek_ops.core.quantities import Span
from deepseek_ops.core.records import Hyperparameters

FULL = Path(__file__).parents[2] / "include" / "configs" / "pipeline-full.yaml"


DEPLOY = "deployment: {destination: {type: s3, path: s3://m}, "


def problems_of(text: str | bytes) -> dict[str, str]:
    with pytest.raises(InvalidPipelineError) as refused:
        load_pipeline(text, file="deepseek.yaml")
    for problem in refused.value.problems:
        assert problem.file == "deepseek.yaml"
        assert "\n" not in str(problem), "one line per problem"
    assert str(refused.value).count("\n") == len(refused.value.problems) - 1
    return {problem.key: str(problem) for problem in refused.value.problems}


class TestMeaning:
    def test_the_full_example_loads_without_warnings(self):
        pipeline = load_pipeline(FULL.read_bytes(), file=FULL.name)
        assert pipeline.warnings == ()
        assert pipeline.alerts[0].hold == Span(steps=3)
        shown = {action.type for alert in pipeline.alerts for action in alert.actions}
        assert shown == {get_args(kind.model_fields["type"].annotation)[0] for kind in (*ACTS, *NOTIFICATIONS)}
        assert pipeline.validation.stages[1].timeout == timedelta(hours=2)
        assert pipeline.deployment.steps == (5, 20, 50, 100)
        assert pipeline.training.base_reference.selector == "champion"
        assert (pipeline.grid_size, pipeline.num_trials) == (27, 18)

    def test_the_full_example_names_every_section(self):
        assert set(load_pipeline(FULL.read_text(), file="f").source()) == set(PipelineFile.model_fields)

    def test_written_out_it_loads_to_the_same_content(self):
        import yaml

        document = load_pipeline(FULL.read_bytes(), file="f").document()
        again = load_pipeline(yaml.safe_dump(document), file="g")
        assert again.document() == document

    def test_a_name_is_enough_and_names_what_is_named_after_it(self):
        pipeline = load_pipeline("name: tiny\ndeployment: {destination: {type: s3, path: s3://models/}}", file="f")
        assert (pipeline.data.dataset, pipeline.deployment.endpoint) == ("tiny", "tiny")
        assert [stage.name for stage in pipeline.validation.stages] == ["quick-check", "thorough-eval"]
        assert pipeline.release.approval == "required"
        assert pipeline.num_trials == 0

    def test_hyperparameters_may_be_a_mapping(self):
        text = (
            "training: {hyperparameters: {learning_rate: [1e-3, 5e-4], batch_size: 32, weight_decay: {range: [0, 1]}}}"
        )
        rate, batch, decay = load_pipeline(text, file="f").training.hyperparameters
        assert (rate.values, batch.value, decay.range) == ((0.001, 0.0005), 32, (0, 1))

    def test_drawn_values_and_steps_go_over_the_fixed_ones(self):
        training = load_pipeline(
            "training: {gpus_per_node: 2, hyperparameters: {learning_rate: [0.1, 0.2], epochs: 2}}", file="f"
        ).training
        resolved = training.resolve({"learning_rate": 0.2}, max_steps=7)
        assert resolved == Hyperparameters(learning_rate=0.2, batch_size=16, epochs=2, max_steps=7)

    def test_a_training_without_a_length_takes_one_epoch(self):
        assert load_pipeline("name: x", file="f").training.resolve().epochs == 1.0

    @pytest.mark.parametrize(("engine", "warned"), [("ray", 0), ("slurm", 1)])
    def test_fewer_machines_than_all_are_said_to_be_in_vain_where_no_engine_goes_on_with_them(self, engine, warned):
        pipeline = load_pipeline(f"training: {{engine: {engine}, nodes: 4, min_nodes: 2}}", file="f")
        assert pipeline.training.min_nodes == 2
        assert ["training.min_nodes" in text for text in pipeline.warnings] == [True] * warned
        assert load_pipeline(f"training: {{engine: {engine}, nodes: 4, min_nodes: 4}}", file="f").warnings == ()

    def test_machines_without_an_engine_that_has_them_are_warned_of(self):
        warned = load_pipeline("training: {nodes: 4}", file="f").warnings
        assert ["training.engine names none; runs are refused until it does: ray" in text for text in warned] == [True]
        assert load_pipeline("training: {nodes: 4, engine: slurm}", file="f").warnings == ()

    def test_user_datasets_stand_beside_the_built_in_ones(self):
        text = "validation: {datasets: {mine: {split: val, max_items: 5}}, stages: [{name: a, dataset: mine}]}"
        assert set(load_pipeline(text, file="f").validation.datasets) == {"mine", "small-test-set", "full-test-set"}

    def test_blue_green_moves_everything_at_once(self):
        text = "deployment: {strategy: blue-green, destination: {type: s3, path: s3://m/}}"
        assert load_pipeline(text, file="f").deployment.steps == (100,)

    def test_only_listed_branches_may_be_released(self):
        release = load_pipeline("release: {branches: [main, 'release/*'], tag: '{name}-v{version}'}", file="f").release
        assert [release.allows(branch) for branch in ("main", "release/2", "exp/a")] == [True, True, False]
        assert release.tag_name(name="tiny", version="1.2.0") == "tiny-v1.2.0"

    def test_tags_that_start_something_are_matched(self):
        pipeline = load_pipeline("triggers: [{type: git-tag, tags: ['deepseek-v*']}]", file="f")
        assert pipeline.wants_tag("deepseek-v1.2.0")
        assert not pipeline.wants_tag("exp-1")

    def test_a_script_without_a_sweep_or_with_trials_as_long_as_the_training_needs_no_word_for_its_steps(self):
        script = "training: {script: {path: t.py, args: ['--lr={learning_rate}']}, hyperparameters: {learning_rate: "
        assert load_pipeline(f"sweep: {{max_steps: 8}}\n{script}0.1}}}}", file="f").num_trials == 0
        assert load_pipeline(f"{script}[0.1, 0.2]}}}}", file="f").num_trials == 2

    def test_setup_steps_that_nobody_runs_are_named(self):
        pipeline = load_pipeline("jobs: {setup: {steps: [{run: apt-get install -y ffmpeg}]}}", file="f")
        assert "jobs.setup.steps[0].run is not executed" in pipeline.warnings[0]


class TestOneProblem:
    """Each wrong value is named with its place, and the remedy says what to write."""

    @pytest.mark.parametrize(
        ("text", "key", "says"),
        [
            ("nmae: x", "nmae", "Did you mean 'name'?"),
            ("training: {nodes: two}", "training.nodes", "expected a whole number, got 'two'"),
            ("training: {nodes: '2'}", "training.nodes", "got '2'"),
            ("training: {nodes: true}", "training.nodes", "got true"),
            ("training: {nodes: 0}", "training.nodes", "greater than or equal to 1"),
            ("training: {nodes: 4, min_nodes: 3, engine: ray}", "training.min_nodes", "divisor of nodes: 1, 2, 4."),
            ("training: {nodes: 2, min_nodes: 4, engine: ray}", "training.min_nodes", "cannot go on with 4"),
            ("training: {nodes: 2, engine: local}", "training.nodes", "an engine that has them: ray, slurm"),
            ("training: {nodes: 0, min_nodes: 3}", "training.nodes", "greater than or equal to 1"),
            ("training:", "training", "Give it a value, or remove the key."),
            ("training: {base: champion}", "training.base", "model://name/champion"),
            ("training: {model: ../secret.json}", "training.model", "without '..'"),
            ("training: {strategy: ddp}", "training.strategy", "deepspeed"),
            ("training: {hyperparameters: {lr: 1}}", "training.hyperparameters.lr", "'learning_rate'"),
            ("training: {hyperparameters: {epochs: -1}}", "training.hyperparameters.epochs", "greater than 0"),
            ("training: {hyperparameters: {batch_size: 1.5}}", "training.hyperparameters.batch_size", "1.5"),
            ("training: {gpus_per_node: 2, hyperparameters: {batch_size: 3}}", None, "x gpus_per_node = 1 x 2 = 2"),
            ("training: {hyperparameters: {weight_decay: {range: [1, 0]}}}", None, "1 is not below 0"),
            ("training: {hyperparameters: {weight_decay: {range: [0, 1], log: true}}}", None, "starts above 0"),
            ("training: {hyperparameters: {weight_decay: {range: [0, 1], step: 2}}}", None, "Use at most 1"),
            ("training: {hyperparameters: {weight_decay: {range: [0, 1], step: 1e-9}}}", None, "10,000 steps"),
            ("training: {hyperparameters: {batch_size: {range: [1, 9], step: 0.5}}}", None, "whole step"),
            ("training: {hyperparameters: {epochs: {value: 1, values: [1]}}}", None, "value and values"),
            ("training: {hyperparameters: {epochs: {value: 1, log: true}}}", None, "belongs to a range"),
            ("training: {hyperparameters: {epochs: [1, 2, 1]}}", None, "1 stands there twice"),
            ("sweep: {metric: learning_rate}", "sweep.metric", "val_loss"),
            ("sweep: {sampler: grid}\ntraining: {hyperparameters: {weight_decay: {range: [0, 1]}}}", None, "step"),
            (
                """sweep: {max_steps: 8}
training: {script: {path: t.py, args: ['{weight_decay}']}, hyperparameters: {weight_decay: [0, 1], epochs: [1, 2]}}""",
                "training.script.args",
                "{epochs} (the sweep searches it), {max_steps} (a trial ends after sweep.max_steps = 8).",
            ),
            (
                "training: {gpus_per_node: 2, script: {path: t.py}, hyperparameters: {bias_update_rate: [0, 1]}}",
                None,
                "t.py, which is not told {batch_size} (a trial has one rank, the training 2).",
            ),
            ("data: {split: {train: 0.9, val: 0.2}}", "data.split", "sum to 1.15"),
            ("data: {raw: 'https://example.com/x'}", "data.raw", "s3://bucket/prefix/"),
            ("data: {prepare: prepare.py}", "data.prepare", "module:function"),
            ("triggers: [{type: git-pull}]", "triggers[0]", "Did you mean 'git-push'?"),
            ("triggers: [{branches: [main]}]", "triggers[0]", "Add 'type: ...'."),
            ("triggers: [{type: git-push, branches: ['a[']}]", "triggers[0].branches[0]", "without ']'"),
            ("triggers: [{type: schedule, cron: hourly}]", "triggers[0].cron", "five cron fields"),
            ("triggers: [{type: data-arrival}]", "triggers[0].uri", "the key is missing"),
            ("alerts: [{metric: x, condition: value > 1, actions: []}]", "alerts[0].actions", "at least 1"),
            ("alerts: [{metric: x, condition: 'value >', actions: [{type: page}]}]", "alerts[0].condition", "column 8"),
            (
                "alerts: [{metric: grad_norm, condition: value > threshold, actions: [{type: page}]}]",
                "alerts[0].condition",
                "threshold: 20",
            ),
            (
                "alerts: [{metric: x, condition: value > 1, for: 3, actions: [{type: page}]}]",
                "alerts[0].for",
                "'3 steps'",
            ),
            ("validation: {stages: [{name: a, timeout: 30}]}", "validation.stages[0].timeout", "with a unit"),
            ("validation: {stages: [{name: a}, {name: a}]}", "validation.stages[1].name", "two stages"),
            ("validation: {stages: [{name: a, dataset: ful-test-set}]}", None, "'full-test-set'"),
            ("validation: {stages: [{name: a, against: champion}]}", "validation.stages[0].against", "margin"),
            ("validation: {stages: [{name: a, margin: 0.1}]}", "validation.stages[0].margin", "against: champion"),
            ("deployment: {formats: [onnx]}", "deployment.destination", "missing"),
            ("deployment: {destination: {type: s3, path: /models}}", "deployment.destination.path", "s3://bucket"),
            (DEPLOY + "steps: [5, 3, 100]}", None, "do not rise to 100"),
            (DEPLOY + "steps: [5, 50]}", None, "do not rise to 100"),
            (
                DEPLOY + "formats: [onnx, onnx]}",
                None,
                "'onnx' stands there twice",
            ),
            (
                DEPLOY + "strategy: shadow, steps: [5, 100]}",
                None,
                "no steps",
            ),
            ("experiment: {control: latest, variants: [{version: v1.3.0, traffic: 20%}]}", None, "such as v1.2.0"),
            ("experiment: {control: v1.2.0, variants: [{version: v1.3.0, traffic: 0.2}]}", None, "such as 20%"),
            ("experiment: {control: v1.2.0, variants: [{version: 1.2.0, traffic: 20%}]}", None, "twice"),
            ("experiment: {control: v1.2.0, variants: [{version: v1.3.0, traffic: 100%}]}", None, "control"),
            ("release: {tag: newest}", "release.tag", "{version}"),
            ("release: {tag: 'v {version}'}", "release.tag", "Git tag"),
            ("name: two words", "name", "not a name"),
            ("- a\n- b", "", "expected a mapping"),
            ("just text", "", "expected a mapping"),
        ],
    )
    def test_is_named_with_its_remedy(self, text, key, says):
        found = problems_of(text)
        assert len(found) == 1, found
        ((where, message),) = found.items()
        assert key is None or where == key
        assert says in message

    def test_has_the_line_of_its_key(self):
        text = "name: x\ntraining:\n  # a comment\n  nodes: 1\n  gpus_per_node:\n    many\n"
        with pytest.raises(InvalidPipelineError) as refused:
            load_pipeline(text, file="a.yaml")
        assert refused.value.problems[0].line == 5
        assert str(refused.value).startswith("a.yaml:5: training.gpus_per_node: ")

    def test_never_shows_credentials(self):
        text = (
            "data: {raw: 's3://AKIA:hunter2@bucket/x'}\n"
            "training: {base: 's3://b/x?X-Amz-Signature=hunter3', password: hunter4}\n"
        )
        message = "\n".join(problems_of(text).values())
        assert "hunter" not in message


class TestAllProblems:
    def test_of_a_file_are_told_at_once(self):
        text = """\
name: tiny
triggers:
  - {type: git-push, brnches: [main], paths: 3}
data: {split: {train: 0.9, val: 0.3}}
training:
  nodes: two
  startegy: deepspeed
  hyperparameters:
    - {name: lr, value: 1}
    - {name: batch_size, value: 4}
    - {name: batch_size, value: 8}
    - {name: weight_decay, range: [0, 1]}
sweep: {sampler: grid, trials: "4"}
validation:
  stages: [{name: a, timeout: 30}, {name: a, dataset: smal-test-set}]
deployment: {formats: [onxn], destination: {type: s3, path: /x}, steps: [5, 3]}
"""
        assert set(problems_of(text)) == {
            "triggers[0].brnches",
            "triggers[0].paths",
            "data.split",
            "training.nodes",
            "training.startegy",
            "training.hyperparameters[0].name",
            "training.hyperparameters[2]",
            "training.hyperparameters[3]",
            "sweep.trials",
            "validation.stages[0].timeout",
            "validation.stages[1].name",
            "validation.stages[1].dataset",
            "deployment.formats[0]",
            "deployment.destination.path",
            "deployment.steps",
        }

    def test_that_only_follow_from_another_are_left_out(self):
        text = "data: {split: {train: most, val: 0.05, test: 0.05}}\nvalidation: {stages: [{nmae: quick}]}"
        assert set(problems_of(text)) == {"data.split.train", "validation.stages[0].nmae"}

    def test_come_in_the_order_of_the_file(self):
        with pytest.raises(InvalidPipelineError) as refused:
            load_pipeline("b: 1\na: 2\nc: 3\nname: 4\n", file="f")
        assert [problem.line for problem in refused.value.problems] == [1, 2, 3, 4]

    def test_include_those_of_the_yaml_itself(self):
        assert set(problems_of("name: a\nname: b\nnodes: 2\n")) == {"name", "nodes"}
