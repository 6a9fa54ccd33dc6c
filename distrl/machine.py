"""What a run ran on: bits hold for one CPU model, device and set of versions, so these are recorded."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distrl.errors import BadInput

PACKAGES = (
    "distrl", "torch", "numpy", "numba", "gymnasium", "ray", "mujoco", "ale-py", "box2d", "transformers", "tokenizers",
    "peft",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a curve depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str = "cpu") -> dict[str, Any]:
    """CPU model, cores, memory, system, and the learner's device."""
    described: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": device,
    }
    if device == "cuda":
        import torch

        described["gpu"] = torch.cuda.get_device_name()
    return described


def resolve_device(asked: str) -> str:
    """`cpu` or `cuda` for `auto`, `cpu` or `cuda`. BadInput where cuda is asked for and there is none."""
    import torch

    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise BadInput("--device cuda: torch sees no CUDA device here; give --device cpu or auto")
    return "cuda" if available and asked != "cpu" else "cpu"


def git_revision() -> str | None:
    """Revision of the checkout that distrl runs from, with `+changes` where it differs; None outside one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+changes",
        "--abbrev=40",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names whose values differ, as `torch 2.12.0 -> 2.13.0`."""
    names = sorted({*before, *after})
    return [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
