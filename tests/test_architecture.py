"""The house: imports only go down, Ray and wandb stay in their rooms, and a rung is one idea."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import distrl
from distrl.cli.ladder import difference
from distrl.recipes import IDEAS, LADDER, Recipe

ROOT = Path(str(distrl.__file__)).parent
SIDE_READS_UP_TO = 1
SIDE_IS_READ_FROM = 2

# The floor of a module or of all below a package; the longest name that fits counts.
FLOORS = {
    "distrl.errors": 0,
    "distrl.trees": 0,
    "distrl.nopython": 0,
    "distrl.named": 0,
    "distrl.plain_values": 0,
    "distrl.maths": 0,
    "distrl.trajectory": 1,
    "distrl.policies": 1,
    "distrl.envs": 1,
    "distrl.recipes": 2,
    "distrl.normalization": 2,
    "distrl.rollout": 2,
    "distrl.rollout_fused": 2,
    "distrl.updates": 2,
    "distrl.inference": 2,
    "distrl.learner": 2,
    "distrl.credit": 2,
    "distrl.rlhf": 2,
    "distrl.runtime": 3,
    "distrl.loops": 3,
    "distrl": 4,
}
SIDE = ("distrl.telemetry", "distrl.checkpoint")


def modules() -> dict[str, Path]:
    """Every module of the package: dotted name -> file."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """What a module imports anywhere: at its top, inside functions, for type checking."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {f"{module}.{alias.name}" for alias in node.names}  # the name may be a module itself
    return found


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def side(name: str) -> str | None:
    return next((package for package in SIDE if is_in(name, package)), None)


def floor(name: str) -> int:
    return FLOORS[max((package for package in FLOORS if is_in(name, package)), key=len)]


def allowed(importer: str, imported: str) -> bool:
    """Whether one module of the house may read another."""
    if side(importer):
        return side(imported) == side(importer) or (
            not side(imported) and floor(imported) <= SIDE_READS_UP_TO
        )
    if side(imported):
        return floor(importer) >= SIDE_IS_READ_FROM
    return floor(imported) <= floor(importer)


PAIRS = {(name, imported) for name, path in modules().items() for imported in imports(name, path)}


def test_the_walk_sees_the_house() -> None:
    assert ("distrl.config", "distrl.recipes.Recipe") in PAIRS
    assert ("distrl.cli.train", "distrl.session.run_training") in PAIRS, "imports inside functions count"
    assert len({name for name, _ in PAIRS}) > 30


@pytest.mark.parametrize(
    ("importer", "imported", "may"),
    [
        ("distrl.maths.losses", "distrl.trajectory", False),
        ("distrl.learner", "distrl.runtime.ray", False),
        ("distrl.maths.losses", "distrl.telemetry.spans", False),
        ("distrl.envs.group", "distrl.telemetry.spans", False),
        ("distrl.telemetry.console", "distrl.config", False),
        ("distrl.learner", "distrl.telemetry.spans", True),
        ("distrl.session", "distrl.loops", True),
        ("distrl.recipes", "distrl.config", False),
    ],
)
def test_the_rule_itself_can_tell_up_from_down(importer: str, imported: str, may: bool) -> None:
    assert allowed(importer, imported) == may


def test_imports_only_go_down() -> None:
    up = sorted(
        f"{importer} imports {imported}"
        for importer, imported in PAIRS
        if is_in(imported, "distrl") and not allowed(importer, imported)
    )
    assert not up, "\n".join(up)


@pytest.mark.parametrize(("package", "room"), [("ray", "distrl.runtime"), ("wandb", "distrl.telemetry")])
def test_ray_and_wandb_are_imported_in_their_rooms_alone(package: str, room: str) -> None:
    importers = {name for name, imported in PAIRS if is_in(imported, package)}
    assert importers, "the room uses what it is for"
    assert all(is_in(name, room) for name in importers), sorted(importers)


@pytest.mark.parametrize("package", ["gymnasium", "ray", "logging", "wandb", "rich", "json", "os", "pathlib"])
def test_maths_knows_arrays_alone(package: str) -> None:
    assert not [name for name, imported in PAIRS if is_in(name, "distrl.maths") and is_in(imported, package)]


# Each rung against the one below: the whole difference, as the design's table has it.
RUNGS = {
    "reinforce-baseline": {"baseline": (False, True)},
    "actor-critic": {"credit": ("return", "gae"), "collects": ("episodes", "steps")},
    "a2c": {"num_envs": (1, 8)},
    "ppo": {
        "normalize_advantage": (False, True),
        "clip": (None, 0.2),
        "clip_value": (None, 10.0),
        "max_grad_norm": (None, 0.5),
        "epochs": (1, 4),
        "minibatches": (1, 4),
    },
}


def test_neighbouring_rungs_differ_in_exactly_one_idea() -> None:
    names = list(LADDER)
    assert names == ["reinforce", *RUNGS]
    assert {
        above: difference(LADDER[below], LADDER[above])
        for below, above in zip(names, names[1:], strict=False)
    } == RUNGS
    assert set(IDEAS) == set(LADDER)


def test_the_optimiser_is_alike_in_all_rungs() -> None:
    alike = ("learning_rate", "learning_rate_schedule", "adam_eps", "gamma")
    for name in alike:
        assert len({getattr(recipe, name) for recipe in LADDER.values()}) == 1, name
    fields = [field.name for field in dataclasses.fields(Recipe)]
    assert set(alike) <= set(fields)


def test_advantages_and_gradients_are_scaled_in_the_last_rung_alone_and_it_says_so() -> None:
    assert [name for name, recipe in LADDER.items() if recipe.max_grad_norm is not None] == ["ppo"]
    assert [name for name, recipe in LADDER.items() if recipe.normalize_advantage] == ["ppo"]
    assert "normalized" in IDEAS["ppo"] and LADDER["ppo"].num_envs > 1


def test_no_code_but_the_ladders_own_knows_an_algorithms_name() -> None:
    own = {"distrl.recipes", "distrl.config"}  # the ladder, and the help and default of --algo
    naming = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in LADDER
    }
    assert {name for name in naming if floor(name) <= 3 and not side(name)} <= own
