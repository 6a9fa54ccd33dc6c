"""The Python door: what the commands do, from a notebook or a script, with errors as exceptions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrl.config import TRAIN
from distrl.recipes import Recipe
from distrl.resolve import CONFIG_FILE, config_file, resolve, resolve_resume

if TYPE_CHECKING:
    from distrl.loaded import LoadedPolicy
    from distrl.session import Outcome

PathLike = str | os.PathLike[str]
Rows = Iterable[Mapping[str, Any]]  # dicts, in a list, an iterator, a `datasets.Dataset` or a DataFrame


def train(
    env: str | Callable[..., Any] = "CartPole-v1",
    algo: str = "ppo",
    *,
    recipe: Recipe | None = None,
    config: PathLike | None = None,
    **fields: Any,
) -> Outcome:
    """Trains as `distrl train` does and returns the run's outcome.

    `fields` are the flags by name (`workers=0`, `learning_rate=1e-3`, `env_kwargs={...}`); `recipe` gives
    all of an algorithm's fields at once, below single ones; `config` is a TOML file. `env` may be an Env class or a function
    that makes an env, `wrapper` and `policy` functions. Raises BadInput with
    all that is wrong before anything starts, RunFailed where the run cannot go on.
    """
    given = (
        {} if recipe is None else {one.name: getattr(recipe, one.name) for one in dataclass_fields(Recipe)}
    )
    given |= {"env": env, "algo": algo, **fields}
    for name in ("env", "wrapper", "policy"):
        if given.get(name) is not None:
            given[name] = _named(given[name], name)
    resolved = resolve(given, None if config is None else Path(config))
    from distrl.preflight import check_before_run
    from distrl.session import run_training

    check_before_run(resolved.config)
    return run_training(resolved, resume=None)


def _named(given: Any, what: str) -> str:
    if isinstance(given, str):
        return given
    from distrl.envs.given import name_of

    return name_of(given, what)


def resume(run_dir: PathLike, *, trust_run: bool = False, **fields: Any) -> Outcome:
    """Continues a run, of `train` or of a stage of RLHF, as its command does with `--resume`.

    `fields` may be what may change. Raises as `train`.
    """
    run_dir = Path(run_dir)
    command = config_file(run_dir / CONFIG_FILE).get("command", TRAIN.command)
    if command != TRAIN.command:
        from distrl.stages.api import resume_stage

        return resume_stage(str(command), run_dir, fields, trust_run)
    resolved = resolve_resume(run_dir, fields, trust_run)
    from distrl.preflight import check_before_run
    from distrl.session import run_training

    check_before_run(resolved.config)
    return run_training(resolved, resume=run_dir)


def evaluate(
    run_dir: PathLike,
    *,
    episodes: int = 20,
    seed: int = 0,
    greedy: bool = True,
    video: PathLike | None = None,
    checkpoint: str | int = "latest",
    trust_run: bool = False,
    max_steps: int | None = None,
    timeout_sec: float | None = None,
) -> dict[str, Any]:
    """Plays a checkpoint (`latest`, `best` or an iteration) and returns what `distrl eval --json` prints.

    `max_steps` bounds an episode, `timeout_sec` the whole; the run's own where they are None.
    """
    from distrl.evaluation import evaluate_run

    return evaluate_run(
        Path(run_dir),
        episodes=episodes,
        seed=seed,
        greedy=greedy,
        video=None if video is None else Path(video),
        checkpoint=str(checkpoint),
        trust_run=trust_run,
        max_steps=max_steps,
        timeout_sec=timeout_sec,
    )


def rlhf_sft(
    model: PathLike | None = None,
    data: PathLike | Rows | None = None,
    *,
    config: PathLike | None = None,
    **fields: Any,
) -> Outcome:
    """Fine-tunes the model of a folder on demonstrations, as `distrl rlhf sft` does; see `rlhf_ppo`."""
    return _stage("distrl rlhf sft", {"model": model, "data": data}, config, fields)


def rlhf_reward(
    model: PathLike | None = None,
    data: PathLike | Rows | None = None,
    *,
    config: PathLike | None = None,
    **fields: Any,
) -> Outcome:
    """Trains a reward model on preferences, as `distrl rlhf reward` does; see `rlhf_ppo`."""
    return _stage("distrl rlhf reward", {"model": model, "data": data}, config, fields)


def rlhf_ppo(
    model: PathLike | None = None,
    prompts: PathLike | Rows | None = None,
    *,
    config: PathLike | None = None,
    **fields: Any,
) -> Outcome:
    """Trains a language model on a reward, as `distrl rlhf ppo` does; what came of it is in `outcome.run_dir / "model"`.

    `fields` are the flags by name (`reward=FOLDER`, `reward_function="my_module:score"`, `algo="grpo"`, `beta=0.1`);
    `reward_function` may be a Python object or several, which `resume` must be given again (docs/rewards.md). Data is a
    path or rows, which the run directory then keeps; `config` is a TOML file. Raises BadInput with all that is wrong
    before anything starts, RunFailed where the run cannot go on. `resume` continues it.
    """
    return _stage("distrl rlhf ppo", {"model": model, "prompts": prompts}, config, fields)


def rlhf_evaluate(folder: PathLike, *, trust_run: bool = False, **asked: Any) -> dict[str, Any]:
    """Asks a run's model, or a model's folder, for responses and scores them: what `distrl rlhf eval --json` prints.

    `asked` are that command's flags by name (`prompts=FILE`, `sample=True`, `checkpoint="best"`); prompts may be rows.
    Raises BadInput.
    """
    from distrl.preflight import make_current_folder_importable
    from distrl.stages.look import ask, look_at
    from distrl.stages.rows import rows_as_files

    make_current_folder_importable()
    with rows_as_files(asked) as (values, _):
        return look_at(Path(folder), ask({**values, "trust_run": trust_run}))


def _stage(command: str, named: dict[str, Any], config: PathLike | None, fields: dict[str, Any]) -> Outcome:
    from distrl.stages.api import run_stage_of

    given = {name: value for name, value in named.items() if value is not None} | fields
    return run_stage_of(command, given, None if config is None else Path(config))


def load(run_dir: PathLike, checkpoint: str | int = "latest", *, trust_run: bool = False) -> LoadedPolicy:
    """The policy of a checkpoint, ready to act in the env; its observation moments are in it. Raises BadInput.

    `load(run_dir).predict(observation)` gives (the env's action, the policy's memory after it); see `LoadedPolicy`.
    """
    from distrl.evaluation import load_run
    from distrl.loaded import LoadedPolicy

    loaded = load_run(Path(run_dir), str(checkpoint), trust_run)
    return LoadedPolicy(loaded.policy, *loaded.spaces, loaded.inference, loaded.env.mask_key)
