"""From flags, TOML and presets to one validated configuration, and where each value came from.

    flag  >  TOML file  >  implied by another field  >  preset (the rung's Recipe)  >  default

All problems are found before any is raised, as one `BadInput`. A resumed run starts from its own
`config.json` instead of presets and defaults, and only a few fields may change.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal

from distrl.config import CHANGEABLE as CHANGEABLE
from distrl.config import TRAIN, TrainConfig
from distrl.errors import BadInput
from distrl.fields import C, Schema, canonical, quoted_keys, show
from distrl.named import same_functions
from distrl.places import FOLDER, absolute, missing
from distrl.plain_values import decode, encode
from distrl.trust import check_trust_as

SCHEMA = 1
CONFIG_FILE = "config.json"

Source = Literal["flag", "toml", "implied", "preset", "default"]


@dataclass(frozen=True)
class ResolvedAs(Generic[C]):
    """A configuration, where each of its values came from, and what a person should be told about it."""

    config: C
    sources: dict[str, Source]  # by flat name; a table's keys also one by one: `env_kwargs.goal_velocity`
    warnings: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()  # on resume: `learning_rate: 0.001 -> 0.0005`
    folder: str | None = field(
        default=None, compare=False
    )  # that the run was started in; None: the current one


Resolved = ResolvedAs[TrainConfig]


def resolve(flags: Mapping[str, Any], toml: Path | None = None, problems: Iterable[str] = ()) -> Resolved:
    """`resolve_as` for `distrl train`."""
    return resolve_as(TRAIN, flags, toml, problems)


def resolve_as(
    schema: Schema[C], flags: Mapping[str, Any], toml: Path | None = None, problems: Iterable[str] = ()
) -> ResolvedAs[C]:
    """The configuration of a new run.

    `flags` are flat names (with `-` or `_`) and values, as text or as Python has them; `problems` were found
    before, by whoever read the command line. Raises BadInput with them and all that is wrong here.
    """
    found = list(problems)
    known = schema.fields
    given, sources, bad = _read_all(schema, flags, toml, found)
    if (
        "algo" in bad
    ):  # no preset: nothing is known of the recipe's other fields, so nothing said of their clashes
        bad |= {name for name, field in known.items() if field.in_recipe and name not in given}
    fallback = {name: field.default for name, field in known.items()}
    values = {**fallback, **_flat_recipe(schema, _preset(schema, given)), **given}
    for name, value in schema.implied(values).items():
        if name not in given and name not in bad:
            values[name] = given[name] = value
            sources[name] = "implied"
    for name in known:
        if name not in given:
            sources[name] = "preset" if values[name] != fallback[name] else "default"
    config = _build(schema, values, found, bad)
    return ResolvedAs(config, sources, tuple(schema.warnings(config)))


def _preset(schema: Schema[Any], values: Mapping[str, Any]) -> Any:
    """The recipe of the algorithm; the defaults where there is one way alone, None where nothing is to be chosen."""
    if schema.presets:
        return schema.presets[values.get("algo", schema.fields["algo"].default)]
    return schema.recipe() if schema.recipe is not None else None


def _read_all(
    schema: Schema[Any], flags: Mapping[str, Any], toml: Path | None, found: list[str]
) -> tuple[dict[str, Any], dict[str, Source], set[str]]:
    """The values given, flag over TOML, their sources, and the names whose value is wrong."""
    given: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    bad: set[str] = set()
    known = schema.fields
    layers: list[tuple[Source, str, Mapping[str, Any]]] = []
    if toml is not None:
        layers.append(("toml", f" (in {toml})", _read_toml(toml, found)))
    layers.append(("flag", "", flags))
    for source, where, layer in layers:
        for key, raw in layer.items():
            name = canonical(key)
            if name not in known:
                found.append(schema.unknown_name(key, where))
                continue
            try:
                value = schema.read_value(name, raw)
            except ValueError as error:
                found.append(f"{known[name].flag}{where}: {error}")
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
        text = path.read_text(encoding="utf-8")
        quoted = quoted_keys(text)
        return {
            key: {one if one in quoted else canonical(one): inner for one, inner in value.items()}
            if isinstance(value, dict)
            else value
            for key, value in tomllib.loads(text).items()
        }
    except OSError as error:
        found.append(f"--config: {path} cannot be read ({error.strerror}); give the path of a TOML file")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found.append(f"--config: {path} is not TOML: {error}")
    return {}


def _build(schema: Schema[C], values: Mapping[str, Any], found: list[str], bad: set[str]) -> C:
    """The configuration, or BadInput with `found` and each clash of values that are right by themselves."""
    own = {name: value for name, value in values.items() if not schema.fields[name].in_recipe}
    if schema.recipe is not None:
        own["recipe"] = replace(
            _preset(schema, values), **{name: values[name] for name in schema.recipe_fields}
        )
    unchecked = schema.config.model_construct(**own)
    found += [clash.message for clash in schema.clashes(unchecked) if not bad & set(clash.fields)]
    if found:
        raise BadInput(*found)
    return schema.config(**own)


# --- config.json ---------------------------------------------------------------------------------


def _flat_recipe(schema: Schema[Any], recipe: Any) -> dict[str, Any]:
    """A recipe's fields by name."""
    return {name: getattr(recipe, name) for name in schema.recipe_fields}


