"""What is said of bits on a device, and what every role's worker does for them on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

from distrl.rlhf.certificate import EnumerableTask, make_worker
from distrl.rlhf.devices import make_repeatable, reproducibility
from distrl.rlhf.roles import RoleWorker

TORN = AssertionError, RuntimeError  # what torch raises where it has no CUDA


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """torch's own settings are put back."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = False
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    if workspace is not None:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace


def test_bits_are_exact_on_the_cpu_alone() -> None:
    assert reproducibility(["cpu", "cpu"]) == "exact"
    assert reproducibility(["cpu", "cuda"]) == reproducibility(["cuda:1"]) == "device"


def test_a_gpu_gets_repeatable_kernels_and_the_cpu_is_left_as_it_is() -> None:
    make_repeatable(["cpu"])
    assert not torch.are_deterministic_algorithms_enabled()
    make_repeatable(["cpu", "cuda"])
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled(), "a kernel without such a form ends no run"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("role", ["reference", "reward", "generator", "actor"])
def test_a_worker_of_any_role_on_a_gpu_asks_for_them_before_its_models_are_there(role: str) -> None:
    task = EnumerableTask(1, vocabulary=4, length=2, width=8)
    spec = make_worker(task, 0.5, 1, 32).spec
    spec.devices[role] = "cuda"
    with contextlib.suppress(*TORN):
        RoleWorker(spec, [role], {"actor": task.reference, "reference": task.reference})
    assert torch.are_deterministic_algorithms_enabled()
