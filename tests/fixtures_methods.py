"""Trainer parts on two real ranks, without a store: many short trainings in one pair of processes.

Run as a program it is one rank: it trains what MODULES names, and rank 0 writes figures as JSON. Imports cost more than
all of the trainings together, so everything that needs ranks and no launcher shares them.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

VOCABULARY = 128
V3 = {
    "model_type": "deepseek_v3", "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_hidden_layers": 3, "first_k_dense_replace": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "num_nextn_predict_layers": 0, "initializer_range": 0.1, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
V2 = {
    **V3, "model_type": "deepseek_v2", "topk_method": "greedy", "norm_topk_prob": False, "aux_loss_alpha": 0.0,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
}  # fmt: skip
DENSE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2 = {**DENSE, "model_type": "qwen2"}
LLAMA = {**DENSE, "model_type": "llama", "head_dim": 8}
STEPS = 4


def _plan(model, stage=2, **changes):
    from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan

    dataset = DatasetVersion(name="x", version="1" * 64, tree="2" * 64, num_files=1, num_bytes=1)
    hyper = Hyperparameters(
        learning_rate=0.01, batch_size=8, max_steps=STEPS, sequence_length=32, bias_update_rate=0.01
    )
    values = {"dataset": dataset, "model": model, "nproc_per_node": 2, "zero_stage": stage, "hyperparameters": hyper}
    return TrainingPlan.model_validate({**values, **changes})


class _Text:
    """Endless text that can be learned: the next token is a function of the last two, mostly."""

    length = 32

    def __len__(self):
        return 64

    def samples(self, indices):
        import numpy as np

        rows = []
        for index in indices:
            chance = np.random.default_rng(index)
            row = [int(chance.integers(2, VOCABULARY)), int(chance.integers(2, VOCABULARY))]
            while len(row) <= self.length:
                row.append(2 + (3 * row[-1] + row[-2]) % (VOCABULARY - 2))
            rows.append(row)
        return np.array(rows)


class _Run:
    """One training on this rank's engine."""

    def __init__(self, plan, rank):
        import torch

        from deepseek_ops.jobs.training_engine import start_engine
        from deepseek_ops.jobs.training_model import ExpertBalance, build_model, decay_groups
        from deepseek_ops.jobs.training_task import DocumentTask
        from deepseek_ops.training.batches import BatchPlan
        from deepseek_ops.training.deepspeed_config import deepspeed_config, micro_batch_of

        self.plan, self.rank = plan, rank
        model = build_model(plan, None)
        if plan.lora is not None:  # adapters start as zero and would learn slowly
            torch.manual_seed(1)
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(weight, std=0.05)
        self.engine = start_engine(model, deepspeed_config(plan), decay_groups(model, 0.1))
        self.balance = ExpertBalance(self.engine.module, 0.0 if plan.lora else plan.hyperparameters.bias_update_rate)
        self.task, self.text = DocumentTask("cpu"), _Text()
        self.batches = BatchPlan(0, 64, 8, 2, micro_batch_of(plan, 2))
        self.losses, self.counts, self.step = [], [], 0

    def train(self, steps):
        import torch
        import torch.distributed as dist

        for step in range(self.step, self.step + steps):
            torch.manual_seed(step * 2 + self.rank)
            total = torch.zeros(1, dtype=torch.float64)
            for indices in self.batches.micro_batches(step, self.rank):
                loss = self.task.loss(self.engine, self.task.batch(self.text, indices))
                self.engine.backward(loss)
                self.engine.step()
                total += loss.detach() / self.batches.accumulation_steps / 2
            counts = torch.cat([total, self.balance.take_counts()])
            dist.all_reduce(counts)
            self.losses.append(float(counts[0]))
            self.counts.append(counts[1:].tolist())
            self.balance.update(counts[1:])
        self.step += steps
        return self

    def export(self, folder):
        """Return (loss in training, loss of the folder loaded again); on rank 0."""
        import torch
        from transformers import AutoModelForCausalLM

        from deepseek_ops.jobs.training_model import use_grouped_experts
        from deepseek_ops.jobs.training_publish import export_model
        from deepseek_ops.jobs.training_task import mean_loss

        tokenizer = folder / "tokenizer"
        tokenizer.mkdir(parents=True, exist_ok=True)
        export_model(self.engine, self.plan, tokenizer, folder / "model", rank=self.rank)
        batch = self.task.batch(self.text, range(4))
        self.engine.eval()
        expected = mean_loss(self.engine, batch)
        self.engine.train()
        if self.rank:
            return None
        model, report = AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32, output_loading_info=True
        )
        use_grouped_experts(model)
        lost = [str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]]
        return {"expected": expected, "loaded": mean_loss(model.eval(), batch), "lost": lost}

    def close(self):
        self.engine.destroy()


