"""report.html holds what the run's files hold, escapes what users wrote, and a real browser shows it."""

import html
import json
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from distrl.telemetry.charts import MAX_POINTS, line_chart, nice_ticks, tick_text
from distrl.telemetry.report import flatten_config, write_report

NASTY = "<script>document.title='owned'</script><img src=http://example.invalid/x>&\"'"

SPANS = {
    "driver": {"wall_sec": 10.0, "spans": {"wait: workers": 5.5, "wait: learner": 4.0, "other": 0.5}},
    "learner": {"wall_sec": 9.5, "spans": {"learn: update": 3.75, "wait: workers": 5.75}},
    "worker 0": {"wall_sec": 9.25, "spans": {"rollout: env step": 5.0, "wait: learner": 4.25}},
    "worker 1": {"wall_sec": 9.25, "spans": {"rollout: env step": 5.25, "wait: learner": 4.0}},
}


def record_of(iteration: int) -> dict[str, Any]:
    share = iteration / 40
    return {
        "iteration": iteration,
        "env_steps": 512 * iteration,
        "wall_sec": 0.25 * iteration,
        "steps_per_sec": 2048.0 + iteration,
        "episodes": 3,
        "episode_return_mean": None if iteration == 1 else 20.0 + 455.5 * share,
        "episode_length_mean": None if iteration == 1 else 20.0 + 455.5 * share,
        "policy_version": iteration,
        "policy_loss": -0.01 * math.cos(iteration),
        "value_loss": 40 * math.exp(-share),
        "entropy": 0.69 - 0.2 * share,
        "approx_kl": 0.005,
        "clip_fraction": None,
        "explained_variance": -40.0 if iteration < 3 else share,
        "value_mean": 10 * share,
        f"info/{NASTY}": 0.5,
        "time/learner/learn: update": 0.1,
        "system/rss_bytes": 1e9,
    }


