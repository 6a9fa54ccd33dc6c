"""Envs that a library's pool steps: told as Gymnasium's are, put back exactly, refused where they cannot be."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import play
import pytest

from distrl.envs import EnvSpec
from distrl.envs.pools.protocol import Origin
from distrl.errors import BadInput

FAST = {"repeat_action_probability": 0.0, "num_threads": 2}
NEEDS_ENVPOOL = "EnvPool is an extra of its own: pip install 'distrl[envpool]'"
SPECS = {
    "ale": EnvSpec("ALE/Breakout-v5", FAST, backend="ale"),
    "ale-sticky": EnvSpec("ALE/Breakout-v5", {"num_threads": 2}, backend="ale"),
    "ale-next-step": EnvSpec("ALE/Pong-v5", FAST, backend="ale", autoreset="next_step", max_episode_steps=19),
    "ale-limit": EnvSpec("ALE/Pong-v5", FAST, backend="ale", max_episode_steps=7),
    "envpool": EnvSpec("ALE/Breakout-v5", FAST, backend="envpool"),
    "envpool-next-step": EnvSpec(
        "CartPole-v1", backend="envpool", autoreset="next_step", max_episode_steps=12
    ),
    "envpool-disabled": EnvSpec("CartPole-v1", backend="envpool"),
    "envpool-box": EnvSpec("Pendulum-v1", backend="envpool", max_episode_steps=9),
}


def spec_of(name: str) -> EnvSpec:
    if name.startswith("envpool"):
        pytest.importorskip("envpool", reason=NEEDS_ENVPOOL)
    return SPECS[name]


def frames_of_the_game(first: list[int], actions: list[int]) -> list[Any]:
    """What a Breakout game shows after the frames `first` of a reset, by ALE alone: the slow twin of a pool's step.
    [(observation of one frame [84, 84], raw reward, lives)]"""
    import cv2
    from ale_py import ALEInterface, roms

    ale = ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    rom: Any = roms.get_rom_path("breakout")
    ale.setInt("random_seed", 1)
    ale.loadROM(rom)
    ale.reset_game()
    meanings = ale.getMinimalActionSet()
    for action in first:
        ale.act(meanings[action])

    def small(frame: Any) -> Any:
        return cv2.resize(frame, (84, 84), interpolation=cv2.INTER_AREA)

    seen = [(small(ale.getScreenGrayscale()), 0.0, ale.lives())]
    for action in actions:
        reward, frames = 0.0, []
        for _ in range(4):
            reward += ale.act(meanings[action])
            frames.append(ale.getScreenGrayscale())
        seen.append((small(np.maximum(frames[-2], frames[-1])), reward, ale.lives()))
    return seen


@pytest.mark.parametrize("name", ["ale", "envpool"])
def test_a_pool_shows_the_frames_that_our_preprocessing_promises(name: str) -> None:
    group = play.make(spec_of(name), num_envs=1)
    group.start()
    rng = np.random.default_rng(0)
    taken, shown, forced = [], [(group.observation[0], 0.0)], 0
    for _ in range(120):
        action = int(rng.integers(0, 4))
        before = float(group.running_return[0])
        result = group.step(np.array([action]))
        taken.append(action if result.valid[0] else 1)
        forced += not result.valid[0]
        assert not result.episodes
        shown.append((result.final_observation[0], float(group.running_return[0]) - before))
    assert forced >= 2, "lives were lost, and FIRE pressed after each"
    resets = [[1] + [0] * noops if name == "ale" else [0] * noops + [1] for noops in range(31)]
    fits = []
    for reset in resets:
        twin = frames_of_the_game(reset, taken[:8])
        fits += [reset] * all(np.array_equal(a[-1], b[0]) for (a, _), b in zip(shown, twin))
    assert fits
    twin = frames_of_the_game(fits[0], taken)
    assert all(np.array_equal(a[-1], b[0]) for (a, _), b in zip(shown, twin, strict=True))
    assert [reward for _, reward in shown] == [b[1] for b in twin]
    assert forced == sum(twin[k][2] < twin[k - 1][2] for k in range(1, 120))
    group.close()


@pytest.mark.parametrize("name", SPECS)
def test_a_pool_is_put_back_exactly_in_another_process(name: str, tmp_path: Any) -> None:
    spec = spec_of(name)
    group = play.make(spec)
    group.start()
    taken = play.actions(group, 90)
    play.play(group, taken[:65])
    play.save(tmp_path, name, spec, group.snapshot(), taken[65:])
    expected = play.play(group, taken[65:])
    assert (group.reproducibility, group.warnings) == ("exact", [])
    group.close()
    done = subprocess.run(
        [sys.executable, "-W", "error", play.__file__, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [expected, "exact"]}


@pytest.mark.parametrize("name", ["ale", "ale-next-step", "envpool", "envpool-next-step"])
def test_a_pool_s_episodes_depend_on_neither_threads_nor_which_envs_are_beside(name: str) -> None:
    spec = spec_of(name)
    seen = []
    for num_envs, threads in ((3, 1), (1, 2)):
        more = {} if spec.env_id == "CartPole-v1" else {**FAST, "num_threads": threads}
        group = play.make(dataclasses.replace(spec, kwargs=more), num_envs)
        group.start()
        rows = []
        for step in range(60):
            result = group.step(np.full(num_envs, step % 2))
            rows.append(
                (result.reward[0], result.terminated[0], result.valid[0], group.observation[0].tobytes())
            )
        seen.append(rows)
        group.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/Pong-v5"])
@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_reset_rows_are_masked_and_else_the_modes_play_the_same_episodes(backend: str, env_id: str) -> None:
    if backend == "envpool":
        pytest.importorskip("envpool", reason=NEEDS_ENVPOOL)
    elif env_id == "CartPole-v1":
        pytest.skip("ALE has no CartPole")
    kwargs = FAST if env_id != "CartPole-v1" else {}
    spec = EnvSpec(env_id, kwargs, backend=backend, max_episode_steps=11)
    rows: dict[str, Any] = {}
    for mode in ("disabled", "next_step"):
        group = play.make(dataclasses.replace(spec, autoreset=mode), num_envs=1)
        group.start()
        rows[mode], masked = [], 0
        while len(rows[mode]) < 50:
            observation = group.observation[0].tobytes()
            result = group.step(np.array([len(rows[mode]) % 2]))
            if not result.valid[0]:
                masked += 1
                assert result.reward[0] == 0 and not (result.terminated[0] or result.truncated[0])
                assert group.episode_start[0]
                continue
            rows[mode].append((
                observation, result.reward[0], result.terminated[0], result.truncated[0],
                result.final_observation[0].tobytes(), [(e.return_, e.length) for e in result.episodes],
            ))  # fmt: skip
        assert masked == (0 if mode == "disabled" else sum(row[2] | row[3] for row in rows[mode][:-1]))
        group.close()
    assert rows["disabled"] == rows["next_step"]
    assert sum(row[3] for row in rows["disabled"]) >= 1


@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_the_final_observation_of_a_truncated_game_is_the_one_it_would_have_gone_on_from(
    backend: str,
) -> None:
    spec = spec_of(backend)
    shown = []
    for limit in (23, None):
        group = play.make(
            dataclasses.replace(spec, env_id="ALE/Pong-v5", max_episode_steps=limit), num_envs=2
        )
        group.start()
        results = [group.step(action) for action in play.actions(group, 23)]
        shown.append(results[-1].final_observation)
        assert results[-1].truncated.tolist() == [limit is not None] * 2
        assert not any(result.terminated.any() or result.truncated.any() for result in results[:-1])
        group.close()
    assert np.array_equal(*shown)


@pytest.mark.parametrize("backend", ["ale", "envpool"])
def test_a_pool_s_rewards_are_clipped_to_learn_from_and_raw_in_the_statistics(backend: str) -> None:
    spec_of(backend)
    spec = EnvSpec("ALE/SpaceInvaders-v5", FAST, backend=backend, max_episode_steps=200)
    group = play.make(spec, num_envs=1)
    group.start()
    raw, games = [0.0], []
    while not games:
        result = group.step(np.ones(1, np.int64))  # FIRE
        games = result.episodes
        raw.append(games[0].return_ if games else float(group.running_return[0]))
        if result.valid[0]:
            assert result.reward[0] == np.sign(raw[-1] - raw[-2])
    assert games[0].return_ > 1 and max(np.diff(raw)) > 1
    group.close()


def test_a_pool_of_ale_reseeds_a_game_before_a_restore_would_get_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distrl.envs.pools import ale

    monkeypatch.setattr(ale, "RESEED_EVERY", 3)
    spec = SPECS["ale-limit"]
    group, other = play.make(spec), play.make(spec)
    group.start()
    taken = play.actions(group, 60)
    most = 0
    for action in taken[:40]:
        group.step(action)
        most = max(most, int(group._vector.resets.max()))
    assert most == 2
    other.restore(group.snapshot())
    assert play.play(other, taken[40:]) == play.play(group, taken[40:])
    group.close()
    other.close()


def test_what_envpool_cannot_repeat_is_said_at_once_and_begins_afresh() -> None:
    pytest.importorskip("envpool", reason=NEEDS_ENVPOOL)
    spec = EnvSpec("FrozenLake-v1", backend="envpool")
    group = play.make(spec)
    assert group.reproducibility == "episode" and "cannot repeat" in group.warnings[0]
    group.start()
    play.play(group, play.actions(group, 20))
    other = play.make(spec)
    other.restore(group.snapshot())
    assert other.episode_start.all() and other.reproducibility == "episode"
    assert any("cannot be replayed" in said for said in other.warnings)
    assert other.episode.tolist() == (group.episode + 1).tolist()


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "MountainCarContinuous-v0", "HalfCheetah-v5", "Hopper-v5"])
def test_envpool_s_families_that_are_put_back_draw_at_resets_alone(env_id: str) -> None:
    pytest.importorskip("envpool", reason=NEEDS_ENVPOOL)
    from distrl.envs.pools.envpool import EnvPoolPool

    pool = EnvPoolPool(env_id, 2, {})
    assert pool.restorable
    pool.action_space.seed(0)
    pool.start([5, 9])
    every = np.ones(2, np.bool_)
    for _ in range(3):
        for _ in range(30):
            pool.step(np.stack([pool.action_space.sample() for _ in range(2)]))
        seen, _ = pool.restart(every, None)
    none = np.zeros((0, *(pool.action_space.shape or ())))
    replayed, _ = pool.replay([Origin(5, 3, none), Origin(9, 3, none)])
    assert np.array_equal(seen, replayed)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            EnvSpec("CartPole-v1", backend="ale"),
            "env_backend ale must be with an ALE game.*got 'CartPole-v1'; use",
        ),
        (
            EnvSpec("ALE/Pong-v5", {"mode": 1}, backend="ale"),
            "takes of env_kwargs repeat_action_probability, full_action_space, num_threads, got 'mode'",
        ),
        (
            EnvSpec("ALE/Pong-v5", wrapper="a:b", backend="ale"),
            "cannot be with wrapper 'a:b': there are no single",
        ),
        (
            EnvSpec("ALE/Pong-v5", autoreset="same_step", backend="ale"),
            "cannot be with autoreset 'same_step'",
        ),
        (EnvSpec("ALE/Pong-v5", atari=False, backend="ale"), "the preprocessing is inside it"),
        (
            EnvSpec("toy_envs:Toy/Counts-v0", backend="envpool"),
            "envpool does not serve 'toy_envs:Toy/Counts-v0'",
        ),
        (
            EnvSpec("Pendulum-v1", {"g": 9.8}, backend="envpool"),
            "takes of env_kwargs .*got 'g'; leave it out",
        ),
    ],
)
def test_what_a_pool_cannot_do_is_refused_with_a_way_out(spec: EnvSpec, said: str) -> None:
    if spec.backend == "envpool":
        pytest.importorskip("envpool", reason=NEEDS_ENVPOOL)
    with pytest.raises(BadInput, match=said):
        spec.settled()


def test_a_pool_whose_package_is_missing_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distrl.envs.pools import choice

    monkeypatch.setitem(choice._PACKAGES, "envpool", ("no_such_package", "envpool"))
    with pytest.raises(
        BadInput, match=r"env_backend envpool needs no_such_package.*pip install 'distrl\[envpool\]'"
    ):
        EnvSpec("CartPole-v1", backend="envpool").settled()


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "CartPole-v1"])
def test_auto_is_never_a_pool_whose_episodes_are_others(env_id: str) -> None:
    assert EnvSpec(env_id, backend="auto").settled().backend in ("gymnasium", "native")
