"""The doctor finds what is really wrong with an env, and passes one that is right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distrl.cli.main import run
from distrl.doctor import Finding, environment
from distrl.resolve import resolve

ENVS = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Base(gymnasium.Env):
    observation_space = Box(-10, 10, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return self.look(), {}

    def look(self):
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)

    def reward(self):
        return 1.0

    def step(self, action):
        self.step_number += 1
        return self.look(), self.reward(), self.step_number == 9, False, {}


class Unseeded(Base):
    def look(self):
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)


class Drifting(Base):
    def step(self, action):
        if self.step_number == 5:
            self.np_random = np.random.default_rng()
        return super().step(action)


class Outside(Base):
    def look(self):
        return np.full(2, 11, np.float32)


class NaNReward(Base):
    def reward(self):
        return float("nan") if self.step_number == 4 else 1.0


class Raising(Base):
    def step(self, action):
        raise RuntimeError("the simulator is gone")


for kind in (Base, Unseeded, Drifting, Outside, NaNReward, Raising):
    gymnasium.register(f"Doctored/{kind.__name__}-v0", entry_point=kind, max_episode_steps=50)
"""


@pytest.fixture(scope="module")
def envs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("envs")
    (folder / "doctored_envs.py").write_text(ENVS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "doctored_envs"


def findings(env: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in environment(resolve({"env": env, "workers": 0}).config)}


def test_a_sound_env_passes_every_check(envs: str) -> None:
    found = findings(f"{envs}:Doctored/Base-v0")
    assert set(found) == {"env", "observations", "speed", "reset(seed)", "replay"}
    assert {finding.status for finding in found.values()} == {"pass"}
    assert "exact over 200 steps" in found["replay"].found


@pytest.mark.parametrize(
    ("kind", "what", "said"),
    [
        ("Unseeded", "reset(seed)", "np_random"),
        ("Drifting", "replay", "differs at step 6"),
        ("Outside", "observations", "11"),
        ("NaNReward", "observations", "reward must be finite, got nan"),
        ("Raising", "steps", "RuntimeError after 0 steps: the simulator is gone"),
    ],
)
def test_what_is_wrong_with_an_env_is_found_and_named(envs: str, kind: str, what: str, said: str) -> None:
    finding = findings(f"{envs}:Doctored/{kind}-v0")[what]
    assert finding.status == "fail"
    assert said in finding.found


def test_an_unknown_env_fails_with_the_nearest_name() -> None:
    (finding,) = environment(resolve({"env": "CartPol-v1"}).config)
    assert finding.status == "fail" and "CartPole-v1" in finding.found


def test_the_exit_status_is_1_where_a_check_fails_and_0_where_none_does(
    envs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor", "--env", f"{envs}:Doctored/Base-v0", "--workers", "0"]) == 0
    assert run(["doctor", "--env", f"{envs}:Doctored/Outside-v0", "--workers", "0"]) == 1
    printed = capsys.readouterr()
    assert "fail | observations" in printed.out
    assert "1 failed" in printed.err


def test_the_pool_that_will_step_the_envs_is_put_back_and_compared() -> None:
    fields = {"env": "ALE/Pong-v5", "env_backend": "ale", "env_kwargs": {"num_threads": 1}}
    found = list(environment(resolve(fields).config))
    assert [finding.status for finding in found] == ["pass"] * len(found)
    assert found[-1].what == "env backend ale" and "same bits" in found[-1].found
