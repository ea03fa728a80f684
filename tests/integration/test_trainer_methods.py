"""Every way to train: answers, adapters, dense models, spread experts, less memory, new data on an old model.

``figures`` are of two real ranks without a launcher; the last test takes the whole way, from documents to a model.
"""

from __future__ import annotations

import json

import pytest
from fixtures_methods import figures  # noqa: F401  (pytest fixture)
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.records import DatasetVersion, FileSet, LoraPlan, ReplayPlan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # one fixture holds all of the ranks' trainings


@pytest.mark.parametrize("model", ["qwen2", "llama", "v2"])
def test_other_families_are_trained_and_published(figures, model):  # noqa: F811
    found = figures["dense"][model]
    assert found["export"]["lost"] == []
    assert found["export"]["loaded"] == pytest.approx(found["export"]["expected"], abs=1e-5)
    assert found["losses"][-1] < found["losses"][0]


@pytest.mark.parametrize("run", ["v3-2", "v3-3", "llama-0"])
def test_adapters_alone_are_trained_resumed_to_the_bit_and_merged(figures, run):  # noqa: F811
    found = figures["lora"][run]
    assert found["trained"]
    assert all(".lora_" in name for name in found["trained"])
    assert found["resumed"] == found["losses"][2:]
    assert found["export"]["lost"] == []
    assert found["export"]["loaded"] == pytest.approx(found["export"]["expected"], abs=1e-5)
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} <= set(
        found["files"]
    )


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("way", ["offload", "checkpointing"])
def test_less_memory_gives_the_same_losses_and_the_same_load_of_experts(figures, way, stage):  # noqa: F811
    assert figures["memory"][f"{way}-{stage}"] == figures["memory"][f"plain-{stage}"]


@pytest.mark.parametrize("family", ["v3", "v2"])
def test_spread_experts_train_as_one_model_and_are_published_as_one(figures, family):  # noqa: F811
    found = figures["experts"][family]
    assert found["losses"] == pytest.approx(found["plain"], abs=1e-5)
    assert found["parameters"][1] < found["parameters"][0], "each rank holds its own experts only"
    assert found["resumed"] == found["losses"][2:]
    for export in (found["export"], found["export_resumed"]):
        assert export["lost"] == []
        assert export["loaded"] == pytest.approx(export["expected"], abs=1e-5)


def test_the_bias_of_spread_experts_moves_as_that_of_whole_ones(figures):  # noqa: F811
    found = figures["experts"]["v3"]
    assert found["biases"] == 2
    assert found["moved"]
    assert found["equal_biases"]
    assert found["counts"][0] == found["counts"][1]


CHAT = '''
import json, random
from pathlib import Path
from template import prepare as template

WORDS = "red blue green gold black white pink grey".split()

def talk(raw, out, words=0, **_):
    """Conversations about colours; the tokenizer is that of the first version, whatever the words are."""
    template.VOCAB_SIZE = 400
    out.mkdir(parents=True, exist_ok=True)
    chance = random.Random(int(words))
    names = WORDS[4:] if int(words) else WORDS[:4]
    with (out / "documents.jsonl").open("w") as file:
        for number in range(160):
            messages = []
            for turn in range(chance.randrange(1, 4)):
                word = chance.choice(names)
                messages.append({"role": "user", "content": f"Say {word}, please, for number {number * 7 + turn}."})
                messages.append({"role": "assistant", "content": f"{word} " * chance.randrange(1, 6)})
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\\n")
    texts = [f"Say {word}, please, for number {number}. user: assistant:" for number in range(50) for word in WORDS]
    template.save_tokenizer(template.train_tokenizer(texts), out / "tokenizer")
'''


@pytest.fixture(scope="module")
def chats(lab, tmp_path_factory):  # noqa: F811
    """Two versions of a dataset of conversations, made by real prepare jobs with one tokenizer."""
    code = tmp_path_factory.mktemp("code")
    (code / "talks.py").write_text(CHAT)
    for entry in lab.code.files:
        target = code / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(lab.blobs.get(entry.digest))
    files = lab.blobs.put_folder(code)
    versions = []
    for words in (0, 1):
        payload = {
            "code": files.dump(), "callable": "talks:talk", "raw": lab.raw.dump(), "dataset": "talks",
            "split": {"train": 0.8, "val": 0.2}, "parameters": {"words": words},
        }  # fmt: skip
        result = lab.result(lab.submit("prepare", f"prepare-talks-{words}", payload))
        assert result["report"]["conversations_by_split"]["train"] > 50
        assert "DeepSeek-V3" in result["report"]["chat_template"]
        versions.append(DatasetVersion.load(result["dataset"]))
    return versions


def test_answers_are_learned_and_an_incremental_training_measures_what_it_forgets(lab, chats, tmp_path):  # noqa: F811
    old, new = chats
    hyper = {"max_steps": 24, "learning_rate": 0.02}
    first = lab.plan(old, method="sft", hyperparameters=hyper, eval_steps=24)
    base = lab.trained("sft", first)
    (packed, *_) = lab.events("sft", "packed")
    assert packed["filled"] > 0.8
    assert packed["conversations"] > 50
    assert base.metrics["val_loss"] < lab.rows("sft")[1]["training_loss"] - 1
    lab.blobs.fetch_folder(base.model, tmp_path / "model")
    assert "Assistant" in (tmp_path / "model" / "chat_template.jinja").read_text()

    more = {"base": base.model, "hyperparameters": {"max_steps": 12, "learning_rate": 0.02}, "eval_steps": 12}
    replay = ReplayPlan(datasets=(old,), share=0.5)
    plain = lab.trained("more-plain", lab.plan(new, method="sft", rewarm=0.5, replay=replay, **more))
    assert max(row["learning_rate"] for row in lab.rows("more-plain").values()) <= 0.01
    metrics = plain.metrics
    assert metrics["forgetting"] == pytest.approx(metrics["val_loss_old"] - base.metrics["val_loss"], abs=1e-4)

    adapted = lab.plan(new, method="lora", lora=LoraPlan(rank=4, alpha=8), **more)
    checkpoint = lab.trained("more-lora", adapted)
    lab.blobs.fetch_folder(checkpoint.model, tmp_path / "adapted")
    settings = json.loads((tmp_path / "adapted" / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 4
    small = (tmp_path / "adapted" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert small < (tmp_path / "adapted" / "model.safetensors").stat().st_size / 2


def test_a_dataset_without_conversations_and_one_with_another_tokenizer_are_refused(lab, chats, dataset):  # noqa: F811
    status = lab.settle(lab.train("sft-nothing", lab.plan(dataset, ranks=1, method="sft")))
    assert status.phase is JobPhase.FAILED
    assert "holds no conversations" in status.reason
    replay = ReplayPlan(datasets=(chats[0],), share=0.5)
    mixed = lab.plan(dataset, ranks=1, base=FileSet(files=()), replay=replay, model=MODEL)
    status = lab.settle(lab.train("mixed-tokenizers", mixed))
    assert status.phase is JobPhase.FAILED
    assert "tokenised differently" in status.reason
