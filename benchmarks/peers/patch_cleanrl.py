"""Ports CleanRL 1.2.0's PPO files to gymnasium 1.4 by literal text replacement.

Usage: python patch_cleanrl.py DESTINATION FILE.py ...   (run with the interpreter that has cleanrl installed)

Nothing of the algorithm changes. What does: the gym import, the reset and step signatures, SAME_STEP
autoreset (what every vector env did when these files were written), names of wrappers, the space argument of
TransformObservation, and the log: each finished episode, not the first of a step only, goes to
`episode_log.SummaryWriter`. `ppo_atari_envpool.py` is moved from Atari to CartPole: the networks of ppo.py in the
place of the CNN, no lives and no clipped rewards, and its log also hears where rollouts begin and end; EnvPool has
NEXT_STEP autoreset only, which the file does not mask: right for timing, not for learning. A replacement that does
not apply exactly once, or a source file with another SHA-256, ends the set-up with an error.
"""

import hashlib
import sys
from importlib.metadata import distribution
from pathlib import Path

SHA256 = {
    "ppo.py": "2cb5f6c703185db7357464ca77251f66e4d62dd2942a3328da9b2e4bb8d338fa",
    "ppo_continuous_action.py": "2b946196c16231f54051d211e74f5ed807e2194d56bd9cf79db0a5b08fd792e3",
    "ppo_atari.py": "b9a71b6c700c0e5fffb3fb06e86ebe15633c623207a106782df3898d92dc4631",
    "ppo_atari_envpool.py": "6b32fdb3b72d28eab4d2eb5c67fb32ab591f7d6e5f6fffc02c5cc259dde7bcc3",
}

WRITER = ("from torch.utils.tensorboard import SummaryWriter", "from episode_log import SummaryWriter")

SAME_STEP = (
    "for i in range(args.num_envs)]\n",
    "for i in range(args.num_envs)],\n        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,\n",
)

STEP = """\
next_obs, reward, terminated, truncated, infos = envs.step(action.cpu().numpy())
            done = np.logical_or(terminated, truncated)"""

EPISODES = """\
            if "final_info" in infos:
                episode = infos["final_info"]["episode"]
                for i in np.flatnonzero(infos["_final_info"]):
                    writer.episode(global_step, float(episode["r"][i]), int(episode["l"][i]))
"""

GYM = ("import gym\n", "import gymnasium as gym\n")

SEEDING = (
    """\
        env.seed(seed)
        env.action_space.seed(seed)
        env.observation_space.seed(seed)
""",
    "",
)

# reset(seed=s) seeds env i with s + i: the seeds that make_env passed to the removed env.seed().
RESET = ("torch.Tensor(envs.reset())", "torch.Tensor(envs.reset(seed=args.seed)[0])")

OLD_STEP = "next_obs, reward, done, info = envs.step(action.cpu().numpy())"

OLD_EPISODES = """\
            for item in info:
                if "episode" in item.keys():
                    print(f"global_step={global_step}, episodic_return={item['episode']['r']}")
                    writer.add_scalar("charts/episodic_return", item["episode"]["r"], global_step)
                    writer.add_scalar("charts/episodic_length", item["episode"]["l"], global_step)
                    break
"""

CNN = """\
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)),
            nn.ReLU(),
        )
        self.actor = layer_init(nn.Linear(512, envs.single_action_space.n), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1)
"""

MLP = """\
        width = int(np.prod(envs.single_observation_space.shape))
        self.critic = nn.Sequential(
            layer_init(nn.Linear(width, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 1), std=1.0),
        )
        self.actor = nn.Sequential(
            layer_init(nn.Linear(width, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, 64)),
            nn.Tanh(),
            layer_init(nn.Linear(64, envs.single_action_space.n), std=0.01),
        )
"""

# A lost life ends an episode for EpisodicLifeEnv, but no whole game.
GAMES = """\
            if "episode" in infos.get("final_info", {}):
                episode = infos["final_info"]["episode"]
                for i in np.flatnonzero(infos["final_info"]["_episode"]):
                    writer.episode(global_step, float(episode["r"][i]), int(episode["l"][i]))
"""

