"""The sections of the table: who is measured with what, and what is to be shown.

A contestant's candidates are the settings that were looked at for it, peers' and ours alike: threads, vector envs,
numbers of envs. All of a section share the recipe, unless its title says otherwise.
"""

from __future__ import annotations

from itertools import product

from comparison.contestants import Contestant, LimitTarget, Section, Target
from comparison.limit import actor_critic, nature_cnn

CLEANRL, SB3, RLLIB, PUFFERLIB = "CleanRL", "SB3", "RLlib", "PufferLib"
ENVPOOL, SAMPLE_FACTORY, OURS = "CleanRL on EnvPool", "Sample Factory", "distrl"
THREADS = (("--threads", "1"), ("--threads", "2"))


def cleanrl(*arguments: str) -> Contestant:
    return Contestant(CLEANRL, "cleanrl", arguments, "cleanrl")


def envpool(*arguments: str) -> Contestant:
    return Contestant(ENVPOOL, "envpool", ("--vector-env", "envpool", *arguments), "cleanrl")


def sb3(*arguments: str) -> Contestant:
    return Contestant(SB3, "sb3", arguments, "sb3")


def rllib(*arguments: str) -> Contestant:
    return Contestant(RLLIB, "rllib", arguments, "rllib")


def pufferlib(*arguments: str) -> Contestant:
    return Contestant(PUFFERLIB, "pufferlib", arguments, "pufferlib")


def sample_factory(*arguments: str) -> Contestant:
    return Contestant(SAMPLE_FACTORY, "samplefactory", arguments, "samplefactory")


def distrl(*arguments: str, name: str = OURS) -> Contestant:
    return Contestant(name, None, arguments)


def _cartpole(num_envs: int) -> tuple[Contestant, ...]:
    envs = ("--num-envs", str(num_envs))
    return (
        *(distrl(*envs, "--groups", groups, *more) for groups, more in product(("1", "2"), THREADS)),
        distrl(*envs, "--groups", "1", "--overlap", "1", name="distrl, overlap 1"),
        distrl(*envs, "--groups", "1", "--env-backend", "gymnasium", name="distrl, Gymnasium's envs"),
        *(pufferlib(*envs, *more) for more in THREADS),
        pufferlib(*envs, "--vec", "multiprocessing"),
        *(cleanrl(*envs, "--vector-env", kind) for kind in ("sync", "native")),
        envpool(*envs),
        *(sb3(*envs, *more) for more in THREADS),
        rllib(*envs, "--runners", "0"),
        rllib(*envs, "--runners", "2"),
        sample_factory(*envs),
        sample_factory(*envs, "--serial", "--splits", "1"),
    )


EVERYONE = (PUFFERLIB, CLEANRL, ENVPOOL, SB3, RLLIB, SAMPLE_FACTORY)
SMALL = actor_critic(4, 2, (64, 64), epochs=4)
BEST = (
    *(
        distrl("--num-envs", envs, "--groups", groups, *more)
        for envs, groups, more in product(("512", "2048", "8192"), ("1", "2"), THREADS[1:])
    ),
    *(pufferlib("--num-envs", envs, *more) for envs, more in product(("1024", "4096"), THREADS)),
    *(
        cleanrl("--num-envs", envs, "--vector-env", "native", *more)
        for envs, more in product(("512", "2048"), THREADS)
    ),
    *(envpool("--num-envs", envs, *more) for envs, more in product(("512", "2048"), THREADS)),
    *(sb3("--num-envs", envs, "--threads", "2") for envs in ("64", "256")),
    *(rllib("--num-envs", envs, "--runners", "2") for envs in ("128", "512")),
    *(sample_factory("--num-envs", envs) for envs in ("64", "256")),
)