def flat_values(schema: Schema[Any], config: Any) -> dict[str, Any]:
    """Every name's value."""
    own = {name: getattr(config, name) for name, field in schema.fields.items() if not field.in_recipe}
    return own | (_flat_recipe(schema, config.recipe) if schema.recipe is not None else {})


def to_flat(config: TrainConfig) -> dict[str, Any]:
    """`to_flat_as` for `distrl train`."""
    return to_flat_as(TRAIN, config)


def to_flat_as(schema: Schema[Any], config: Any) -> dict[str, Any]:
    """The configuration as one flat dict that JSON can hold; `from_flat_as` gives the configuration back."""
    flat = flat_values(schema, config)
    return {name: encode(value) for name, value in flat.items()}


def from_flat(flat: Mapping[str, Any]) -> TrainConfig:
    """`from_flat_as` for `distrl train`."""
    return from_flat_as(TRAIN, flat)


def from_flat_as(schema: Schema[C], flat: Mapping[str, Any]) -> C:
    """The configuration that `to_flat_as` wrote. Raises BadInput for names and values that are not its."""
    found: list[str] = []
    flat = {**schema.before, **flat}
    decoded: dict[str, Any] = {}
    for name, value in flat.items():
        try:
            decoded[name] = decode(value)
        except ValueError as error:
            found.append(f"{name}: {error}")
    given, _, bad = _read_all(schema, decoded, None, found)
    missing = [name for name in schema.fields if name not in flat]
    if missing:
        found.append(
            f"the configuration lacks {', '.join(missing)}; was it written by another version of distrl?"
        )
    fallback = {name: field.default for name, field in schema.fields.items()}
    return _build(schema, {**fallback, **given}, found, bad)


def write_config(path: Path, resolved: Resolved) -> None:
    """`write_config_as` for `distrl train`."""
    write_config_as(TRAIN, path, resolved)


def write_config_as(schema: Schema[C], path: Path, resolved: ResolvedAs[C]) -> None:
    """Writes `config.json` in one step: `schema`, every flat name, and `sources`. RunFailed from the disk.

    `command` says whose it is, where it is not `distrl train`'s.
    """
    from distrl.run_directory import write_json_atomic

    whose = {} if schema is TRAIN else {"command": schema.command}
    flat = {
        name: absolute(schema, name, value) for name, value in to_flat_as(schema, resolved.config).items()
    }
    where = {FOLDER: resolved.folder or os.getcwd()}
    write_json_atomic(path, {"schema": SCHEMA, **whose, **flat, "sources": resolved.sources, **where})


def read_config(path: Path) -> Resolved:
    """`read_config_as` for `distrl train`."""
    return read_config_as(TRAIN, path)


def read_config_as(schema: Schema[C], path: Path) -> ResolvedAs[C]:
    """What `write_config_as` wrote. Raises BadInput where the file is missing, damaged or another command's."""
    flat = config_file(path)
    sources, command = flat.pop("sources", {}), flat.pop("command", TRAIN.command)
    folder = flat.pop(FOLDER, None)
    if command != schema.command:
        raise BadInput(f"{path} is a run of `{command}`, not of `{schema.command}`; use that command")
    if not isinstance(sources, dict):
        raise BadInput(f"{path}: `sources` must be a table, got {type(sources).__name__}; restore the file")
    try:
        config = from_flat_as(schema, flat)
    except BadInput as error:
        raise BadInput(*(f"{path}: {problem}" for problem in error.problems)) from error
    return ResolvedAs(config, sources, tuple(schema.warnings(config)), folder=folder)


