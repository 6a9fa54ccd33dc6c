"""benchmarks/gpu_rlhf.py on a CPU: what it computes is what it says, its tables are whole, and its check can fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import gpu_rlhf
from benchmarks.gpu_rlhf import (
    HALF_BILLION,
    TINY,
    Size,
    bytes_read,
    check_generation,
    time_generation,
    time_steps,
)
from distrl.rlhf import fixed

SMALL = Size(8, 4, 10)


class Told:
    def __init__(self) -> None:
        self.rows: list[tuple[str, bool]] = []

    def add(self, name: str, holds: bool, **detail: Any) -> None:
        self.rows.append((name, holds))


def test_the_check_of_generation_holds_and_fails_where_a_key_too_few_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = Told()
    check_generation(told, "cpu")
    assert [holds for _, holds in told.rows] == [True, True]
    real = fixed._Lane._begin

    def wrong(lane: Any, *given: Any) -> None:
        real(lane, *given)
        lane.pads.add_(1)

    monkeypatch.setattr(fixed._Lane, "_begin", wrong)
    told = Told()
    check_generation(told, "cpu")
    assert not any(holds for _, holds in told.rows)


def test_generation_is_timed_in_each_way_beside_its_limit() -> None:
    rows = time_generation(TINY, [SMALL], "cpu", {"memory_bytes": 1e9}, budget_sec=0.0)
    assert [row["how"] for row in rows] == ["fixed", "plain", "generate()"]
    for row in rows:
        assert row["tokens_per_sec"] == pytest.approx(80 / row["seconds"]["median"])
        assert row["share_of_limit"] == pytest.approx(row["limit_sec"] / row["seconds"]["median"])
    assert rows[-1]["times_generate"] == 1.0


def test_the_limit_counts_all_weights_at_each_token_and_the_keys_and_values_so_far() -> None:
    described = {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
    }
    # 2 texts of 5 tokens and then 6, keys and values of 2 heads of 8 numbers of 2 bytes in 3 layers
    assert bytes_read(described, 1000, Size(2, 5, 2)) == 2 * 1000 + 2 * (5 + 6) * 3 * 2 * 2 * 8 * 2


def test_a_step_is_timed_part_by_part() -> None:
    rows = time_steps(TINY, SMALL, "cpu", micro_batch=4)
    assert [row["algo"] for row in rows] == ["ppo", "grpo"]
    for row in rows:
        parts = row["seconds"]
        assert set(parts) == {"write", "look", "learn", "publish", "whole"} and min(parts.values()) > 0
        assert {"generate", "reference", "digest"} <= set(row["last_iteration_spans"])


def test_the_large_model_has_half_a_billion_parameters() -> None:
    with torch.device("meta"):
        count = sum(one.numel() for one in gpu_rlhf.qwen2(HALF_BILLION, "meta").parameters())
    assert 4.5e8 < count < 5.5e8