OWN_STYLE = ("--num-envs", "4096", "--num-steps", "64", "--epochs", "1", "--minibatches", "8")
PUFFER_STYLE = (
    *(
        distrl(*OWN_STYLE, "--hidden-sizes", "128", "--groups", groups, *more)
        for groups, more in product(("1", "2"), THREADS)
    ),
    *(
        pufferlib(*OWN_STYLE, "--style", "own", "--optimizer", optimizer, *more)
        for optimizer, more in product(("adam", "muon"), THREADS)
    ),
)

RAY_ENVS = ("512", "4096")
RAY = (
    *(
        distrl("--workers", "2", "--groups", "2", "--num-envs", envs, *more, name="distrl, 2 workers")
        for envs, more in product(RAY_ENVS, THREADS)
    ),
    *(
        distrl("--groups", "2", "--num-envs", envs, *more, name="distrl, in-process")
        for envs, more in product(RAY_ENVS, THREADS)
    ),
    rllib("--num-envs", "128"),
    rllib("--num-envs", "128", "--vectorize", "sync"),
    rllib("--num-envs", "512"),
)

RACE = ("--until-return", "475", "--total-steps", "500000")
# rl-zoo3's settings for CartPole-v1, but for the schedules' end and the clip's schedule
ZOO = (
    "--num-envs", "8", "--num-steps", "32", "--epochs", "20", "--minibatches", "1", "--learning-rate", "1e-3",
    "--gamma", "0.98", "--lam", "0.8", "--entropy-coef", "0",
)  # fmt: skip
# CleanRL's own settings with a larger step
FAST = ("--num-envs", "8", "--num-steps", "128", "--learning-rate", "1e-3")
# more envs, short fragments, a large step: few steps in Python for each env step
WIDE = (
    "--num-envs", "32", "--num-steps", "32", "--epochs", "8", "--minibatches", "4", "--learning-rate", "3e-3",
    "--gamma", "0.98", "--lam", "0.8", "--entropy-coef", "0",
)  # fmt: skip
RECIPES = {"zoo": ZOO, "fast": FAST, "wide": WIDE}
RACERS = tuple(
    Contestant(f"{name}, {recipe}", of, (*RACE, *settings, *more), runner)
    for name, of, runner, more in (
        (OURS, None, "distrl", ("--groups", "1")),
        (CLEANRL, "cleanrl", "cleanrl", ("--vector-env", "sync")),
        (SB3, "sb3", "sb3", ()),
    )
    for recipe, settings in RECIPES.items()
)

ROLLOUTS = (
    *(
        distrl("--rollout-only", "--num-envs", envs, "--groups", groups)
        for envs, groups in product(("512", "4096"), ("1", "2"))
    ),
    *(
        pufferlib("--rollout-only", "--num-envs", envs, *more)
        for envs, more in product(("1024", "4096"), THREADS)
    ),
    pufferlib("--rollout-only", "--num-envs", "4096", "--vec", "multiprocessing"),
    *(
        envpool("--rollout-only", "--num-envs", envs, *more)
        for envs, more in product(("512", "2048"), THREADS)
    ),
)

CHEETAH_WORK = (
    "--env", "HalfCheetah-v5", "--num-envs", "8", "--num-steps", "256", "--epochs", "10", "--minibatches", "32",
    "--learning-rate", "3e-4", "--entropy-coef", "0",
)  # fmt: skip
NORMALIZED = ("--normalize-observation", "--normalize-reward")
CHEETAH = (
    *(distrl(*CHEETAH_WORK, *NORMALIZED, "--groups", "1", *more) for more in THREADS),
    distrl(*CHEETAH_WORK, *NORMALIZED, "--groups", "2", "--workers", "2", name="distrl, 2 workers"),
    *(sb3(*CHEETAH_WORK, *more) for more in THREADS),
    *(cleanrl(*CHEETAH_WORK, "--vector-env", "sync", *more) for more in THREADS),
    *(rllib(*CHEETAH_WORK, "--vectorize", "sync", "--runners", runners) for runners in ("0", "2")),
)