def config_file(path: Path) -> dict[str, Any]:
    """A `config.json` without its schema number, whichever command wrote it. BadInput where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}); is {path.parent} a run directory?"
        ) from error
    try:
        flat = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({error}); restore it, or start a new run") from error
    if not isinstance(flat, dict) or flat.get("schema") != SCHEMA:
        got = flat.get("schema") if isinstance(flat, dict) else type(flat).__name__
        raise BadInput(
            f"{path} must have schema {SCHEMA}, got {got!r}; use the version of distrl that wrote it"
        )
    del flat["schema"]
    return flat


# --- resume --------------------------------------------------------------------------------------


def merge_for_resume(
    saved: TrainConfig, flags: Mapping[str, Any], toml: Path | None = None, problems: Iterable[str] = ()
) -> tuple[TrainConfig, list[str]]:
    """`merge_for_resume_as` for `distrl train`."""
    return merge_for_resume_as(TRAIN, saved, flags, toml, problems)


def merge_for_resume_as(
    schema: Schema[C],
    saved: C,
    flags: Mapping[str, Any],
    toml: Path | None = None,
    problems: Iterable[str] = (),
) -> tuple[C, list[str]]:
    """The saved configuration with what may change, and a line `name: old -> new` for each change.

    Raises BadInput that shows saved against given for all else, with `problems` and every wrong value.
    """
    found = list(problems)
    given, _, bad = _read_all(schema, flags, toml, found)
    values = flat_values(schema, saved)
    changes = []
    before = dict(values)
    for name, value in given.items():
        values[name] = merge_tables(before[name], value) if isinstance(value, dict) else value
    implied = {
        name: value
        for name, value in schema.implied(values).items()
        if name in schema.changeable and name not in given
    }
    values |= implied
    for name in (*given, *implied):
        old, value = before[name], values[name]
        if value == old or absolute(schema, name, value) == absolute(schema, name, old):
            values[name] = old
            continue
        moved = name in schema.movable and same_functions(old, value)
        if name not in schema.changeable and not moved:
            fixed = (
                "it may be given from another place, as many functions of the same names"
                if name in schema.movable
                else schema.fixed
            )
            found.append(
                f"{schema.fields[name].flag}: the run has {show(old)}, given {show(value)}; {fixed}: "
                "leave it out, or start a new run" + schema.start_from
            )
            values[name] = old
            continue
        changes.append(f"{name}: {show(old)} -> {show(value)}")
    return _build(schema, values, found, bad), changes


def resolve_resume(
    run_dir: Path,
    flags: Mapping[str, Any],
    trust_run: bool = False,
    toml: Path | None = None,
    problems: Iterable[str] = (),
) -> Resolved:
    """`resolve_resume_as` for `distrl train`."""
    return resolve_resume_as(TRAIN, run_dir, flags, trust_run, toml, problems)


def resolve_resume_as(
    schema: Schema[C],
    run_dir: Path,
    flags: Mapping[str, Any],
    trust_run: bool = False,
    toml: Path | None = None,
    problems: Iterable[str] = (),
) -> ResolvedAs[C]:
    """The configuration to go on with in `run_dir`. Raises BadInput as the two above and below do."""
    saved = read_config_as(schema, run_dir / CONFIG_FILE)
    config, changes = merge_for_resume_as(schema, saved.config, flags, toml, problems)
    if gone := missing(schema, config, run_dir):
        raise BadInput(*gone)
    named = frozenset(canonical(name) for name in flags)
    check_trust_as(schema, run_dir / CONFIG_FILE, config, trust_run, from_command_line=named)
    sources = dict(saved.sources)
    written = {canonical(name) for name in _read_toml(toml, [])} if toml is not None else set()
    for change in changes:
        name = change.split(":")[0]
        sources[name] = "flag" if name in named else "toml" if name in written else "implied"
    return ResolvedAs(config, sources, tuple(schema.warnings(config)), tuple(changes), saved.folder)
