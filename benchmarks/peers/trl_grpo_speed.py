"""TRL's GRPO (version 1.16): response tokens a second of whole iterations, one update each.

Usage: benchmarks/peers/.envs/trl-grpo/bin/python benchmarks/peers/trl_grpo_speed.py [--threads 2]
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from typing import Any

import torch
from rlhf_work import (
    GROUP,
    GRPO_BETA,
    NEW,
    RECIPE,
    RESPONSES,
    arguments,
    causal,
    prompts,
    small_token_share,
    tell,
    tokenizer,
)
from speed import Window


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, TRL's default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    window = Window(options.warmup, options.seconds)

    class Boundaries(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if window.boundary(int(state.global_step) * RESPONSES * NEW):
                raise StopIteration

    def reward(completions: Any, completion_ids: list[list[int]], **more: Any) -> list[float]:
        return [small_token_share(ids) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=RESPONSES, gradient_accumulation_steps=1,
            num_generations=GROUP, max_completion_length=NEW, num_iterations=1, beta=GRPO_BETA,
            temperature=RECIPE["temperature"], learning_rate=RECIPE["lr"], epsilon=RECIPE["clip"],
            gradient_checkpointing=options.checkpointing, bf16=False, report_to=[], logging_steps=10**6,
            save_strategy="no", use_cpu=True, seed=options.seed, disable_tqdm=True, max_steps=10**6,
            generation_kwargs={"eos_token_id": None}, dataloader_num_workers=0,
        )  # fmt: skip
        data = Dataset.from_dict({"prompt": [" ".join(map(str, prompt)) for prompt in prompts(4096)]})
        causal().save_pretrained(f"{folder}/model")  # it asks the model for the folder that it is from
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(f"{folder}/model"), reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer(),
            callbacks=[Boundaries()],
        )  # fmt: skip
        with contextlib.suppress(StopIteration):
            trainer.train()
    tell("TRL GRPO", "trl", window, options)


if __name__ == "__main__":
    main()