BREAKOUT = (
    *(
        distrl("--env", "ALE/Breakout-v5", "--num-envs", "8", "--groups", groups, "--clip", "0.1", *more)
        for groups, more in product(("1",), THREADS)
    ),
    *(
        distrl(
            "--env", "ALE/Breakout-v5", "--num-envs", "8", "--groups", "2", "--workers", "2", "--clip", "0.1", *more,
            name="distrl, 2 workers",
        )
        for more in THREADS
    ),
    *(
        distrl(
            "--env", "ALE/Breakout-v5", "--num-envs", "8", "--groups", groups, "--workers", workers, "--clip", "0.1",
            "--threads", "2", "--precision", "bf16", name="distrl, bf16",
        )
        for groups, workers in (("1", "0"), ("2", "2"))
    ),
    *(
        sb3("--env", "BreakoutNoFrameskip-v4", "--num-envs", "8", "--clip", "0.1", *more)
        for more in THREADS
    ),
    *(
        cleanrl("--env", "BreakoutNoFrameskip-v4", "--num-envs", "8", "--vector-env", "sync", "--clip", "0.1", *more)
        for more in THREADS
    ),
)  # fmt: skip

_ALL = (
    Section("8", "CartPole-v1, 8 envs", SMALL, _cartpole(8), (Target((OURS,), EVERYONE, 8),)),
    Section("64", "CartPole-v1, 64 envs", SMALL, _cartpole(64), (Target((OURS,), EVERYONE, 4),)),
    Section(
        "best",
        "CartPole-v1, each at its best number of envs",
        SMALL,
        BEST,
        (Target((OURS,), EVERYONE, 3),),
        (LimitTarget(OURS, 0.30),),
    ),
    Section(
        "puffer-style",
        "CartPole-v1 in PufferLib's own style: 1 epoch, one hidden layer of 128, 4,096 envs of 64 steps",
        actor_critic(4, 2, (128,), epochs=1),
        PUFFER_STYLE,
        (Target((OURS,), (PUFFERLIB,), 1.5),),
        note="PufferLib's hidden layer is shared by actor and critic, ours are separate: twice the work of the trunk. "
        "Its CartPole starts within 0.04 and ends after 200 steps.",
    ),
    Section(
        "ray",
        "CartPole-v1 with Ray, 2 workers",
        SMALL,
        RAY,
        (
            Target(("distrl, 2 workers",), (RLLIB,), 8),
            Target(("distrl, 2 workers",), ("distrl, in-process",), 0.85),
        ),
    ),
    Section(
        "race",
        "CartPole-v1: seconds to a mean return of 475 over 100 episodes, after start-up",
        SMALL,
        RACERS,
        (
            Target(
                tuple(f"{OURS}, {recipe}" for recipe in RECIPES),
                tuple(f"{name}, {recipe}" for name in (CLEANRL, SB3) for recipe in RECIPES),
                3,
            ),
        ),
        metric="seconds",
        repeats=5,
        note="Each turn has a seed of its own, the same for all. A race that is not won within the time counts as "
        "that time. PufferLib's CartPole ends after 200 steps, so it cannot take part.",
    ),
    Section(
        "rollout", "CartPole-v1, rollouts alone", SMALL, ROLLOUTS, (Target((OURS,), (PUFFERLIB, ENVPOOL), 3),)
    ),
    Section(
        "halfcheetah",
        "HalfCheetah-v5, 8 x 256, 10 epochs, 32 minibatches",
        actor_critic(17, 6, (64, 64), epochs=10),
        CHEETAH,
        (Target((OURS, "distrl, 2 workers"), (SB3, CLEANRL, RLLIB), 4),),
    ),
    Section(
        "breakout",
        "Breakout, Nature-CNN, 8 x 128",
        nature_cnn(4, epochs=4),
        BREAKOUT,
        (Target((OURS, "distrl, 2 workers"), (CLEANRL, SB3), 1.5),),
    ),
)
SECTIONS: dict[str, Section] = {section.name: section for section in _ALL}
