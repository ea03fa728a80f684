"""A packed conversation is learned as if it were alone, and weighs the same however the batch is cut."""

from __future__ import annotations

import numpy as np
import pytest

from deepseek_ops.jobs.conversations import ConversationSplit, ConversationWriter
from deepseek_ops.training.batches import BatchPlan

V3 = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "first_k_dense_replace": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0,
    "initializer_range": 0.2, "max_position_embeddings": 64,
}  # fmt: skip
DENSE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "max_position_embeddings": 64,
}  # fmt: skip
LENGTH = 24


@pytest.fixture(scope="module")
def conversations():
    """Random conversations: token ids and which of them are answers."""
    chance = np.random.default_rng(5)
    made = []
    for _ in range(40):
        size = int(chance.integers(4, 20))
        answers = chance.random(size) < 0.5
        answers[:2] = [False, True]
        made.append((chance.integers(2, 64, size).tolist(), answers.tolist()))
    return made


@pytest.fixture
def split(tmp_path, conversations):
    """The conversations, packed."""
    writer = ConversationWriter(tmp_path, "train", vocab_size=64, shard_tokens=100)
    for ids, answers in conversations:
        writer.add(ids, answers)
    writer.close()
    return ConversationSplit(tmp_path, "train", length=LENGTH, pad=1)


def made(family):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    values = V3 if family == "deepseek_v3" else DENSE
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values)).float()


@pytest.mark.parametrize("family", ["deepseek_v3", "llama", "qwen2"])
def test_packed_conversations_have_the_loss_they_have_alone(split, conversations, family):
    import torch

    from deepseek_ops.jobs.training_model import ExpertBalance
    from deepseek_ops.jobs.training_task import ChatTask, mean_loss

    assert len(split) < len(conversations) / 1.5, "they share windows"
    model = made(family).eval()
    task = ChatTask("cpu", ExpertBalance(model, 0.0))
    packed = mean_loss(model, task.batch(split, range(len(split))))
    total, answers = 0.0, 0
    for ids, learned in conversations:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        wanted = torch.tensor(learned[1:])
        total, answers = total + float(losses[wanted].sum()), answers + int(wanted.sum())
    assert packed == pytest.approx(total / answers, abs=1e-5)
    measured = task.measure(model, task.batch(split, range(len(split))), len(split))
    assert (measured.tokens, measured.loss / measured.tokens) == (answers, pytest.approx(packed, abs=1e-5))


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (4, 1)])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(split, world, micro):
    import torch

    from deepseek_ops.jobs.training_model import ExpertBalance
    from deepseek_ops.jobs.training_task import ChatTask, mean_loss

    model = made("llama")
    task = ChatTask("cpu", ExpertBalance(model, 0.0))
    whole = BatchPlan(3, len(split), 8).global_batch(1)
    expected = mean_loss(model, task.batch(split, whole))
    plan = BatchPlan(3, len(split), 8, world, micro)
    loss = torch.zeros(())
    for rank in range(world):  # what DeepSpeed does: a mean over micro-batches, then over ranks
        for indices in plan.micro_batches(1, rank):
            loss = loss + task.loss(model, task.batch(split, indices)) / plan.accumulation_steps / world
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_padding_is_no_load_of_the_experts(split):
    from deepseek_ops.jobs.training_model import ExpertBalance
    from deepseek_ops.jobs.training_task import ChatTask

    model = made("deepseek_v3").train()
    balance = ExpertBalance(model, 0.0)
    task = ChatTask("cpu", balance)
    task.loss(model, task.batch(split, range(len(split))))
    used = sum(split.window(index).size for index in range(len(split)))
    assert used < len(split) * LENGTH
    assert int(balance.take_counts().sum()) == used * V3["num_experts_per_tok"]
