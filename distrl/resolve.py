"""From flags, TOML and presets to one validated configuration, and where each value came from.

    flag  >  TOML file  >  implied by another field  >  preset (the rung's Recipe)  >  default

All problems are found before any is raised, as one `BadInput`. A resumed run starts from its own
`config.json` instead of presets and defaults, and only a few fields may change.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from distrl.clashes import clashes, warnings
from distrl.config import TrainConfig
from distrl.errors import BadInput
from distrl.fields import canonical, flat_fields, read_value, show, unknown_name
from distrl.recipes import LADDER, Recipe

SCHEMA = 1
CONFIG_FILE = "config.json"

Source = Literal["flag", "toml", "implied", "preset", "default"]

# What a resumed run may be given anew: how long, how fast, by whom, and what is kept. All else decides the
# curve or the shapes, and a changed value would make the saved state mean something different.
CHANGEABLE = (
    "total_steps", "learning_rate", "learning_rate_schedule", "workers", "device", "rollout_device", "address",
    "checkpoint_every", "keep_checkpoints", "keep_every", "eval_every", "eval_episodes", "tensorboard",
    "wandb", "wandb_project", "step_timeout_sec", "max_save_failures", "max_skipped_updates",
    "max_env_restarts", "max_worker_restarts", "max_replay_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Resolved:
    """A configuration, where each of its values came from, and what a person should be told about it."""

    config: TrainConfig
    sources: dict[str, Source]  # by flat name; a table's keys also one by one: `env_kwargs.goal_velocity`
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()  # on resume: `learning_rate: 0.001 -> 0.0005`


def resolve(flags: Mapping[str, Any], toml: Path | None = None, problems: Iterable[str] = ()) -> Resolved:
    """The configuration of a new run.

    `flags` are flat names (with `-` or `_`) and values, as text or as Python has them; `problems` were found
    before, by whoever read the command line. Raises BadInput with them and all that is wrong here.
    """
    found = list(problems)
    given, sources, bad = _read_all(flags, toml, found)
    preset = LADDER[given.get("algo", flat_fields()["algo"].default)]
    if (
        "algo" in bad
    ):  # no rung: nothing is known of the Recipe's other fields, so nothing said of their clashes
        bad |= {name for name, field in flat_fields().items() if field.in_recipe and name not in given}
    fallback = {name: field.default for name, field in flat_fields().items()}
    values = {**fallback, **to_flat_recipe(preset), **given}
    follows = implied(values) if not bad & {"overlap", "clip"} else {}
    for name, value in follows.items():
        if name not in given and name not in bad:
            values[name] = given[name] = value
            sources[name] = "implied"
    for name in flat_fields():
        if name not in given:
            sources[name] = "preset" if values[name] != fallback[name] else "default"
    config = _build(values, found, bad)
    return Resolved(config, sources, tuple(warnings(config)))


def implied(values: Mapping[str, Any]) -> dict[str, Any]:
    """What other fields make of those that nobody gave: an older policy's data is corrected.

    At lag 1 the clipped ratio alone would do, but the critic's targets and its own clip would hang on values of
    the critic before: on CartPole that costs a tenth of the return, on 5 seeds (benchmarks/learning.py).
    """
    return {"credit": "vtrace"} if values["credit"] == "gae" and values["overlap"] else {}


def _read_all(
    flags: Mapping[str, Any], toml: Path | None, found: list[str]
) -> tuple[dict[str, Any], dict[str, Source], set[str]]:
    """The values given, flag over TOML, their sources, and the names whose value is wrong."""
    given: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    bad: set[str] = set()
    layers: list[tuple[Source, str, Mapping[str, Any]]] = []
    if toml is not None:
        layers.append(("toml", f" (in {toml})", _read_toml(toml, found)))
    layers.append(("flag", "", flags))
    for source, where, layer in layers:
        for key, raw in layer.items():
            name = canonical(key)
            if name not in flat_fields():
                found.append(unknown_name(key, where))
                continue
            try:
                value = read_value(name, raw)
            except ValueError as error:
                found.append(f"{flat_fields()[name].flag}{where}: {error}")
                bad.add(name)
                continue
            if isinstance(value, dict):
                sources.update({f"{name}.{one}": source for one in value})
                value = merge_tables(given.get(name, {}), value)
            given[name] = value
            sources[name] = source
    return given, sources, bad


def merge_tables(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, key by key and table by table."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge_tables(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _read_toml(path: Path, found: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found.append(f"--config: {path} cannot be read ({error.strerror}); give the path of a TOML file")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found.append(f"--config: {path} is not TOML: {error}")
    return {}


def _build(values: Mapping[str, Any], found: list[str], bad: set[str]) -> TrainConfig:
    """The configuration, or BadInput with `found` and each clash of values that are right by themselves."""
    recipe = Recipe(**{field.name: values[field.name] for field in fields(Recipe)})
    own = {name: value for name, value in values.items() if not flat_fields()[name].in_recipe}
    unchecked = TrainConfig.model_construct(**own, recipe=recipe)
    found += [clash.message for clash in clashes(unchecked) if not bad & set(clash.fields)]
    if found:
        raise BadInput(*found)
    return TrainConfig(**own, recipe=recipe)


# --- config.json ---------------------------------------------------------------------------------


def to_flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """A Recipe's fields by name."""
    return {field.name: getattr(recipe, field.name) for field in fields(Recipe)}


