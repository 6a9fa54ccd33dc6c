"""The `distrl` command as a person meets it: real processes, their output and exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distrl.cli.ladder import difference
from distrl.cli.main import COMMANDS
from distrl.config import SECTIONS
from distrl.fields import flat_fields
from distrl.recipes import LADDER, PPO
from distrl.resolve import resolve, write_config
from distrl.rlhf.recipes import RLHF_PPO

HEAVY = (
    "torch",
    "ray",
    "gymnasium",
    "matplotlib",
    "numpy",
    "numba",
    "wandb",
    "tensorboard",
    "rich",
    "jinja2",
)
HELPS = [
    [],
    *([name] for name in COMMANDS),
    *(["show", picture] for picture in ("gae", "clip", "variance", "bellman")),
]


def distrl(
    *arguments: str, cwd: Path | None = None, before: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own; `before` is Python run first in it."""
    code = f"{before}\nfrom distrl.cli.main import main\nmain()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **environment},
    )


@pytest.mark.parametrize("command", HELPS, ids=" ".join)
def test_help_answers_without_importing_anything_heavy(command: list[str]) -> None:
    before = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))"
    )
    done = distrl(*command, "--help", before=before)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: distrl")
    assert done.stderr.strip() == "HEAVY []"


def test_the_package_and_its_light_names_import_nothing_heavy() -> None:
    code = (
        "import sys, distrl\n"
        "names = [getattr(distrl, name) for name in distrl.__all__]\n"
        f"print(distrl.__version__, sorted(set({HEAVY!r}) & set(sys.modules)), len(names))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert re.fullmatch(r"\d+\.\d+\S* \[\] 14\n", done.stdout), done.stdout + done.stderr


def test_the_installed_command_and_the_module_are_the_same() -> None:
    script = Path(sys.executable).with_name("distrl")
    if not script.exists():
        pytest.skip("the package is not installed beside this Python")
    said = [
        subprocess.run([*command, "ladder"], capture_output=True, text=True, timeout=60).stdout
        for command in ([str(script)], [sys.executable, "-m", "distrl"])
    ]
    assert said[0] == said[1] and "reinforce" in said[0]


def test_trains_help_shows_every_field_under_its_heading_with_its_default() -> None:
    text = distrl("train", "--help").stdout
    for heading in SECTIONS:
        assert f"\n{heading[0].upper()}{heading[1:]}:\n" in text
    for field in flat_fields().values():
        assert re.search(rf"^  {field.flag}\b", text, re.M), field.flag
    flat = " ".join(text.split())
    assert "iterations between checkpoints (default: 50)" in flat
    assert "0.2 for ppo" in flat
    assert "--wandb / --no-wandb" in flat


def test_dry_run_shows_each_value_with_its_source_and_what_follows_from_them(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("seed = 7\n[env_kwargs]\nsutton_barto_reward = true\n")
    done = distrl(
        "train", "--config", "run.toml", "--num-envs", "6", "--groups", "4", "--total-steps", "2000",
        "--workers", "5", "--env-kwargs.other", "1", "--dry-run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    for row in (
        ["name", "value", "source"],
        ["seed", "7", "toml"],
        ["num_envs", "6", "flag"],
        ["clip", "0.2", "preset"],
        ["gamma", "0.99", "default"],
        ["hidden_sizes", "64,64", "default"],
        ["env_kwargs.sutton_barto_reward", "true", "toml"],
        ["env_kwargs.other", "1", "flag"],
        ["iterations", "3 = 2000 / 768, rounded up: 2304 steps"],
        ["batch", "768 rows = 6 envs x 128 steps"],
        ["minibatch", "192 rows = 768 / 4"],
        ["group_sizes", "2, 2, 1, 1 envs in 4 group(s)"],
    ):
        assert row in rows, row
    assert "--workers 5 for --groups 4" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "run.toml"], "a dry run leaves nothing behind"


def test_dry_run_of_whole_episodes_promises_no_number_of_iterations() -> None:
    done = distrl("train", "--algo", "reinforce", "--dry-run")
    assert re.search(r"^batch +\| 1 whole episode, whatever their length$", done.stdout, re.M), done.stderr
    assert not re.search(r"^iterations", done.stdout, re.M)


def test_all_slips_of_a_command_line_are_told_at_once_and_the_status_is_2(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("total_steps = 0\nsede = 3\n")
    done = distrl(
        "train", "--learning-rate", "-1", "--num_env", "3", "--algo", "poo", "--gamma", "--config",
        "run.toml", "x", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "distrl: 7 problems with the input"
    assert len(lines) == 8 and all(line.startswith("  - ") for line in lines[1:])
    for part in (
        "--learning-rate: must be greater than 0, got '-1'",
        "did you mean --num-envs?",
        "did you mean ppo?",
        "--gamma: needs a value",
        "'x': a value without its flag",
        "--total-steps (in run.toml)",
        "did you mean --seed?",
    ):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "did you mean train?"),
        (["eval"], "RUN_DIR"),
        (["eval", "missing"], "is missing a run directory?"),
        (["eval", "x", "--episodes", "0"], "--episodes"),
        (["eval", "x", "--checkpoint", "newest"], "--checkpoint: must be latest, best or"),
        (["train", "--resume", "missing"], "is missing a run directory?"),
        (["train", "--config", "missing.toml"], "missing.toml cannot be read"),
        (["show", "gae", "--out", "x.jpg"], "--out: must end in .png"),
        (["show", "clip", "--out", "no/such/x.png"], "is no folder"),
        (["ladder", "--seeds", "none"], "--seeds"),
        (["doctor", "--learning-rate", "0"], "--learning-rate: must be greater than 0"),
    ],
)
def test_bad_input_is_status_2_and_one_list_without_a_traceback(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = distrl(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_command_that_needs_a_subcommand_shows_its_help_and_is_status_2() -> None:
    done = distrl("show")
    assert done.returncode == 2
    assert "bellman" in done.stderr


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        ("RunFailed('worker 3 died; resume with X')", 1, "distrl: worker 3 died; resume with X"),
        ("BadInput('--x: one', '--y: two')", 2, "distrl: 2 problems with the input"),
        ("KeyboardInterrupt()", 130, "distrl: interrupted"),
    ],
)
def test_the_ways_to_end_have_their_status_and_no_traceback(raised: str, status: int, line: str) -> None:
    # A command of our own: what a real one would meet only after minutes.
    before = (
        "import click, sys, types\n"
        "from distrl.errors import BadInput, RunFailed\n"
        "from distrl.cli import main as module\n"
        "@click.command()\n"
        "def command():\n"
        f"    raise {raised}\n"
        "sys.modules['ending'] = types.SimpleNamespace(command=command)\n"
        "module.COMMANDS['ending'] = 'ending'\n"
    )
    done = distrl("ending", before=before)
    assert done.returncode == status
    assert line in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_the_command_line_waits_is_status_130(tmp_path: Path) -> None:
    fifo = tmp_path / "run.toml"
    os.mkfifo(fifo)  # reading it blocks until somebody writes
    process = subprocess.Popen(
        [sys.executable, "-m", "distrl", "train", "--config", str(fifo), "--dry-run"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        writer = os.open(fifo, os.O_WRONLY)  # returns once the command has opened it
        for _ in range(60):  # a signal between the opening and the read is noted only after the next one
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                continue
        os.close(writer)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors


# --- what needs the machine, the env and its modules


@pytest.mark.timeout(120)
def test_unknown_names_and_a_missing_gpu_are_told_together_before_anything_is_made(tmp_path: Path) -> None:
    flags = ["--env", "cartpole-v1", "--wrapper", "no_such_module:fn", "--policy", "json:dumsp"]
    done = distrl(
        "train", *flags, "--device", "cuda", "--init-from", "nothing", cwd=tmp_path, CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 2
    for part in (
        "did you mean 'CartPole-v1'?",
        "'no_such_module' cannot be imported",
        "module json has no function 'dumsp'; did you mean",
        "--device cuda needs 1 GPU, and 0 are available",
        "--init-from: must be a run directory",
    ):
        assert part in done.stderr
    assert done.stderr.startswith("distrl: 5 problems")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(120)
def test_an_argument_that_the_env_does_not_take_is_bad_input_and_leaves_no_run(tmp_path: Path) -> None:
    done = distrl("train", "--env-kwargs.gravity", "3", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "gravity" in done.stderr and "CartPole-v1" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
@pytest.mark.timeout(120)
def test_code_named_by_anothers_run_is_not_imported(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_config(run_dir / "config.json", resolve({"wrapper": "evil:fn"}))
    os.chown(run_dir / "config.json", 65534, -1)
    (tmp_path / "evil.py").write_text("open('imported', 'w')\ndef fn(env):\n    return env\n")
    commands = [["train", "--resume", "run"], ["eval", "run"], ["show", "gae", "run", "--out", "x.png"]]
    for command in commands:
        done = distrl(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "--trust-run" in done.stderr and "evil (wrapper)" in done.stderr
    assert not (tmp_path / "imported").exists()


def test_a_toml_file_of_somebody_else_cannot_name_code(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    toml = tmp_path / "run.toml"
    toml.write_text('policy = "evil:make"\n')
    os.chown(toml, 65534, -1)
    assert "--trust-run" in distrl("train", "--config", str(toml), "--dry-run").stderr
    assert distrl("train", "--config", str(toml), "--dry-run", "--trust-run").returncode == 0
    assert distrl("train", "--config", str(toml), "--dry-run", "--policy", "mine:make").returncode == 0


# --- ladder


def test_the_ladder_names_each_rung_its_idea_and_its_difference() -> None:
    lines = distrl("ladder").stdout.partition("\n\n")[0].splitlines()
    assert [line.split("|")[0].strip() for line in lines[1:]] == [*LADDER, "rlhf-ppo"]
    assert lines[5].endswith(
        "| normalize_advantage false -> true, clip none -> 0.2, epochs 1 -> 4, minibatches 1 -> 4, "
        "clip_value none -> 10.0, max_grad_norm none -> 0.5"
    )
    assert lines[4].endswith("| num_envs 1 -> 8")


def test_the_last_rung_is_rlhf_with_its_idea_its_four_roles_and_how_it_is_run() -> None:
    table, _, explained = distrl("ladder").stdout.partition("\n\n")
    _, idea, differs = (part.strip() for part in table.splitlines()[-1].split("|"))
    assert idea == "reward = score - beta * KL to a frozen reference"
    assert differs.startswith("collects steps -> responses, ") and differs.endswith(", beta 0.05")
    (batch,) = re.findall(r"^  batch .*", explained, re.M)
    for field in difference(PPO, RLHF_PPO):
        assert f"{field} " in differs or field in batch, (
            "a field that differs is shown, or named as of no use"
        )
    for said in (
        "the prompt and the tokens so far",
        "the next token",
        "actor",
        "critic",
        "reward",
        "reference",
    ):
        assert said in explained
    asked = re.search(r"distrl (rlhf ppo(?: --\w+ \S+)+)", explained)
    assert asked is not None and "make rlhf" in explained
    flags = distrl("rlhf", "ppo", "--help").stdout
    for flag in re.findall(r"--\w+", asked[1]):
        assert re.search(rf"^  {flag}\b", flags, re.M), flag
