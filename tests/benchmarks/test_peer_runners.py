"""benchmarks/peers: what the runners share, and their argument handling, without the peers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
RUNNERS = ("cleanrl", "sb3", "rllib", "pufferlib", "samplefactory", "distrl")


def load(name: str) -> ModuleType:
    """A module of benchmarks/peers, whose `speed` is the peers' and not benchmarks/speed.py."""
    before = sys.modules.get("speed")
    sys.path.insert(0, str(PEERS))
    try:
        spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(PEERS))
        sys.modules.pop("speed", None)
        if before is not None:
            sys.modules["speed"] = before


speed = load("speed")


def options(*arguments: str) -> Any:
    return speed.arguments("made up", 8).parse_args(arguments)


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_names_its_arguments_without_its_peer_installed(runner: str) -> None:
    command = [sys.executable, str(PEERS / f"{runner}_speed.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in ("--num-envs", "--epochs", "--seconds", "--until-return", "--rollout-only"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    "runner, arguments",
    [
        ("sb3", ("--rollout-only",)),
        ("rllib", ("--until-return", "475")),
        ("rllib", ("--env", "HalfCheetah-v5")),  # has no batched env
        ("pufferlib", ("--until-return", "475")),
        ("pufferlib", ("--num-envs", "2", "--minibatches", "4")),  # half a trajectory
        (
            "samplefactory",
            (
                "--num-envs",
                "6",
            ),
        ),  # 2 workers of 2 splits
        ("cleanrl", ("--vector-env", "native", "--until-return", "475")),
        ("cleanrl", ("--vector-env", "envpool", "--env", "HalfCheetah-v5")),
        ("sb3", ("--num-envs", "3", "--num-steps", "3", "--minibatches", "2", "--rollout-only")),
    ],
)
def test_a_runner_refuses_what_it_cannot_measure(runner: str, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, str(PEERS / f"{runner}_speed.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "ValueError" in done.stderr, done.stderr


def test_minibatches_come_out_even() -> None:
    assert speed.minibatch_size(options("--num-envs", "8", "--num-steps", "128", "--minibatches", "4")) == 256
    with pytest.raises(ValueError, match="got 9 / 2"):
        speed.minibatch_size(options("--num-envs", "3", "--num-steps", "3", "--minibatches", "2"))


class Clock:
    """A clock that the test turns, in the place of the module `time`."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(speed, "time", turned)
    return turned


def test_a_window_counts_whole_iterations_after_the_warm_up(clock: Clock) -> None:
    window = speed.Window(warmup_sec=5.0, window_sec=10.0)
    assert not window.boundary(10)  # the first iteration is never inside
    clock.now += 4
    assert not window.boundary(20) and not window.started
    clock.now += 4
    assert not window.boundary(30) and window.started
    clock.now += 8
    assert not window.boundary(50)
    clock.now += 8
    assert window.boundary(70)
    assert window.env_steps == 40 and window.seconds == 16


def test_time_away_is_not_counted(clock: Clock) -> None:
    window = speed.Window(warmup_sec=0.0, window_sec=5.0)
    window.boundary(1)
    window.boundary(2)
    clock.now += 3
    window.leave()
    clock.now += 50
    assert not window.boundary(3)
    window.enter()
    clock.now += 3
    assert window.boundary(4)
    assert window.seconds == 6 and window.cpu_seconds == 6


def test_a_race_is_over_with_the_episode_that_lifts_the_mean_of_the_last_hundred() -> None:
    window = speed.Window(0.0, 0.0, until_return=475.0, give_up_sec=60.0)
    window.begin()
    assert not window.episodes([500.0] * 49, 1000)  # not a hundred yet
    assert not window.episodes([0.0] * 50, 2000)
    assert not window.boundary(2000)
    assert not window.episodes([500.0] * 93, 3000)  # 93 of 500 and 7 of 0: a mean of 465
    assert window.episodes([500.0, 500.0, 1.0], 4000)
    assert window.reached == 475.0 and window.env_steps == 4000
    assert window.boundary(9000) and window.env_steps == 4000


def test_a_race_is_lost_when_its_time_is_over(clock: Clock) -> None:
    window = speed.Window(0.0, 0.0, until_return=475.0, give_up_sec=60.0)
    with pytest.raises(RuntimeError, match="begin"):
        window.boundary(1)
    window.begin()
    clock.now += 59
    assert not window.boundary(10)
    clock.now += 2
    assert window.boundary(20) and window.reached is None


def test_sample_factorys_log_lines_give_their_time_and_frames() -> None:
    runner = load("samplefactory_speed")
    said = (
        "[2026-11-23 02:10:05,250][02121] Fps is (10 sec: 819.2, 60 sec: 819.2). "
        "Total num frames: 4096. Throughput: 0: 801.1. Samples: 1024. Policy #0 lag: (min: 0.0)"
    )
    later = said.replace("05,250", "10,750").replace("4096", "8192")
    assert runner.frames("[2026-11-23 02:10:05,250][02121] Avg episode reward: [(0, '21.1')]") is None
    (first, frames), (second, more) = runner.frames(said), runner.frames(later)
    assert second - first == pytest.approx(5.5) and more - frames == 4096


def test_sample_factory_is_told_the_common_work() -> None:
    runner = load("samplefactory_speed")
    given = options("--num-envs", "8")
    given.workers, given.splits, given.serial, given.asynchronous, given.batched = 2, 2, False, True, False
    command = runner.command(given, "/nowhere")
    for flag in (
        "--num_envs_per_worker=4",
        "--batch_size=256",
        "--num_epochs=4",
        "--actor_critic_share_weights=False",
    ):
        assert flag in command
    given.num_envs = 6
    with pytest.raises(ValueError, match="divide num_envs"):
        runner.command(given, "/nowhere")


def test_cleanrls_file_is_that_of_the_env() -> None:
    runner = load("cleanrl_speed")
    assert runner.file_of("CartPole-v1", "native") == "ppo.py"
    assert runner.file_of("CartPole-v1", "envpool") == "ppo_atari_envpool.py"
    assert runner.file_of("BreakoutNoFrameskip-v4", "sync") == "ppo_atari.py"
    assert runner.file_of("HalfCheetah-v5", "sync") == "ppo_continuous_action.py"


def test_cleanrls_reset_rows_are_no_env_steps() -> None:
    runner = load("cleanrl_speed")
    window = speed.Window(0.0, 0.0)
    module = runner.log_with(window, True, False)
    scope: dict[str, Any] = {"writer": module.SummaryWriter("")}

    class Dones:
        def __init__(self, count: int) -> None:
            self.count = count

        def sum(self) -> int:
            return self.count

    for dones, global_step in ((5, 100), (3, 200)):
        scope |= {"dones": Dones(dones), "global_step": global_step}
        exec("writer.add_scalar('charts/SPS', 0, global_step)", scope)
    scope |= {"dones": Dones(10), "global_step": 300}
    with pytest.raises(runner.WindowClosed):
        exec("writer.add_scalar('charts/SPS', 0, global_step)", scope)
    assert window.env_steps == 100 - 10


def test_a_changed_source_of_cleanrl_is_refused() -> None:
    patch = load("patch_cleanrl")
    assert set(patch.SHA256) == set(patch.REPLACEMENTS)
    with pytest.raises(ValueError, match="SHA-256"):
        patch.patch("ppo_atari_envpool.py", "something else")