def to_flat(config: TrainConfig) -> dict[str, Any]:
    """The configuration as one flat dict that JSON can hold; `from_flat` gives the configuration back."""
    own = {name: getattr(config, name) for name in TrainConfig.model_fields if name != "recipe"}
    flat = own | to_flat_recipe(config.recipe)
    return {name: _encode(list(value) if isinstance(value, tuple) else value) for name, value in flat.items()}


def from_flat(flat: Mapping[str, Any]) -> TrainConfig:
    """The configuration that `to_flat` wrote. Raises BadInput for names and values that are not its."""
    found: list[str] = []
    given, _, bad = _read_all({name: _decode(value) for name, value in flat.items()}, None, found)
    missing = [name for name in flat_fields() if name not in flat]
    if missing:
        found.append(
            f"the configuration lacks {', '.join(missing)}; was it written by another version of distrl?"
        )
    fallback = {name: field.default for name, field in flat_fields().items()}
    return _build({**fallback, **given}, found, bad)


def _encode(value: Any) -> Any:
    """Infinity has no JSON, but an env may take it (Hopper's `healthy_z_range`): `{"float": "inf"}`."""
    if isinstance(value, float) and value - value != 0:
        return {"float": str(value)}
    if isinstance(value, list):
        return [_encode(one) for one in value]
    if isinstance(value, dict):
        return {key: _encode(one) for key, one in value.items()}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(one) for one in value]
    if isinstance(value, dict):
        if set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
            return float(value["float"])
        return {key: _decode(one) for key, one in value.items()}
    return value


def write_config(path: Path, resolved: Resolved) -> None:
    """Writes `config.json` in one step: `schema`, every flat name, and `sources`. RunFailed from the disk."""
    from distrl.run_directory import write_json_atomic

    write_json_atomic(path, {"schema": SCHEMA, **to_flat(resolved.config), "sources": resolved.sources})


def read_config(path: Path) -> Resolved:
    """What `write_config` wrote. Raises BadInput where the file is missing, damaged or not such a file."""
    try:
        with path.open(encoding="utf-8") as file:
            return _parse_config(path, file.read())
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}); is {path.parent} a run directory?"
        ) from error


