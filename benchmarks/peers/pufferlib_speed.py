"""Times PufferLib 3's PPO (its PuffeRL, as `puffer train` runs it) on its own C CartPole.

Usage: benchmarks/peers/.envs/pufferlib/bin/python benchmarks/peers/pufferlib_speed.py --num-envs 4096 --threads 2

The default `--style common` is everyone's work: separate 64x64 tanh networks, Adam, minibatches of whole
trajectories as PuffeRL draws them. `--style own` is PufferLib's: its Default policy (one shared hidden layer of 128,
GELU), its default.ini and cartpole.ini but for what the arguments say, Adam or Muon (`--optimizer`), no LSTM. Its
dashboard is off, as everyone's display is. Its CartPole ends an episode after 200 steps, so no return of 475 there.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from speed import RECIPE, Window, arguments, minibatch_size, only, report

# what config/default.ini and config/ocean/cartpole.ini say, where `--style own` takes it from there
OWN = {"vf_coef": 2.0, "vf_clip_coef": 0.2, "max_grad_norm": 1.5, "adam_beta1": 0.95, "adam_eps": 1e-12}
COMMON = {
    "vf_coef": RECIPE["value_coef"],
    "vf_clip_coef": RECIPE["clip"],
    "max_grad_norm": RECIPE["max_grad_norm"],
    "adam_beta1": 0.9,
    "adam_eps": 1e-5,
}


def checked_options() -> argparse.Namespace:
    parser = arguments(__doc__, num_envs=64)
    parser.add_argument("--style", choices=["common", "own"], default="common")
    parser.add_argument("--optimizer", choices=["adam", "muon"], default="adam")
    parser.add_argument("--vec", choices=["native", "multiprocessing"], default="native")
    parser.add_argument("--env-workers", type=int, default=2, help="processes of --vec multiprocessing")
    options = parser.parse_args()
    only(options, env="CartPole-v1", until_return=None)
    minibatch = minibatch_size(options)
    if minibatch % options.num_steps:
        raise ValueError(
            f"a minibatch must be whole trajectories, got {minibatch} rows of {options.num_steps} steps"
        )
    return options


def separate(inputs: int, actions: int) -> Any:
    """Actor and critic of 64x64 tanh, as everyone's here."""
    import torch
    from pufferlib.pytorch import layer_init
    from torch import nn

    def network(outputs: int, std: float) -> nn.Sequential:
        return nn.Sequential(
            layer_init(nn.Linear(inputs, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, outputs), std=std),
        )

    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = network(actions, 0.01), network(1, 1.0)

        def forward_eval(
            self, observations: torch.Tensor, state: object = None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.actor(observations), self.critic(observations)

        forward = forward_eval

    return Separate()


def make_envs(options: argparse.Namespace) -> Any:
    from pufferlib import vector
    from pufferlib.ocean.cartpole.cartpole import Cartpole

    if options.vec == "native":
        return vector.make(Cartpole, env_kwargs={"num_envs": options.num_envs, "report_interval": 32})
    workers = options.env_workers
    return vector.make(
        Cartpole,
        env_kwargs={"num_envs": options.num_envs // (2 * workers), "report_interval": 32},
        backend="Multiprocessing",
        num_envs=2 * workers,  # half of them step while the policy acts for the other half
        num_workers=workers,
        batch_size=workers,
        overwork=True,
    )


def configuration(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """PuffeRL's own keys; what default.ini says and nothing here changes is written out too."""
    minibatch = minibatch_size(options)
    return {
        **(OWN if options.style == "own" else COMMON),
        "env": "puffer_cartpole",
        "seed": options.seed,
        "device": "cpu",
        "cpu_offload": False,
        "torch_deterministic": True,
        "use_rnn": False,
        "precision": "float32",
        "compile": False,
        "optimizer": options.optimizer,
        "anneal_lr": True,
        "total_timesteps": options.total_steps,
        "learning_rate": options.learning_rate,
        "gamma": options.gamma,
        "gae_lambda": options.lam,
        "update_epochs": options.epochs,
        "clip_coef": options.clip,
        "ent_coef": options.entropy_coef,
        "adam_beta2": 0.999,
        "batch_size": options.num_envs * options.num_steps,
        "bptt_horizon": options.num_steps,
        "minibatch_size": minibatch,
        "max_minibatch_size": minibatch,
        "vtrace_rho_clip": 1.0,
        "vtrace_c_clip": 1.0,
        "prio_alpha": 0.8,
        "prio_beta0": 0.2,
        "checkpoint_interval": 200,
        "data_dir": folder,
    }


def main() -> None:
    options = checked_options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.chdir(Path(__file__).parent / ".envs")  # PufferLib links its resources into the current folder
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    from pufferlib import models, pufferl

    torch.manual_seed(options.seed)
    envs = make_envs(options)
    inputs, actions = int(np.prod(envs.single_observation_space.shape)), int(envs.single_action_space.n)
    policy = models.Default(envs) if options.style == "own" else separate(inputs, actions)
    window = Window.of(options)
    pufferl.PuffeRL.print_dashboard = lambda *_, **__: None
    with tempfile.TemporaryDirectory(prefix="pufferlib-speed-") as folder:
        trainer = pufferl.PuffeRL(configuration(options, folder), envs, policy)
        try:
            while True:
                trainer.evaluate()
                if not options.rollout_only:
                    trainer.train()
                if window.boundary(trainer.global_step):
                    break
        finally:
            trainer.utilization.stop()
            envs.close()
    settings = {
        "style": options.style,
        "optimizer": options.optimizer,
        "vec": options.vec,
        "workers": 0 if options.vec == "native" else options.env_workers,
    }
    report("pufferlib", "pufferlib", options, window, settings)


if __name__ == "__main__":
    main()
