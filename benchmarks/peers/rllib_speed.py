"""Times RLlib's PPO (new API stack) on CartPole-v1 or HalfCheetah-v5; best on 2 cores are 2 runners of 64 envs each.

Usage: benchmarks/peers/.envs/rllib/bin/python benchmarks/peers/rllib_speed.py [--num-envs 128] [--runners 2]

`--num-envs` counts the envs of all runners together. With `--runners 0` the envs run in the driver. The
default `--vectorize vector_entry_point` is gymnasium's batched CartPoleVectorEnv; `sync` is RLlib's own
default, and the one for other envs. MuJoCo's envs get its MeanStdFilter.
"""

import logging
import os

from speed import RECIPE, Window, arguments, minibatch_size, only, report


def main() -> None:
    parser = arguments(__doc__, num_envs=128)
    parser.add_argument("--runners", type=int, default=2)
    parser.add_argument(
        "--vectorize", choices=["sync", "async", "vector_entry_point"], default="vector_entry_point"
    )
    options = parser.parse_args()
    only(options, rollout_only=False, until_return=None)
    cartpole = options.env == "CartPole-v1"
    if not cartpole:
        only(options, vectorize="sync")
    if options.num_envs % max(1, options.runners):
        raise ValueError(f"runners must divide num_envs, got {options.num_envs} / {options.runners}")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import ray
    import torch
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.connectors.env_to_module import MeanStdFilter
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    torch.set_num_threads(options.threads)
    ray.init(
        num_cpus=max(2, options.runners + 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    config = (
        PPOConfig()
        .environment(options.env)
        .env_runners(
            num_env_runners=options.runners,
            num_envs_per_env_runner=options.num_envs // max(1, options.runners),
            rollout_fragment_length=options.num_steps,
            gym_env_vectorize_mode=options.vectorize,
            env_to_module_connector=None if cartpole else (lambda env, spaces, device: MeanStdFilter()),
        )
        .learners(num_learners=0, num_gpus_per_learner=0)
        .training(
            train_batch_size_per_learner=options.num_envs * options.num_steps,
            minibatch_size=minibatch_size(options),
            num_epochs=options.epochs,
            lr=options.learning_rate,
            gamma=options.gamma,
            lambda_=options.lam,
            clip_param=options.clip,
            entropy_coeff=options.entropy_coef,
            vf_loss_coeff=RECIPE["value_coef"],
            grad_clip=RECIPE["max_grad_norm"],
            grad_clip_by="global_norm",
            use_kl_loss=False,
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False
            )
        )
        .debugging(seed=options.seed, log_level="ERROR")
    )
    algorithm = config.build_algo()
    window = Window.of(options)
    try:
        # Lifetime counts come from the result: env runners may return a few steps more than asked for.
        while not window.boundary(int(algorithm.train()["num_env_steps_sampled_lifetime"])):
            pass
    finally:
        algorithm.stop()
        ray.shutdown()
    settings = {"runners": options.runners, "vectorize": options.vectorize, "learner": "in the driver"}
    report("rllib", "ray", options, window, settings)


if __name__ == "__main__":
    main()
