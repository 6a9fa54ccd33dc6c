"""Times Stable-Baselines3's PPO on CartPole-v1 with DummyVecEnv, its fastest vector env here.

Usage: benchmarks/peers/.envs/sb3/bin/python benchmarks/peers/sb3_speed.py --num-envs 64
"""

import os

from speed import RECIPE, Window, arguments, minibatch_size, report


def main() -> None:
    options = arguments(__doc__, num_envs=64).parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(options.threads)
    window = Window(options.warmup, options.seconds)

    class Boundary(BaseCallback):
        """Marks the end of each update, which is the start of the next rollout, and stops the run there."""

        over = False

        def _on_rollout_start(self) -> None:
            self.over = self.num_timesteps > 0 and window.boundary(self.num_timesteps)

        def _on_step(self) -> bool:
            return not self.over

    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=options.num_envs, seed=1, vec_env_cls=DummyVecEnv),
        n_steps=options.num_steps,
        batch_size=minibatch_size(options),
        n_epochs=options.epochs,
        learning_rate=RECIPE["lr"],
        gamma=RECIPE["gamma"],
        gae_lambda=RECIPE["gae_lambda"],
        clip_range=RECIPE["clip"],
        ent_coef=RECIPE["entropy_coef"],
        vf_coef=RECIPE["value_coef"],
        max_grad_norm=RECIPE["max_grad_norm"],
        policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=1,
        verbose=0,
    )
    model.learn(total_timesteps=10**9, callback=Boundary(), log_interval=None)
    report("stable-baselines3", "stable-baselines3", options, window, {"vector_env": "DummyVecEnv + Monitor"})


if __name__ == "__main__":
    main()
