"""Two scripts as people write them, without a word of us: one for transformers' Trainer, one for TRL's SFTTrainer."""

from __future__ import annotations

TRAINER_SCRIPT = '''
import argparse
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed


class Windows(torch.utils.data.Dataset):
    def __init__(self, path, tokenizer, length):
        texts = [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]
        ids = [i for text in texts for i in tokenizer(text)["input_ids"]]
        self.rows = [ids[at : at + length] for at in range(0, len(ids) - length, length)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, at):
        ids = torch.tensor(self.rows[at])
        return {"input_ids": ids, "labels": ids.clone()}


class Faulty(Trainer):
    """A Trainer of their own, whose loss is no number in one step of one rank."""

    nan_at = -1

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        bad = self.state.global_step == self.nan_at and self.args.process_index == 1 and model.training
        return loss * float("nan") if bad else loss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--nan-at", type=int, default=-1)
    args = parser.parse_args()
    set_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    config = json.loads(args.model)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    settings = TrainingArguments(
        output_dir="checkpoints", max_steps=args.steps, per_device_train_batch_size=4, learning_rate=args.rate,
        logging_steps=2, save_steps=6, eval_strategy="steps", eval_steps=6, disable_tqdm=True, use_cpu=True, seed=3,
    )
    Faulty.nan_at = args.nan_at
    windows = Windows(args.data, tokenizer, 48)
    held = torch.utils.data.Subset(windows, range(8))
    trainer = Faulty(model=model, args=settings, train_dataset=windows, eval_dataset=held, processing_class=tokenizer)
    trainer.train()
    print("SCRIPT ENDED", trainer.state.global_step)


if __name__ == "__main__":
    main()
'''
SFT_SCRIPT = """
import json
import sys

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

documents, tokenizer_folder, model = sys.argv[1:4]
rows = [json.loads(line)["text"][:200] for line in open(documents)][:40]
dataset = Dataset.from_list([{"prompt": "Explain: ", "completion": row} for row in rows])
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
config = json.loads(model)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)),
    args=SFTConfig(
        output_dir="sft", max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
        save_strategy="no", max_length=64, use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
    ),
    train_dataset=dataset,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=4, target_modules=["o_proj"], task_type="CAUSAL_LM"),
)
trainer.train()
trainer.save_model("sft-final")
"""
