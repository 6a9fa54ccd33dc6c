"""Reward functions as users write them, good and bad; loaded by name in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np


def letters(prompt: str, response: str) -> int:
    return len(response)


def told(prompt: str, response: str, answer: str, **fields: Any) -> float:
    """Says by its score what it was given."""
    print("on standard output, where it is in nobody's way")
    return 100.0 * (answer == "yes") + 10.0 * len(fields) + len(prompt)


def picky(prompt: str, response: str, answer: str = "none") -> bool:
    return answer == "yes"


def numpy_score(prompt: str, response: str) -> Any:
    return np.float32(0.5)


def obeys(prompt: str, response: str) -> Any:
    """Does what the response says."""
    match response.strip():
        case "raise":
            raise ValueError("as told")
        case "hang":
            time.sleep(1000)
        case "stuck":
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "exit":
            os._exit(3)
        case "system exit":
            sys.exit(4)
        case "child":
            subprocess.run(["sleep", "1000"])
        case "nan":
            return float("nan")
        case "infinite":
            return float("-inf")
        case "text":
            return "1.0"
        case "none":
            return None
        case "large":
            return -1e39
        case "list":
            return [1.0, 2.0]
        case "array":
            return np.ones(2)
        case "complex":
            return 1j
    return 1.0


def very_large(prompt: str, response: str) -> float:
    return 3e38


def rank(prompts: Any, completions: Any, **columns: Any) -> list[int]:
    """A score that depends on the whole batch."""
    order = sorted(completions)
    return [order.index(one) for one in completions]


def told_as_batch(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """Its own on some rows alone."""
    return [
        None if one.startswith("a") else {"score": len(one), "tokens": len(ids)}
        for one, ids in zip(completions, completion_ids, strict=True)
    ]


def not_of_cats(prompt: str, response: str) -> float:
    """Says nothing of one of the prompts."""
    return float("nan") if "cat" in prompt else len(response)