# (old, new) pairs per file; every `old` must occur exactly once.
REPLACEMENTS = {
    "ppo.py": [WRITER, GYM, SEEDING, SAME_STEP, RESET, (OLD_STEP, STEP), (OLD_EPISODES, EPISODES)],
    "ppo_atari.py": [
        WRITER,
        ("import gym\n", "import ale_py\nimport gymnasium as gym\n"),
        ("def make_env(env_id", "gym.register_envs(ale_py)\n\n\ndef make_env(env_id"),
        ("gym.wrappers.GrayScaleObservation(env)", "gym.wrappers.GrayscaleObservation(env)"),
        ("gym.wrappers.FrameStack(env, 4)", "gym.wrappers.FrameStackObservation(env, 4)"),
        SEEDING,
        SAME_STEP,
        RESET,
        (OLD_STEP, STEP),
        (OLD_EPISODES, GAMES),
    ],
    "ppo_atari_envpool.py": [
        WRITER,
        GYM,
        (
            "observations, rewards, dones, infos = super().step(action)",
            "observations, rewards, terminated, truncated, infos = super().step(action)\n        dones = terminated | truncated",
        ),
        ("RecordEpisodeStatistics(gym.Wrapper)", "RecordEpisodeStatistics(gym.vector.VectorWrapper)"),
        ('        self.num_envs = getattr(env, "num_envs", 1)\n', ""),
        (
            "    envs.num_envs = args.num_envs\n"
            "    envs.single_action_space = envs.action_space\n"
            "    envs.single_observation_space = envs.observation_space\n",
            "",
        ),
        ("isinstance(envs.action_space, gym", "isinstance(envs.single_action_space, gym"),
        ('infos["reward"]', "rewards"),
        ('self.episode_returns *= 1 - infos["terminated"]', "self.episode_returns *= 1 - dones"),
        ('self.episode_lengths *= 1 - infos["terminated"]', "self.episode_lengths *= 1 - dones"),
        (CNN, MLP),
        ("return self.critic(self.network(x / 255.0))", "return self.critic(x)"),
        (
            "        hidden = self.network(x / 255.0)\n        logits = self.actor(hidden)",
            "        logits = self.actor(x)",
        ),
        ("probs.entropy(), self.critic(hidden)", "probs.entropy(), self.critic(x)"),
        ('env_type="gym"', 'env_type="gymnasium"'),
        ("        episodic_life=True,\n        reward_clip=True,\n", ""),
        ("torch.Tensor(envs.reset())", "torch.Tensor(envs.reset()[0])"),
        (
            "        for step in range(0, args.num_steps):",
            "        writer.rollout_begins()\n        for step in range(0, args.num_steps):",
        ),
        (
            """\
            for idx, d in enumerate(done):
                if d and info["lives"][idx] == 0:
                    print(f"global_step={global_step}, episodic_return={info['r'][idx]}")
                    avg_returns.append(info["r"][idx])
                    writer.add_scalar("charts/avg_episodic_return", np.average(avg_returns), global_step)
                    writer.add_scalar("charts/episodic_return", info["r"][idx], global_step)
                    writer.add_scalar("charts/episodic_length", info["l"][idx], global_step)
""",
            """\
            for i in np.flatnonzero(done):
                writer.episode(global_step, float(info["r"][i]), int(info["l"][i]))
        writer.rollout_ends()
""",
        ),
    ],
    "ppo_continuous_action.py": [
        WRITER,
        SAME_STEP,
        ("lambda obs: np.clip(obs, -10, 10))", "lambda obs: np.clip(obs, -10, 10), env.observation_space)"),
        (
            """\
            # Only print when at least 1 env is done
            if "final_info" not in infos:
                continue

            for info in infos["final_info"]:
                # Skip the envs that are not done
                if info is None:
                    continue
                print(f"global_step={global_step}, episodic_return={info['episode']['r']}")
                writer.add_scalar("charts/episodic_return", info["episode"]["r"], global_step)
                writer.add_scalar("charts/episodic_length", info["episode"]["l"], global_step)
""",
            EPISODES,
        ),
    ],
}


def patch(name: str, text: str) -> str:
    """Returns `text` with the replacements of file `name` made; ValueError if one does not apply once."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(f"{name}: SHA-256 must be {SHA256[name]}, got {digest}: install cleanrl==1.2.0")
    for old, new in REPLACEMENTS[name]:
        if text.count(old) != 1:
            raise ValueError(
                f"{name}: this text must occur once, got {text.count(old)} times; adapt the patch:\n{old}"
            )
        text = text.replace(old, new)
    return text


def main() -> None:
    destination, names = Path(sys.argv[1]), sys.argv[2:]
    destination.mkdir(parents=True, exist_ok=True)
    # Located, not imported: only these files are wanted, and the package asks for old dependencies.
    installed = Path(str(distribution("cleanrl").locate_file("cleanrl")))
    for name in names:
        patched = patch(name, (installed / name).read_text())
        (destination / name).write_text(patched)
        print(f"cleanrl: {name} patched, {len(REPLACEMENTS[name])} replacements")


if __name__ == "__main__":
    main()
