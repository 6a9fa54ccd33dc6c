"""Evaluation within a run and after it: of its own prompts, of the newest weights, and it ends no run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.stages.conftest import command, ppo_flags, records, write_lines

TELLS = """
def told(prompt, response, place=None):
    return {"training": 1.0, "held out": 5.0}[place]

def picky(prompt, response, place=None):
    return float("nan") if place == "held out" else 1.0
"""


def place_prompts(workplace: Path) -> None:
    (workplace / "tells.py").write_text(TELLS)
    write_lines(workplace / "placed.jsonl", [{"prompt": f"the {i}", "place": "training"} for i in range(5)])
    write_lines(workplace / "held_out.jsonl", [{"prompt": f"one {i}", "place": "held out"} for i in range(3)])


def evaluated(workplace: Path, run: Path, *more: str) -> list[dict[str, object]]:
    place_prompts(workplace)
    flags = (
        "--prompts", "placed.jsonl", "--eval-prompts", "held_out.jsonl", "--eval-every", "1", "--iterations", "1"
    )  # fmt: skip
    command(workplace, *ppo_flags(run, *flags, *more))
    return records(run)


def test_held_out_prompts_are_scored_with_their_own_fields(workplace: Path, tmp_path: Path) -> None:
    line = evaluated(workplace, tmp_path / "run", "--reward-function", "tells:told")[0]
    assert (line["score_mean"], line["eval/score_mean"]) == (1.0, 5.0)


def test_held_out_prompts_have_their_own_fields_in_a_weighted_reward_too(
    workplace: Path, tmp_path: Path
) -> None:
    more = ("--reward-function", "tells:told,tells:told", "--reward-weights", "1,2")
    line = evaluated(workplace, tmp_path / "run", *more)[0]
    assert (line["score_mean"], line["eval/score_mean"]) == (3.0, 15.0)


def test_held_out_responses_without_a_score_end_no_run(workplace: Path, tmp_path: Path) -> None:
    line = evaluated(workplace, tmp_path / "run", "--reward-function", "tells:picky", "--max-unscored", "0")[
        0
    ]
    assert (line["eval/unscored"], line["eval/score_mean"]) == (3, None)


def test_eval_of_a_run_that_goes_on_takes_its_newest_checkpoint_and_not_the_model_of_its_first_end(
    undisturbed: Callable[..., Path], workplace: Path, tmp_path: Path
) -> None:
    run, asked = tmp_path / "run", ("--json", "--max-response", "3", "--limit", "2")
    shutil.copytree(undisturbed(), run)
    told = json.loads(command(workplace, "rlhf", "eval", str(run), *asked).stdout)
    assert told["checkpoint"] is None
    (run / "summary.json").unlink()  # as a resumed run does before it goes on
    told = json.loads(command(workplace, "rlhf", "eval", str(run), *asked).stdout)
    assert told["checkpoint"] == 3


def test_a_run_in_bfloat16_is_evaluated_in_it_and_in_float32_as_its_model_folder_is(
    workplace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command(workplace, *ppo_flags(run, "--iterations", "1", "--dtype", "bfloat16", "--exact-ratio"))

    def told(folder: Path, *more: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(
            command(workplace, "rlhf", "eval", str(folder), "--json", *more).stdout
        )
        assert found.pop("model") == str(folder)
        return found

    own, plain = told(run), told(run, "--dtype", "float32")
    asked = ("--prompts", "prompts.jsonl", "--reward-function", "my_reward:score", "--reference", "gpt2")
    of_folder = told(run / "model", *asked, "--max-response", "6")
    assert (own["dtype"], plain["dtype"]) == ("bfloat16", "float32")
    assert of_folder == plain
    assert own["kl_mean"] != plain["kl_mean"]
    assert told(run / "model", *asked, "--max-response", "6", "--dtype", "bfloat16") == own
