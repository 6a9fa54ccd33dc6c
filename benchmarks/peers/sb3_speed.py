"""Times Stable-Baselines3's PPO with DummyVecEnv, its fastest vector env here: CartPole-v1, HalfCheetah-v5, Breakout.

Usage: benchmarks/peers/.envs/sb3/bin/python benchmarks/peers/sb3_speed.py --num-envs 64

MuJoCo's envs get VecNormalize; a `NoFrameskip` id gets make_atari_env, four stacked frames and CnnPolicy.
"""

import os

from speed import RECIPE, Window, arguments, minibatch_size, only, report


def main() -> None:
    options = arguments(__doc__, num_envs=64).parse_args()
    only(options, rollout_only=False)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

    torch.set_num_threads(options.threads)
    window = Window.of(options)

    class Boundary(BaseCallback):
        """Marks the end of each update, which is the start of the next rollout, and stops the run there."""

        over = False

        def _on_training_start(self) -> None:
            window.begin()

        def _on_rollout_start(self) -> None:
            self.over = self.num_timesteps > 0 and window.boundary(self.num_timesteps)

        def _on_step(self) -> bool:
            if window.racing and self.locals["dones"].any():
                ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
                self.over = self.over or window.episodes(ended, self.num_timesteps)
            return not self.over

    made = {"n_envs": options.num_envs, "seed": options.seed, "vec_env_cls": DummyVecEnv}
    separate = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh}
    if "NoFrameskip" in options.env:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        envs, policy, kwargs = VecFrameStack(make_atari_env(options.env, **made), 4), "CnnPolicy", {}
        vector_env = "DummyVecEnv + AtariWrapper + VecFrameStack"
    else:
        envs, policy, kwargs = make_vec_env(options.env, **made), "MlpPolicy", separate
        vector_env = "DummyVecEnv + Monitor"
        if not hasattr(envs.action_space, "n"):
            envs, vector_env = VecNormalize(envs, gamma=options.gamma), vector_env + " + VecNormalize"

    model = PPO(
        policy,
        envs,
        n_steps=options.num_steps,
        batch_size=minibatch_size(options),
        n_epochs=options.epochs,
        learning_rate=lambda left: options.learning_rate * left,
        gamma=options.gamma,
        gae_lambda=options.lam,
        clip_range=options.clip,
        ent_coef=options.entropy_coef,
        vf_coef=RECIPE["value_coef"],
        max_grad_norm=RECIPE["max_grad_norm"],
        policy_kwargs=kwargs,
        device="cpu",
        seed=options.seed,
        verbose=0,
    )
    model.learn(total_timesteps=options.total_steps, callback=Boundary(), log_interval=None)
    report("stable-baselines3", "stable-baselines3", options, window, {"vector_env": vector_env})


if __name__ == "__main__":
    main()
