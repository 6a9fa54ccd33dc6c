"""The Dockerfile without Docker: what it copies is there, what it calls exists, and it is not root that runs."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = [
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    "distrl",
    "distrl/cli/main.py",
]


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of each, continuation lines joined and comments left out."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for one, rest in instructions() if one == name]


def ignored(path: str) -> bool:
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and not line.startswith("#")
    ]
    return any(fnmatch(path, pattern) or fnmatch(path, pattern.removeprefix("**/")) for pattern in patterns)


def test_every_source_that_is_copied_exists() -> None:
    copied = [
        word for rest in arguments("COPY") for word in shlex.split(rest)[:-1] if not word.startswith("--")
    ]
    assert copied
    assert [one for one in copied if not (ROOT / one).exists()] == []


def test_every_make_target_that_is_called_exists() -> None:
    called = re.findall(r'\bmake"?,?\s+"?([a-z-]+)', "\n".join(arguments("RUN") + arguments("CMD")))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert called == ["setup", "train"]
    assert set(called) <= set(targets)


def test_the_build_context_holds_what_the_set_up_needs_and_no_environment_or_history() -> None:
    assert [one for one in NEEDED if ignored(one) or not (ROOT / one).exists()] == []
    assert all(ignored(one) for one in (".venv", ".git", "runs", "wandb", ".env", "benchmarks/peers/.envs"))


def test_the_base_is_the_python_that_the_makefile_wants() -> None:
    version = re.search(r"^PYTHON \?= python([0-9.]+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert version
    assert arguments("FROM") == [f"python:{version[1]}-slim"]


def test_what_runs_in_the_container_is_not_root() -> None:
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["distrl"]
    assert names.index("USER") < names.index("COPY") < names.index("CMD")
    assert "useradd --create-home distrl" in arguments("RUN")[0]
