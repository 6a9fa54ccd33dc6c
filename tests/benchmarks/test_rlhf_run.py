"""benchmarks/rlhf: the whole run at a tiny size, what it measures, and its page."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.rlhf import gap, pipeline, report, stages
from benchmarks.rlhf.fits import fit
from benchmarks.rlhf.grammar import stories
from benchmarks.rlhf.language import make_folder, train_tokenizer
from benchmarks.rlhf.measure import Judge, best_of, best_of_kl, kl_per_response, win_rate
from benchmarks.rlhf.results import collect, write
from benchmarks.rlhf.settings import TINY
from benchmarks.rlhf.together import together
from distrl.rlhf.models import read_causal


def test_the_whole_run_ends_in_results_and_a_page_and_done_stages_are_not_done_again(tmp_path: Path) -> None:
    folders, took = pipeline.run(tmp_path, TINY)
    curves = [json.loads((folders.ppo[beta] / "curve.json").read_text()) for beta in TINY.betas]
    assert [point["iteration"] for point in curves[0]] == [0, 1, 2]
    assert curves[0][0]["kl"] == 0.0 < curves[0][2]["kl"]
    assert curves[0][0] == curves[1][0]  # both start from SFT

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    shutil.rmtree(folders.ppo[0.02])  # as if killed there
    again, told = pipeline.run(tmp_path, TINY)
    assert again == folders
    assert told["sft"] == took["sft"]
    assert json.loads((again.ppo[0.02] / "curve.json").read_text()) == curves[1]  # the same run again
    kept = [path for path in before if folders.ppo[0.02] not in path.parents]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)

    results = collect(TINY, folders, told, "a command")
    write(results, tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    report.write_report(results, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    HTMLParser().feed(page)
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    for word in ("Before and after", "Over-optimisation", results["samples"][0]["prompt"], "a command"):
        assert word in page


def test_the_committed_page_is_that_of_the_committed_results_with_the_certificate_in_it(
    tmp_path: Path,
) -> None:
    folder = gap.RESULTS.parent / "rlhf"
    report.write_report(json.loads((folder / "results.json").read_text()), tmp_path / "report.html")
    page = (folder / "report.html").read_text()
    assert (tmp_path / "report.html").read_text() == page, "python -m benchmarks.rlhf.report draws it anew"
    assert "The certificate" in page
    cases = json.loads(gap.RESULTS.read_text())["cases"]
    for case in cases:
        assert f"<td>{100 * case['closed']:.2f} %</td>" in page
    worst = min(case["closed"] for case in cases if not case["bootstraps"])
    told = gap.section()
    assert told is not None and 0 <= 100 * worst - float(told["worst"].split()[0]) < 0.01  # never rounded up
    assert [row[0] for row in told["rows"]] == ["0.05", "0.2", "1"]


def test_work_in_two_processes_comes_back_in_order_as_in_one_and_so_does_what_it_raises() -> None:
    assert list(together(math.sqrt, [9.0, 4.0, 1.0], 2)) == list(together(math.sqrt, [9.0, 4.0, 1.0], 1))
    with pytest.raises(ValueError, match=r"domain|nonnegative"):
        list(together(math.sqrt, [1.0, -1.0], 2))


def test_other_settings_of_a_stage_make_it_and_those_after_it_anew() -> None:
    longer = replace(TINY, iterations=3)
    assert TINY.key(*pipeline.REWARD) == longer.key(*pipeline.REWARD)
    assert TINY.key(*pipeline.PPO) != longer.key(*pipeline.PPO)
    noisy = replace(TINY, noise=0.1)
    assert TINY.key(*pipeline.SFT) == noisy.key(*pipeline.SFT)
    assert TINY.key(*pipeline.PPO) != noisy.key(*pipeline.PPO)


def test_noise_flips_its_share_of_the_labels_and_more_noise_flips_more_of_them(tmp_path: Path) -> None:
    flips_at = np.random.default_rng(0).random(4000)
    rows = [
        {
            "prompt": "p",
            "first": f"one {i}",
            "second": "other",
            "prefers_first": i % 2 == 0,
            "flips_at": float(u),
        }
        for i, u in enumerate(flips_at)
    ]
    stages.write_jsonl(tmp_path / "pairs.jsonl", rows)
    flipped = {}
    for noise in (0.0, 0.1, 0.25):
        stages.label(tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl", noise)
        labelled = stages.read_jsonl(tmp_path / "labels.jsonl")
        flipped[noise] = {i for i, row in enumerate(labelled) if (row["chosen"] != "other") != (i % 2 == 0)}
    assert flipped[0.0] == set()
    assert flipped[0.1] < flipped[0.25]
    assert len(flipped[0.25]) == pytest.approx(1000, abs=100)
    stages.label(tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl", 0.0, count=7)
    assert len(stages.read_jsonl(tmp_path / "labels.jsonl")) == 7


def test_text_comes_back_from_tokens_as_it_was() -> None:
    corpus = stories(0, "corpus", 300)
    texts = [one.plot.prompt + one.completion for one in corpus]
    tokenizer = train_tokenizer(texts)
    assert len(tokenizer) < 512
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    prompt = tokenizer(corpus[0].plot.prompt)["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt


def test_the_best_of_n_is_the_mean_over_all_choices_of_n() -> None:
    generator = np.random.default_rng(0)
    score_PN, worth_PN = generator.normal(size=(2, 3, 6))
    for n in range(1, 7):
        chosen = [
            worth_PN[p, max(some, key=lambda i: score_PN[p, i])]
            for p in range(3)
            for some in itertools.combinations(range(6), n)
        ]
        assert best_of(score_PN, worth_PN, n) == pytest.approx(np.mean(chosen))
    with pytest.raises(ValueError, match=r"1\.\.6"):
        best_of(score_PN, worth_PN, 7)


def test_the_kl_of_best_of_n_is_that_of_the_density_n_x_to_the_n_minus_1() -> None:
    place = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (1, 4, 64):
        density = n * place ** (n - 1)
        assert best_of_kl(n) == pytest.approx(
            (density * np.log(np.maximum(density, 1e-300))).mean(), abs=1e-4
        )


def test_the_kl_over_the_vocabulary_is_the_mean_of_the_log_ratios(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(one.plot.prompt for one in stories(0, "corpus", 50))
    make_folder(tmp_path / "one", tokenizer, 1, 32, 0)
    model = read_causal(tmp_path / "one").build()
    other = read_causal(tmp_path / "one").build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    judge = Judge(tokenizer, model, None, 6)
    written = judge.write(other, [stories(0, "corpus", 1)[0].plot.prompt] * 1500, 0, 0)
    exact = kl_per_response(other, model, written)
    ratio_TN = np.zeros_like(written.log_prob)
    for name, sign in ((other, 1.0), (model, -1.0)):
        token = torch.from_numpy(written.token)
        log_probs = torch.log_softmax(name(input_ids=token, use_cache=False).logits.detach().double(), -1)
        columns = torch.arange(written.num_responses)
        for t in range(len(written.action)):
            at, action = (
                torch.from_numpy(written.position[t]),
                torch.from_numpy(written.action[t]).clamp(min=0),
            )
            ratio_TN[t] += sign * log_probs[columns, at, action].numpy()
    sampled = np.where(written.valid, ratio_TN, 0.0).sum(axis=0)
    error = sampled.std() / math.sqrt(len(sampled))
    assert abs(exact.mean() - sampled.mean()) < 4 * error
    assert exact.std() < sampled.std()
    assert (kl_per_response(model, model, written) == 0.0).all()


def test_a_win_is_a_better_story_and_a_tie_is_half_of_one() -> None:
    told = win_rate(np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.0, 2.0, 4.0, 1.0]))
    assert told["mean"] == 0.625
    assert told["low"] <= 0.625 <= told["high"]


@pytest.mark.parametrize("form", ["rl", "best of n"])
def test_a_fit_finds_the_numbers_that_made_the_points_and_the_top(form: str) -> None:
    d = np.linspace(0.2, 5.0, 30)
    bend = d if form == "best of n" else np.log(d)
    reward = d * (1.5 - 0.6 * bend)
    found = fit([0.0, *(d**2)], [0.0, *reward], form)  # type: ignore[arg-type]
    assert (found.a, found.b) == (pytest.approx(1.5), pytest.approx(0.6))
    assert found.r_squared == pytest.approx(1.0)
    assert found.kl_at_top is not None
    fine = np.linspace(0.01, 8.0, 20_000)
    assert math.sqrt(found.kl_at_top) == pytest.approx(max(fine, key=lambda x: found.at(x**2)), abs=1e-3)


def test_a_fit_that_only_rises_has_no_top() -> None:
    assert fit([1.0, 4.0, 9.0], [1.0, 2.5, 5.0], "best of n").kl_at_top is None
