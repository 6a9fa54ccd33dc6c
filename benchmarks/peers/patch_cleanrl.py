"""Ports CleanRL 1.2.0's `ppo.py` and `ppo_continuous_action.py` to gymnasium 1.4 by literal text replacement.

Usage: python patch_cleanrl.py DESTINATION        (run with the interpreter that has cleanrl installed)

Nothing of the algorithm changes. What does: the gym import, the reset and step signatures, SAME_STEP
autoreset (what every vector env did when these files were written), the space argument of
TransformObservation, and the log: each finished episode, not the first of a step only, goes to
`episode_log.SummaryWriter`. A replacement that does not apply exactly once, or a source file with another
SHA-256, ends the set-up with an error.
"""

import hashlib
import sys
from importlib.metadata import distribution
from pathlib import Path

SHA256 = {
    "ppo.py": "2cb5f6c703185db7357464ca77251f66e4d62dd2942a3328da9b2e4bb8d338fa",
    "ppo_continuous_action.py": "2b946196c16231f54051d211e74f5ed807e2194d56bd9cf79db0a5b08fd792e3",
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

# (old, new) pairs per file; every `old` must occur exactly once.
REPLACEMENTS = {
    "ppo.py": [
        WRITER,
        ("import gym\n", "import gymnasium as gym\n"),
        (
            """\
        env.seed(seed)
        env.action_space.seed(seed)
        env.observation_space.seed(seed)
""",
            "",
        ),
        SAME_STEP,
        # reset(seed=s) seeds env i with s + i: the seeds that make_env passed to the removed env.seed().
        ("torch.Tensor(envs.reset())", "torch.Tensor(envs.reset(seed=args.seed)[0])"),
        (
            "next_obs, reward, done, info = envs.step(action.cpu().numpy())",
            STEP,
        ),
        (
            """\
            for item in info:
                if "episode" in item.keys():
                    print(f"global_step={global_step}, episodic_return={item['episode']['r']}")
                    writer.add_scalar("charts/episodic_return", item["episode"]["r"], global_step)
                    writer.add_scalar("charts/episodic_length", item["episode"]["l"], global_step)
                    break
""",
            EPISODES,
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
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    # Located, not imported: only these files are wanted, and the package asks for old dependencies.
    installed = Path(str(distribution("cleanrl").locate_file("cleanrl")))
    for name, replacements in REPLACEMENTS.items():
        patched = patch(name, (installed / name).read_text())
        (destination / name).write_text(patched)
        print(f"cleanrl: {name} patched, {len(replacements)} replacements")


if __name__ == "__main__":
    main()