def make_run(run_dir: Path, num_iterations: int = 40, ended: bool = True) -> Path:
    run_dir.mkdir()
    config = {"env": "CartPole-v1", "env_kwargs": {"text": NASTY}, "algo": "ppo", "seed": 7, "wrapper": None}
    recipe = {"gamma": 0.99, "learning_rate": 0.00025}
    (run_dir / "config.json").write_text(json.dumps({"schema": 1, "config": {**config, "recipe": recipe}}))
    lines = [json.dumps(record_of(iteration)) + "\n" for iteration in range(1, num_iterations + 1)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    if ended:
        summary = {
            "schema": 1,
            "exit_reason": "finished",
            "reproducibility": "exact",
            "parameters_sha256": "0123456789abcdef" * 4,
            "git_revision": "feedbeef",
            "versions": {"torch": "9.8.7", "python": "3.11.9"},
            "machine": {"cpu": "Z80", "cores": 2},
            "evaluation": {"return_mean": 487.25, "return_std": 12.5, "length_mean": 487.25, "episodes": 20},
            "warnings": [NASTY, "a worker is idle"],
            "spans": SPANS,
        }
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_holds_the_numbers_of_the_run_s_files(tmp_path: Path) -> None:
    path = write_report(make_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = Page(path.read_text())
    for text in (
        "PPO on CartPole-v1", "seed 7", "finished", "exact", "475.5", "487.2 ± 12.5", "20 episodes", "20,480", "2,048",
        "40 iterations", "10s", "feedbeef", "0123456789abcdef" * 4, "9.8.7", "Z80", "a worker is idle", "gamma", "0.99",
        "5.25 s", "56.8 %", "9.25 s",
    ):  # fmt: skip
        assert text in page.text, text
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert all(labels)
    titles = [label.split(" over ")[0] for label in labels if label]
    assert titles[:4] == ["Episode return", "Episode length", "Policy loss", "Value loss"]
    assert "Clip fraction" not in titles  # never had a value
    assert NASTY in titles
    assert [path.name for path in tmp_path.glob("run/*.tmp")] == []


def test_what_a_user_wrote_is_text_never_markup(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1  # the page's own
    assert "img" not in [tag for tag, _ in page.tags]
    assert html.escape(NASTY, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")


def test_the_page_asks_for_no_other_file(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text()
    for tag, attrs in Page(text).tags:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        assert "src" not in attrs
        assert attrs.get("href", "data:") in ("data:,", "data:")
    style = text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_a_run_that_has_not_ended_or_not_begun_has_a_report_too(tmp_path: Path) -> None:
    running = Page(write_report(make_run(tmp_path / "running", ended=False)).read_text())
    assert "not finished" in running.text and "Where the time went" not in running.text
    empty = Page(write_report(make_run(tmp_path / "empty", num_iterations=0, ended=False)).read_text())
    assert "No episode has ended yet" in empty.text
    one = write_report(make_run(tmp_path / "one", num_iterations=1))
    assert "No episode has ended yet" in one.read_text()
    assert "nan" not in re.sub(r"<style>.*</style>", "", one.read_text(), flags=re.DOTALL).lower().split()


@pytest.mark.parametrize(
    ("reason", "badge", "cause"),
    [
        ("finished", "finished", None),
        ("interrupted by SIGTERM", "interrupted by SIGTERM", None),
        ("failed: all workers died\nresume with: distrl train --resume x", "failed", "all workers died"),
    ],
)
def test_the_report_says_how_the_run_ended_and_why(
    tmp_path: Path, reason: str, badge: str, cause: str | None
) -> None:
    run_dir = make_run(tmp_path / "run")
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps(summary | {"exit_reason": reason}))
    text = write_report(run_dir).read_text()
    assert re.search(rf'<span class="badge [^"]*">{badge}</span>', text)
    assert ("Why it failed" in text) == (cause is not None)
    assert cause is None or cause in text


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    (run_dir / "config.json").write_text('{"schema": 1')
    with pytest.raises(ValueError, match=r"config\.json must hold JSON"):
        write_report(run_dir)


def test_the_recipe_s_fields_go_by_their_own_names() -> None:
    nested = {"schema": 1, "config": {"env": "X-v0", "env_kwargs": {"a": {"b": 1}}, "recipe": {"gamma": 0.9}}}
    assert flatten_config(nested) == {"env": "X-v0", "env_kwargs.a.b": 1, "gamma": 0.9}
    assert flatten_config({"schema": 1, "env": "X-v0", "sources": {"env": "flag"}}) == {"env": "X-v0"}


def test_a_long_curve_is_pooled_to_its_mean_with_its_range_kept() -> None:
    num = 10 * MAX_POINTS
    y = [float(i % 10) for i in range(num)]
    chart = line_chart("Return", [float(i) for i in range(num)], list(y))
    assert chart is not None
    points = json.loads(chart.hover)
    assert len(points) == MAX_POINTS
    assert {point[3] for point in points} == {"4.5"}
    assert chart.band and "lowest 0, highest 9" in chart.alt


def test_a_chart_s_line_is_where_its_axes_say() -> None:
    chart = line_chart("Return", [0.0, 50.0, 100.0], [0.0, float("nan"), 100.0])
    assert chart is not None
    places = [
        tuple(float(n) / 10 for n in pair.split(",")) for pair in chart.line.removeprefix("M").split("L")
    ]
    tops = {text: top for top, text in chart.y_ticks}
    lefts = {text: left for left, text in chart.x_ticks}
    assert places == [
        (pytest.approx(lefts["0"], abs=0.02), pytest.approx(tops["0"], abs=0.02)),
        (pytest.approx(lefts["100"], abs=0.02), pytest.approx(tops["100"], abs=0.02)),
    ]
    assert line_chart("Return", [1.0, 2.0], [None, float("nan")]) is None


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 500), (9, 499.9), (-0.013, 0.008), (3.0, 3.0), (0, 0), (-1e-9, 1e-9), (-2e6, -1e6), (0, 1e12)],
)
def test_ticks_are_round_rising_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 10
    steps = {round((after - before) / (ticks[1] - ticks[0]), 6) for before, after in pairwise(ticks)}
    assert steps == {1.0}
    if high > low:
        assert low - 1e-12 <= ticks[0] and ticks[-1] <= high + 1e-12
    texts = [tick_text(tick, ticks) for tick in ticks]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 9


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_a_real_browser_shows_the_charts_with_no_error_and_no_request(tmp_path: Path) -> None:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    path = write_report(make_run(tmp_path / "run"))
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,2400",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    try:
        browser.get(path.as_uri())
        assert browser.title == "PPO on CartPole-v1, seed 7"
        curves = browser.find_elements(By.CSS_SELECTOR, ".plot .curve")
        assert len(curves) == 10
        assert all(curve.rect["width"] > 100 and curve.rect["height"] >= 0 for curve in curves)
        lengths = browser.execute_script(
            "return [...document.querySelectorAll('.plot .curve')].map(path => path.getTotalLength())"
        )
        assert min(lengths) > 100
        bars = browser.find_elements(By.CSS_SELECTOR, ".bar")
        assert [len(bar.find_elements(By.CSS_SELECTOR, "span")) for bar in bars] == [2, 2, 2, 3]
        first = bars[0].find_elements(By.CSS_SELECTOR, "span")[0]
        assert first.rect["width"] / bars[0].rect["width"] == pytest.approx(5.0 / 9.25, abs=0.01)

        ActionChains(browser).move_to_element(browser.find_element(By.CSS_SELECTOR, ".big .plot")).perform()
        tip = browser.find_element(By.CSS_SELECTOR, ".big .tip")
        assert re.fullmatch(r"[\d.,]+ at [\d,]+", tip.text)

        for width in (1200, 400):
            browser.set_window_size(width, 2400)
            overflow = browser.execute_script(
                "return document.documentElement.scrollWidth - window.innerWidth"
            )
            assert overflow <= 0, f"{overflow} pixels too wide in a window of {width}"

        assert browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        requested = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        ours = {params["request"]["url"] for params in requested if params["documentURL"] == path.as_uri()}
        assert {url for url in ours if not url.startswith("data:")} == {path.as_uri()}
    finally:
        browser.quit()
