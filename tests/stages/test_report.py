"""report.html of RLHF's stages holds what metrics.jsonl, config.json and summary.json say, and nothing from elsewhere."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distrl.autopsy.roles import KINDS
from distrl.stages.report import PPO_LOOK
from distrl.telemetry.charts import _significant
from distrl.telemetry.report import render_report
from tests.stages.conftest import command, ppo_flags, summary

Supervised = Callable[..., Path]


class Page(HTMLParser):
    """Cards by their headings: the text of each, and the points of its curve (x, y as shown)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.text: list[str] = []
        self.curves: dict[str, list[tuple[str, str]]] = {}
        self.links: list[str] = []
        self.heading, self.within = "", ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.within = tag
        self.links += [str(given[name]) for name in ("src", "href") if given.get(name)]
        if "data-points" in given:
            points = json.loads(str(given["data-points"]))
            self.curves[self.heading] = [(point[2], point[3]) for point in points]

    def handle_data(self, data: str) -> None:
        if self.within == "h3" and data.strip():
            self.heading = data.strip()
        if self.within not in ("style", "script") and data.strip():
            self.text.append(data.strip())


def shown(lines: list[dict[str, Any]], key: str) -> list[tuple[str, str]]:
    """The points of a metric's curve."""
    return [(str(line["iteration"]), _significant(line[key])) for line in lines if line.get(key) is not None]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ppo(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "a <b>run"
    more = ("--trace", "1", "--eval-prompts", "prompts.jsonl", "--eval-every", "2", "--kl-target", "2")
    command(workplace, *ppo_flags(run, *more))
    return run


def test_every_curve_holds_the_numbers_of_metrics_jsonl(ppo: Path) -> None:
    page, lines = Page(ppo / "report.html"), lines_of(ppo)
    wanted = {
        "Score": "score_mean", "KL to the reference": "kl", "Beta": "beta", "Objective": "objective",
        "Response length": "response_length_mean", "Policy loss": "policy_loss", "Value loss": "value_loss",
        "Entropy": "entropy", "Approximate KL": "approx_kl", "Clip fraction": "clip_fraction",
        "Explained variance": "explained_variance", "Evaluated score": "eval/score_mean",
        "Evaluated KL": "eval/kl_mean",
    }  # fmt: skip
    for title, key in wanted.items():
        assert page.curves[title] == shown(lines, key), title
    assert len(page.curves["Score"]) == 3 and len(page.curves["Evaluated score"]) == 1
    assert "nats a response: summed over its tokens" in page.text
    assert all("%" not in curve.note for curve in PPO_LOOK.charts), "a ratio is a value, and says so"


def test_it_tells_of_the_run_and_shows_where_the_time_went(ppo: Path) -> None:
    page, told = Page(ppo / "report.html"), summary(ppo)
    assert "RLHF with PPO on gpt2" in page.text and "finished" in page.text
    assert "a <b>run" in page.text, "what users write is escaped"
    config = json.loads((ppo / "config.json").read_text())
    assert config["max_prompt_tokens"] == 512 and "max_prompt_tokens" in page.text
    for sec in told["spans"]["driver"]["spans"].values():
        assert f"{sec:,.2f} s" in page.text
    biggest = max(told["longest_chain"]["links"], key=lambda link: float(link["share"]))
    assert biggest["what"] in page.text and f"{100 * biggest['share']:.0f} %" in page.text
    assert told["longest_chain"]["of"] == "iterations 3 to 3, as recorded"
    assert "Iteration 3 on one clock" in page.source
    drawn = set(re.findall(r'<rect class="(k-[a-z-]+)"', page.source))
    assert {"k-generate", "k-actor-and-critic-update", "k-reward"} <= drawn
    for kind in KINDS:
        css = "k-" + kind.replace(",", "").replace("'", "").replace(" ", "-").lower()
        assert f".{css} " in page.source or f".{css}," in page.source, f"{kind} has a colour"


def test_it_needs_no_other_file_and_no_network(ppo: Path) -> None:
    page = Page(ppo / "report.html")
    assert page.links == ["data:,"]
    assert "default-src 'none'" in page.source
    assert not re.search(r"https?://", html.unescape(page.source).replace("http://www.w3.org/2000/svg", ""))


def test_warnings_and_the_cause_of_a_failure_are_told(ppo: Path) -> None:
    told = summary(ppo) | {"warnings": ["mind the <gap>"], "exit_reason": "failed: reward worker 0 is lost"}
    text = render_report(
        run_name="x",
        config_file=json.loads((ppo / "config.json").read_text()),
        records=lines_of(ppo),
        summary=told,
        look=PPO_LOOK,
    )
    assert "mind the &lt;gap&gt;" in text and "reward worker 0 is lost" in text
    assert "Iteration 3 on one clock" not in text, "nothing was recorded"


def test_a_report_that_cannot_be_written_is_a_warning_and_a_trace_is_of_this_session(
    workplace: Path, ppo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ppo / "report.html").rename(ppo / "report of 3.html")
    (ppo / "report.html").mkdir()
    try:
        again = command(workplace, "rlhf", "ppo", "--resume", str(ppo), "--iterations", "4", "--trace", "0")
        assert "report.html was not written" in again.stderr
        assert summary(ppo)["exit_reason"] == "finished" and summary(ppo)["iterations"] == 4
        assert not (ppo / "trace.json").exists()
        chain = summary(ppo)["longest_chain"]
        assert chain["of"] == "sums of the whole run"
        assert {"generate", "reward", "actor and critic: update"} <= {one["what"] for one in chain["links"]}
        assert sum(one["share"] for one in chain["links"]) == pytest.approx(1)
    finally:
        (ppo / "report.html").rmdir()
        (ppo / "report of 3.html").rename(ppo / "report.html")


@pytest.mark.parametrize(
    ("stage", "data", "title", "curves"),
    [
        (
            "sft",
            "sft.jsonl",
            "Supervised fine-tuning of gpt2",
            {"Loss": "loss", "Held-out loss": "held_out_loss", "Entropy": "entropy"},
        ),
        (
            "reward",
            "pairs.jsonl",
            "Reward model on gpt2",
            {"Accuracy": "accuracy", "Loss": "loss", "Held-out loss": "held_out_loss", "Margin": "margin"},
        ),
    ],
)
def test_supervised_stages_show_their_losses_and_held_out_rows(
    workplace: Path, tmp_path: Path, stage: str, data: str, title: str, curves: dict[str, str]
) -> None:
    run = tmp_path / "run"
    command(
        workplace, "rlhf", stage, "--model", "gpt2", "--data", data, "--held-out-share", "0.25", "--batch-size", "4",
        "--evaluate-every", "2", "--run-dir", str(run), "--no-tensorboard",
    )  # fmt: skip
    page, lines = Page(run / "report.html"), lines_of(run)
    assert title in page.text and "finished" in page.text
    for heading, key in curves.items():
        before = lines[0].get(f"before/{key}")
        first = [("0", _significant(before))] if before is not None else []
        assert page.curves[heading] == first + shown(lines, key), heading
    assert len(page.curves["Held-out loss"]) >= 3, "before the first step, on the way, at the end"
    dots = page.source.count('<span class="dot"')
    assert dots == len(page.curves["Held-out loss"])
    assert "learn: update" in page.text
