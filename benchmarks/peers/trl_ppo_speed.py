"""TRL's PPO (trl.experimental.ppo, version 1.8): response tokens a second of whole iterations.

Usage: benchmarks/peers/.envs/trl-ppo/bin/python benchmarks/peers/trl_ppo_speed.py [--micro-batch 64] [--threads 2]
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from typing import Any

import torch
from rlhf_work import NEW, RECIPE, RESPONSES, arguments, causal, prompts, scalar, tell, tokenizer
from speed import Window


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--micro-batch", type=int, default=RESPONSES)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, TRL's default")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    window = Window(options.warmup, options.seconds)

    class Boundaries(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if window.boundary(int(state.episode) * NEW):
                raise StopIteration

    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=RESPONSES // options.micro_batch, num_mini_batches=1,
            num_ppo_epochs=options.epochs, total_episodes=10**9, response_length=NEW, stop_token=None,
            temperature=RECIPE["temperature"], learning_rate=RECIPE["lr"], kl_coef=RECIPE["kl"], vf_coef=RECIPE["value_coef"],
            cliprange=RECIPE["clip"], gamma=RECIPE["gamma"], lam=RECIPE["lam"], num_sample_generations=0,
            local_rollout_forward_batch_size=RESPONSES, gradient_checkpointing=options.checkpointing, bf16=False,
            report_to=[], logging_steps=10**6, save_strategy="no", use_cpu=True, seed=options.seed, disable_tqdm=True,
            missing_eos_penalty=None,
        )  # fmt: skip
        own = tokenizer()
        data = Dataset.from_dict({"input_ids": prompts(64 * RESPONSES)})
        trainer = PPOTrainer(
            args=config, processing_class=own, model=causal(), ref_model=causal(), reward_model=scalar(),
            value_model=scalar(5), train_dataset=data, callbacks=[Boundaries()],
        )  # fmt: skip
        with contextlib.suppress(StopIteration):
            trainer.train()
    tell("TRL PPO", "trl", window, options)


if __name__ == "__main__":
    main()