def dense(rank, work):
    """Qwen2 and Llama train and are published."""
    found = {}
    for name, model in (("qwen2", QWEN2), ("llama", LLAMA), ("v2", V2)):
        run = _Run(_plan(model), rank).train(STEPS)
        found[name] = {"losses": run.losses, "export": run.export(work / name)}
        run.close()
    return found


def lora(rank, work):
    """Adapters under ZeRO 2 and 3: what is trained, resumed and published."""
    from deepseek_ops.core.records import LoraPlan

    found = {}
    adapters = LoraPlan(rank=4, alpha=8)
    for name, model, stage in (("v3-2", V3, 2), ("v3-3", V3, 3), ("llama-0", LLAMA, 0)):
        run = _Run(_plan(model, stage, method="lora", lora=adapters), rank)
        trained = [key for key, weight in run.engine.module.named_parameters() if weight.requires_grad]
        run.train(STEPS // 2)
        run.engine.save_checkpoint(str(work / f"lora-{name}"), tag="t")
        run.train(STEPS - STEPS // 2)
        found[name] = {"losses": run.losses, "trained": trained, "export": run.export(work / name)}
        if rank == 0:
            found[name]["files"] = sorted(
                path.relative_to(work / name / "model").as_posix() for path in (work / name / "model").rglob("*")
            )
        run.close()
        again = _Run(_plan(model, stage, method="lora", lora=adapters), rank)
        again.engine.load_checkpoint(str(work / f"lora-{name}"), tag="t")
        again.step = STEPS // 2
        found[name]["resumed"] = again.train(STEPS - STEPS // 2).losses
        again.close()
    return found


def memory(rank, work):
    """Ways to need less memory give the losses of the plain training."""
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    both = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}}
    found = {}
    for name, stage, changes in (
        ("plain-2", 2, {}),
        ("offload-2", 2, {"deepspeed": offload}),
        ("checkpointing-2", 2, {"gradient_checkpointing": True}),
        ("plain-3", 3, {}),
        ("offload-3", 3, {"deepspeed": both}),
        ("checkpointing-3", 3, {"gradient_checkpointing": True}),
    ):
        run = _Run(_plan(V3, stage, **changes), rank).train(STEPS)
        found[name] = {"losses": run.losses, "counts": run.counts}
        run.close()
    return found


def experts(rank, work):
    """Expert parallelism beside the plain training."""
    import torch

    keys = {"expert_parallel": {"enabled": True, "autoep_size": 2}}
    found = {}
    for family, model in (("v3", V3), ("v2", V2)):
        plain = _Run(_plan(model), rank).train(STEPS)
        biases = [b for n, b in plain.engine.module.state_dict().items() if n.endswith("e_score_correction_bias")]
        plain.close()
        run = _Run(_plan(model, deepspeed=keys), rank).train(STEPS // 2)
        run.engine.save_checkpoint(str(work / f"ep-{family}"), tag="t")
        run.train(STEPS - STEPS // 2)
        own = [b for n, b in run.engine.module.state_dict().items() if n.endswith("router.e_score_correction_bias")]
        found[family] = {
            "plain": plain.losses,
            "losses": run.losses,
            "counts": [plain.counts, run.counts],
            "biases": len(own),
            "equal_biases": all(torch.equal(a, b) for a, b in zip(biases, own, strict=True)),
            "moved": any(bool(bias.any()) for bias in own),
            "parameters": [sum(p.numel() for p in one.engine.module.parameters()) for one in (plain, run)],
            "export": run.export(work / f"ep-{family}-export"),
        }
        run.close()
        again = _Run(_plan(model, deepspeed=keys), rank)
        again.engine.load_checkpoint(str(work / f"ep-{family}"), tag="t")
        again.step = STEPS // 2
        found[family]["resumed"] = again.train(STEPS - STEPS // 2).losses
        found[family]["export_resumed"] = again.export(work / f"ep-{family}-again")
        again.close()
    return found


SCENARIOS: dict[str, Callable[..., dict[str, object]]] = {
    "dense": dense, "lora": lora, "memory": memory, "experts": experts}  # fmt: skip


def main() -> None:
    work = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    from deepseek_ops.jobs.training_engine import end_ranks, start_ranks

    start_ranks(work, single_node=True)
    found = {}
    for name in sys.argv[2:]:
        found[name] = SCENARIOS[name](rank, work)
    if rank == 0:
        (work / "figures.json").write_text(json.dumps(found))
    end_ranks()


def run_ranks(work: Path, *scenarios: str) -> dict[str, dict[str, object]]:
    """Return what two ranks measured; fails with their output when one of them did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(work), *scenarios],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=(work / f"rank-{rank}.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(timeout=800) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join((work / f"rank-{rank}.log").read_text()[-3000:] for rank in range(2))
    figures: dict[str, dict[str, object]] = json.loads((work / "figures.json").read_text())
    return figures


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, object]]]:
    """What two ranks measured in all scenarios."""
    return run_ranks(tmp_path_factory.mktemp("methods"), *SCENARIOS)


if __name__ == "__main__":
    main()