def _parse_config(path: Path, text: str) -> Resolved:
    try:
        flat = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({error}); restore it, or start a new run") from error
    if not isinstance(flat, dict) or flat.get("schema") != SCHEMA:
        got = flat.get("schema") if isinstance(flat, dict) else type(flat).__name__
        raise BadInput(
            f"{path} must have schema {SCHEMA}, got {got!r}; use the version of distrl that wrote it"
        )
    sources = flat.pop("sources", {})
    del flat["schema"]
    if not isinstance(sources, dict):
        raise BadInput(f"{path}: `sources` must be a table, got {type(sources).__name__}; restore the file")
    try:
        config = from_flat(flat)
    except BadInput as error:
        raise BadInput(*(f"{path}: {problem}" for problem in error.problems)) from error
    return Resolved(config, sources, tuple(warnings(config)))


# --- resume --------------------------------------------------------------------------------------


def merge_for_resume(
    saved: TrainConfig, flags: Mapping[str, Any], toml: Path | None = None, problems: Iterable[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """The saved configuration with what may change, and a line `name: old -> new` for each change.

    Raises BadInput that shows saved against given for all else, with `problems` and every wrong value.
    """
    found = list(problems)
    given, _, bad = _read_all(flags, toml, found)
    values = {
        **{name: getattr(saved, name) for name in TrainConfig.model_fields},
        **to_flat_recipe(saved.recipe),
    }
    del values["recipe"]
    changes = []
    for name, value in given.items():
        old = values[name]
        if isinstance(value, dict):
            value = merge_tables(old, value)
        if value == old:
            continue
        if name not in CHANGEABLE:
            found.append(
                f"{flat_fields()[name].flag}: the run has {show(old)}, given {show(value)}; the env, "
                "the shapes and the curve cannot change on resume: leave it out, or start a new run "
                "(--init-from takes this one's parameters)"
            )
            continue
        values[name] = value
        changes.append(f"{name}: {show(old)} -> {show(value)}")
    return _build(values, found, bad), changes


def resolve_resume(
    run_dir: Path,
    flags: Mapping[str, Any],
    trust_run: bool = False,
    toml: Path | None = None,
    problems: Iterable[str] = (),
) -> Resolved:
    """The configuration to go on with in `run_dir`. Raises BadInput as the two above and below do."""
    saved = read_config(run_dir / CONFIG_FILE)
    config, changes = merge_for_resume(saved.config, flags, toml, problems)
    named = frozenset(canonical(name) for name in flags)
    check_trust(run_dir / CONFIG_FILE, config, trust_run, from_command_line=named)
    sources = dict(saved.sources)
    for change in changes:
        name = change.split(":")[0]
        sources[name] = "flag" if name in named else "toml"
    return Resolved(config, sources, tuple(warnings(config)), tuple(changes))


# --- trust ---------------------------------------------------------------------------------------


def modules_named(config: TrainConfig) -> dict[str, str]:
    """The modules that a run imports by name: field -> module. This package's own are no news and need no trust."""
    named = {"env": config.env, "wrapper": config.wrapper, "policy": config.policy}
    modules = {field: text.partition(":")[0] for field, text in named.items() if text and ":" in text}
    return {field: one for field, one in modules.items() if one.partition(".")[0] != __package__}


def check_trust(
    path: Path, config: TrainConfig, trust_run: bool, from_command_line: frozenset[str] = frozenset()
) -> None:
    """Refuses to import what a file of somebody else names; prints what a file of this user names.

    `path` is the `config.json` (or TOML file) that named the modules; fields in `from_command_line` were
    typed by the person and need no trust. Raises BadInput.
    """
    modules = {field: one for field, one in modules_named(config).items() if field not in from_command_line}
    if not modules:
        return
    owner = path.stat().st_uid
    listed = ", ".join(f"{module} ({field})" for field, module in modules.items())
    if owner != os.getuid() and not trust_run:
        raise BadInput(
            f"{path} belongs to uid {owner}, not to you (uid {os.getuid()}), and names code to import: "
            f"{listed}; read that code, then give --trust-run"
        )
    print(f"importing {listed}, named in {path}", file=sys.stderr)
