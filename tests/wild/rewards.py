"""Situations: reward functions as people bring them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.wild.kit import jsonl, save, words
from tests.wild.situation import Ended, Situation, distrl

TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<pad>")
ROWS = [{"prompt": "two plus two", "answer": "four"}, {"prompt": "two plus one", "answer": "three"}]
CHAT = [{"prompt": [{"role": "user", "content": row["prompt"]}], "answer": row["answer"]} for row in ROWS]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
LOG = """
import json
from pathlib import Path

def log(**told):
    with open(Path(__file__).with_name("seen.jsonl"), "a") as file:
        file.write(json.dumps(told) + "\\n")
"""


def model(folder: Path) -> None:
    """`model/`: a language of a few words, four tags that are special tokens among them, and a chat template."""
    vocabulary = [*TAGS, "two", "one", "plus", "four", "three", "is", "user", "assistant"]
    tokenizer = words(vocabulary, additional_special_tokens=list(TAGS[:4]), pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    save(folder / "model", tokenizer, "gpt2", std=0.02)


def ppo(folder: Path, code: str, *more: str, rows: Any = ROWS, name: str = "score") -> Ended:
    """One iteration of 8 responses with `mine.py:<name>`, which holds `code`."""
    model(folder)
    jsonl(folder / "prompts.jsonl", rows)
    (folder / "mine.py").write_text(LOG + code)
    return distrl(
        folder, "rlhf", "ppo", "--model", "model", "--prompts", "prompts.jsonl", "--num-prompts", "8", "--iterations",
        "1", "--max-response", "6", "--no-tensorboard", "--run-dir", "run", "--reward-function", f"mine.py:{name}", *more,
    )  # fmt: skip


def metrics(folder: Path, run: str = "run") -> dict[str, Any]:
    """The last record."""
    found: dict[str, Any] = json.loads((folder / run / "metrics.jsonl").read_text().splitlines()[-1])
    return found


def seen(folder: Path) -> list[dict[str, Any]]:
    """What the function was given, call by call; the first ones are the trial's."""
    return [json.loads(line) for line in (folder / "seen.jsonl").read_text().splitlines()]


def case(
    name: str, code: str, *more: str, says: tuple[str, ...] = (), expected: Any = None, **how: Any
) -> Situation:
    """One iteration with a function of that code."""
    check = how.pop("check", None)
    kind = expected or ("refused" if says else "works")
    return Situation(
        "rewards", name, lambda folder: ppo(folder, code, *more, **how), kind, says=says, check=check
    )


def gives(**values: float) -> Callable[[Path, Ended], None]:
    """A check of metrics."""

    def check(folder: Path, ended: Ended) -> None:
        found = metrics(folder)
        assert {name: found[name] for name in values} == values, found

    return check


# what they return

ONE = "def score(prompt, response):\n    return "
SOME = "def score(prompts, completions, **columns):\n    return "
RETURNS = {
    "a bool": (ONE + "True", 1.0),
    "an int": (ONE + "7", 7.0),
    "a numpy scalar": (f"import numpy as np\n{ONE}np.float64(0.5)", 0.5),
    "an array of one number": (f"import numpy as np\n{ONE}np.array([0.5])", 0.5),
    "a torch scalar": (f"import torch\n{ONE}torch.tensor(0.5)", 0.5),
    "a list of numpy scalars": (f"import numpy as np\n{SOME}[np.float32(2)] * len(prompts)", 2.0),
    "a tensor for a batch": (f"import torch\n{SOME}torch.full((len(prompts),), 0.5)", 0.5),
    "a tuple for a batch": (SOME + "(1,) * len(prompts)", 1.0),
    "a generator": (SOME + "(3 for _ in prompts)", 3.0),
    "a dict of lists for a batch": (SOME + "{'score': [1.5] * len(prompts), 'x': [2] * len(prompts)}", 1.5),
}
WRONG = {
    "text": (ONE + "'1.0'", "returned str '1.0', not a number"),
    "a list for one response": (ONE + "[1.0, 2.0]", "returned list"),
    "a dict without a score": (ONE + "{'reward': 1.0}", "without 'score'"),
    "too few scores": (SOME + "[1.0]", "returned 1 scores for 2 completions"),
    "one number for a batch": (SOME + "1.0", "not a list of 2 scores"),
    "nested lists": (SOME + "[[1.0, 2.0]] * len(prompts)", "returned list"),
    "a name that is not defined": (ONE + "lenght(response)", "NameError"),
    "a column that is not there": (
        "def score(prompts, completions, **columns):\n    return [x for x in columns['solution']]",
        "KeyError: 'solution'",
    ),
    "a required column that is not there": (
        "def score(prompt, response, solution):\n    return 1.0",
        "'solution'",
    ),
    "a signature of neither form": ("def score(text):\n    return 1.0", "(prompts, completions, **columns)"),
    "an import of what is not installed": ("import not_installed\n" + ONE + "1.0", "not_installed"),
    "a syntax error": ("def score(prompt, response)\n    return 1.0", "SyntaxError"),
    "sys.exit while it is imported": ("import sys\nsys.exit(3)\n" + ONE + "1.0", "exited with status 3"),
    "a class whose objects are not called": ("class score:\n    pass", "__call__"),
    "an object whose attributes raise": (
        "class Judge:\n    def __getattr__(self, name): raise RuntimeError('not ready')\n"
        "    def __call__(self, prompt, response): return 1.0\nscore = Judge()",
        "RuntimeError: not ready",
    ),
    "a class with arguments": (
        "class score:\n    def __init__(self, path): pass\n    def __call__(self, prompt, response): return 1.0",
        "without arguments",
    ),
}

# what they are


def check_tags(folder: Path, ended: Ended) -> None:
    """What a function saw is a plain decode without the end and pads: tags are there."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = seen(folder)[1]
    assert len(found["texts"]) == 8 and any("<answer>" in one for one in found["texts"]), found
    for text, ids in zip(found["texts"], found["ids"], strict=True):
        kept = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        while kept and kept[-1] == tokenizer.pad_token_id:
            kept = kept[:-1]
        assert text.strip() == tokenizer.decode(kept).strip()
        assert "</s>" not in text.split()[-1:]


def check_conversation(folder: Path, ended: Ended) -> None:
    found = seen(folder)[1]
    assert all(
        one[-1]["content"].startswith("two plus") and one[-1]["role"] == "user" for one in found["prompts"]
    )
    assert all(len(one) == 1 and one[0]["role"] == "assistant" for one in found["completions"])
    assert set(found["answer"]) == {"four", "three"}


def check_messages(folder: Path, ended: Ended) -> None:
    for one in seen(folder):
        assert one["messages"] == [
            {"role": "user", "content": one["prompt"].removeprefix("user ").removesuffix(" assistant")}
        ]


def check_extras(folder: Path, ended: Ended) -> None:
    found = metrics(folder)
    assert found["score/score/words"] == 2 and found["score/score"] == 1 == found["score_mean"], found


def check_not_mine(folder: Path, ended: Ended) -> None:
    """Each is silent on the other's rows: the sum is the one's that scores the row."""
    found = metrics(folder)
    assert (found["score/maths"], found["score/code"], found["unscored"]) == (1.0, 10.0, 0), found
    assert 1.0 < found["score_mean"] < 20.0


NOT_MINE = """
def maths(prompt, response, answer):
    return 1.0 if answer == "four" else None

def code(prompts, completions, answer, **kwargs):
    return [None if one == "four" else 10.0 for one in answer]
"""
TRL = """
import re

def score(completions, answer, completion_ids, trainer_state, log_metric, log_extra, **kwargs):
    assert len(completions) == len(answer) == len(completion_ids) == len(kwargs["prompts"])
    assert trainer_state.global_step == 0
    log_metric("seen", 3)
    log_extra("length", [len(one) for one in completions])
    return [1.0 if re.fullmatch(r"<think>.*</think>", one) else 0.0 for one in completions]
"""
FORMS = [
    case("TRL's signature as it is", TRL, check=gives(**{"score/score/seen": 3.0})),
    case(
        "completions alone",
        "def score(completions, **kwargs):\n    return [1.0 for _ in completions]",
        check=gives(score_mean=1.0),
    ),
    case("everything by **kwargs", "def score(**kwargs):\n    return [1.0 for _ in kwargs['completions']]"),
    case(
        "an async function",
        "import asyncio\nasync def score(prompt, response):\n    await asyncio.sleep(0.01)\n    return 2.0",
        "--reward-concurrency", "4",
        check=gives(score_mean=2.0),
    ),
    case(
        "an async batch",
        "import asyncio\nasync def score(prompts, completions, **columns):\n"
        "    async def one(text):\n        await asyncio.sleep(0.01)\n        return 2.0\n"
        "    return await asyncio.gather(*map(one, completions))",
        check=gives(score_mean=2.0),
    ),
    case(
        "an object that is called",
        "class Judge:\n    weight = 2.0\n    def __call__(self, prompt, response):\n        return self.weight\nscore = Judge()",
        check=gives(score_mean=2.0),
    ),
    case(
        "a class that is called",
        "class score:\n    def __init__(self):\n        self.weight = 2.0\n"
        "    def __call__(self, prompts, completions, **columns):\n        return [self.weight] * len(prompts)",
        check=gives(score_mean=2.0),
    ),
    case(
        "a partial",
        "from functools import partial\ndef full(prompt, response, weight, **columns):\n    return weight\n"
        "score = partial(full, weight=2.0)",
        check=gives(score_mean=2.0),
    ),
    case(
        "the response before the prompt",
        "def score(response, prompt):\n    assert prompt.startswith('two plus')\n    return 1.0",
        check=gives(score_mean=1.0),
    ),
    case("the response alone", "def score(response):\n    return 1.0", check=gives(score_mean=1.0)),
    case("a completion by name", "def score(prompt, completion, **columns):\n    return 1.0", check=gives(score_mean=1.0)),
    case(
        "special tokens",
        "def score(prompts, completions, completion_ids, **columns):\n"
        "    log(texts=completions, ids=completion_ids)\n    return [1.0] * len(prompts)",
        check=check_tags,
    ),
    case(
        "conversations for TRL's signature",
        "def score(prompts, completions, answer, **columns):\n"
        "    log(prompts=prompts, completions=completions, answer=answer)\n    return [1.0] * len(prompts)",
        rows=CHAT,
        check=check_conversation,
    ),
    case(
        "messages beside the rendered prompt",
        "def score(prompt, response, messages):\n    log(prompt=prompt, messages=messages)\n    return 1.0",
        rows=CHAT,
        check=check_messages,
    ),
    case(
        "a dict of score and extras",
        "def score(prompt, response):\n    return {'score': 1, 'words': 2, 'note': 'text is no metric'}",
        check=check_extras,
    ),
    case("None for what is another's", NOT_MINE, "--reward-function", "mine.py:maths,mine.py:code", check=check_not_mine),
    case(
        "several of one name",
        "def score(prompt, response):\n    return 1.0\nclass more:\n    @staticmethod\n    def score(prompt, response):\n        return 2.0",
        "--reward-function", "mine.py:score,mine.py:more.score",
        check=gives(score_mean=3.0),
    ),
]  # fmt: skip

# what the data has

TALKS = [{"messages": [*row["prompt"], {"role": "assistant", "content": row["answer"]}]} for row in CHAT]


def check_first_message(folder: Path, ended: Ended) -> None:
    """A function got the prompt's messages in every call, and its scores count."""
    gives(score_mean=1.0)(folder, ended)
    assert all(one["prompt"]["content"].startswith("two plus") for one in seen(folder)), seen(folder)


COLUMNS = [
    case(
        "a column named response",
        "def score(prompt, response, **columns):\n    return 1.0",
        rows=[{**row, "response": "x"} for row in ROWS],
        says=("'response'", "rename"),
    ),
    case(
        "a column named completions",
        SOME + "[1.0] * len(prompts)",
        rows=[{**row, "completions": "x"} for row in ROWS],
        says=("'completions'", "rename"),
    ),
    *(
        case(
            f"messages of the data as a parameter, {what}",
            code + "    log(prompt=list(messages)[0])\n    return 1.0",
            rows=rows,
            check=check_first_message,
        )
        for what, code, rows in (
            ("one response", "def score(prompt, response, messages):\n", TALKS),
            ("by position", "def score(text, answer_of_it, messages):\n", TALKS),
            (
                "beside their prompt",
                "def score(response, messages, **columns):\n",
                [{**row, "prompt": row["messages"][0]["content"]} for row in TALKS],
            ),
        )
    ),
    case(
        "messages of the data as a parameter of a batch",
        "def score(prompts, completions, messages, **columns):\n    log(prompt=messages[0][0])\n    return [1.0] * len(prompts)",
        rows=TALKS,
        check=check_first_message,
    ),
    case(
        "prompts in a column named prompts",
        "def score(prompts, completions, **columns):\n    assert 'two plus' in prompts[0]\n    return [1.0] * len(prompts)",
        "--field.prompt",
        "prompts",
        rows=[{"prompts": row["prompt"]} for row in ROWS],
        check=gives(score_mean=1.0),
    ),
    case(
        "a question's column under the function's own name for it",
        "def score(question, reply, **columns):\n    assert 'two plus' in question\n    return 1.0",
        "--field.prompt",
        "question",
        rows=[{"question": row["prompt"]} for row in ROWS],
        check=gives(score_mean=1.0),
    ),
    case(
        "messages of something else",
        "def score(prompt, response, messages):\n    return 1.0",
        rows=[{**row, "messages": [{"role": "user", "content": "is"}]} for row in ROWS],
        says=("'messages'", "rename"),
    ),
    case(
        "a column that some rows lack",
        "def score(prompt, response, hint):\n    return 1.0 if hint is None else 2.0",
        rows=[{**ROWS[0], "hint": "x"}, ROWS[1]],
        check=lambda folder, ended: None,
    ),
]

# what they do

BEHAVIOUR = [
    case("prints", "def score(prompt, response):\n    print('x' * 100_000)\n    return 1.0", check=gives(score_mean=1.0)),
    case(
        "changes what it is given",
        "def score(prompts, completions, answer, **columns):\n    answer.clear()\n    prompts.pop()\n"
        "    return [1.0] * len(completions)",
        check=gives(score_mean=1.0),
    ),
    case(
        "starts threads and processes",
        "import multiprocessing, threading\ndef work(x):\n    return x * 2\n"
        "def score(prompts, completions, **columns):\n"
        "    threading.Thread(target=work, args=(1,)).start()\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        return pool.map(work, [1.0] * len(prompts))",
        check=gives(score_mean=2.0),
    ),
    case(
        "raises on one row",
        "def score(prompt, response, answer):\n    if answer == 'three':\n        raise ValueError('not this one')\n    return 1.0",
        "--max-unscored", "0.9",
        check=gives(score_mean=1.0),
    ),
    case(
        "raises on every response",
        "def score(prompt, response):\n    raise ValueError('as ever')",
        expected="ended",
        says=("mine.py:score: ValueError: as ever",),
    ),
    case(
        "raises in a batch",
        "def score(prompts, completions, **columns):\n    if len(prompts) > 2:\n        raise ValueError('too many')\n"
        "    return [1.0] * len(prompts)",
        expected="ended",
        says=("8 of 8 responses have no score", "mine.py:score: ValueError: too many"),
    ),
    case(
        "gives NaN",
        ONE + "float('nan')",
        expected="ended",
        says=("mine.py:score: returned nan",),
    ),
    case("scores nothing", ONE + "None", expected="ended", says=("every reward function returned None",)),
    case("calls sys.exit", "import sys\n" + ONE + "sys.exit(3)", expected="ended", says=("mine.py:score: SystemExit: 3",)),
    case("ends its process", "import os\n" + ONE + "os._exit(3)", expected="ended", says=("mine.py:score", "exited with status 3")),
    case(
        "takes too long",
        "import time\n" + ONE + "time.sleep(100)",
        "--reward-timeout-sec", "0.3", "--max-unscored", "0.1",
        expected="ended",
        says=("mine.py:score: no answer within 0.3 s", "--reward-timeout-sec"),
    ),
]  # fmt: skip


def concurrency(folder: Path) -> Ended:
    """Six calls at once, of which the first take longest: scores are in the order of the responses."""
    code = "import time\ndef score(prompt, response):\n    time.sleep(0.02 * (len(response) % 3))\n    return float(len(response))"
    ppo(folder, code, "--run-dir", "one")
    return ppo(folder, code, "--reward-concurrency", "6")


def same_numbers(folder: Path, ended: Ended) -> None:
    one, other = (json.loads((folder / run / "summary.json").read_text()) for run in ("one", "run"))
    assert one["parameters_sha256"] == other["parameters_sha256"]


def from_another_folder(folder: Path) -> Ended:
    """A relative path on the command line, resumed from elsewhere."""
    ppo(folder, ONE + "1.0", "--model", str(folder / "model"), "--prompts", str(folder / "prompts.jsonl"))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return distrl(elsewhere, "rlhf", "ppo", "--resume", "../run", "--iterations", "2")


def moved(change: Callable[[Path], Any], *functions: str, code: str = ONE + "1.0") -> Callable[[Path], Ended]:
    """A run whose function's file moves to new.py, is changed, and is named by `functions` on resume."""

    def run(folder: Path) -> Ended:
        ppo(folder, code)
        (folder / "mine.py").rename(folder / "new.py")
        change(folder / "new.py")
        given = ("--reward-function", ",".join(functions)) if functions else ()
        return distrl(folder, "rlhf", "ppo", "--resume", "run", "--iterations", "2", *given)

    return run


def check_moved(says: bool) -> Callable[[Path, Ended], None]:
    """The run went on with the new place, which it keeps, and told of another content alone."""

    def check(folder: Path, ended: Ended) -> None:
        config = json.loads((folder / "run" / "config.json").read_text())
        assert config["reward_function"] == [str(folder / "new.py") + ":score"], config
        told = " ".join(ended.err.split())
        assert ("has changed since the checkpoint" in told) == says, told
        assert "changed on resume: reward_function" in told and metrics(folder)["iteration"] == 2

    return check


def python_object(folder: Path) -> Ended:
    """A closure from Python; a process that does not have it cannot go on, and says how it could."""
    import distrl as package
    from distrl.rlhf import given_functions

    model(folder)
    jsonl(folder / "prompts.jsonl", ROWS)
    texts: list[str] = []
    run = package.rlhf_ppo(
        folder / "model", folder / "prompts.jsonl", num_prompts=8, iterations=1, max_response=6, tensorboard=False,
        run_dir=str(folder / "run"), reward_function=lambda prompt, response: float(len(texts) or texts.append(response) or 1),
    )  # fmt: skip
    assert run.exit_status == 0 and len(texts) == 1
    given_functions._GIVEN.clear()  # as another process has it
    return distrl(folder, "rlhf", "ppo", "--resume", "run", "--iterations", "2")


def as_json(folder: Path) -> Ended:
    """`eval --json` of a function that prints: standard output is one object, with each reward's mean."""
    ppo(folder, "def score(prompt, response):\n    print('noise')\n    return {'score': 1.0, 'words': 2}")
    return distrl(folder, "rlhf", "eval", "run", "--json")


def check_json(folder: Path, ended: Ended) -> None:
    told = json.loads(ended.out)
    assert (told["score/score"], told["score/score/words"], told["score_mean"]) == (1.0, 2.0, 1.0)


def sampled(folder: Path) -> Ended:
    """Samples change no bit, and after a resume the file is that of one run."""
    code = "def score(prompt, response):\n    return float(len(response))"
    flags = ("--sample-every", "2", "--samples", "2", "--checkpoint-every", "1")
    ppo(folder, code, "--iterations", "4", "--run-dir", "plain")
    ppo(folder, code, "--iterations", "4", "--run-dir", "whole", *flags)
    ppo(folder, code, "--iterations", "3", *flags)
    return distrl(folder, "rlhf", "ppo", "--resume", "run", "--iterations", "4")


def check_samples(folder: Path, ended: Ended) -> None:
    plain, whole = (json.loads((folder / run / "summary.json").read_text()) for run in ("plain", "whole"))
    assert plain["parameters_sha256"] == whole["parameters_sha256"]
    rows = [json.loads(line) for line in (folder / "whole" / "samples.jsonl").read_text().splitlines()]
    assert [(row["iteration"], row["number"]) for row in rows] == [(i, n) for i in (1, 2, 4) for n in (0, 1)]
    assert all(row["score"] == len(row["response"]) == row["scores"]["score"] for row in rows)
    page = (folder / "whole" / "report.html").read_text()
    assert "<h2>Samples</h2>" in page and "after iteration 4" in page
    resumed = [json.loads(line) for line in (folder / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in resumed] == [1, 1, 2, 2, 3, 3, 4, 4]


def picture(folder: Path) -> Ended:
    """`show tokens` of a chat in any script."""
    asked = ["cost $5 and $6", "你好 😀", "$x^2_{\\frac"]
    rows = [{"prompt": [{"role": "user", "content": one}], "answer": "x"} for one in asked]
    ppo(folder, ONE + "1.0", rows=rows)
    return distrl(folder, "show", "tokens", "run", "--out", "tokens.png")


def check_picture(folder: Path, ended: Ended) -> None:
    assert (folder / "tokens.png").stat().st_size > 20_000
    told = json.loads((folder / "tokens.json").read_text())
    assert all(one["question"] in ("cost $5 and $6", "你好 😀", "$x^2_{\\frac") for one in told["episodes"])


SITUATIONS: list[Situation] = [
    *(case(f"returns {name}", code, check=gives(score_mean=value)) for name, (code, value) in RETURNS.items()),
    *(case(name, code, says=(told,)) for name, (code, told) in WRONG.items()),
    *FORMS,
    *COLUMNS,
    *BEHAVIOUR,
    Situation("rewards", "several calls at once", concurrency, check=same_numbers),
    Situation(
        "rewards", "an attribute of an object that raises",
        lambda folder: ppo(
            folder, "class Judge:\n    @property\n    def score(self): raise RuntimeError('not ready')\njudge = Judge()",
            name="judge.score",
        ),
        "refused", says=("judge.score", "RuntimeError: not ready"),
    ),
    *(
        Situation(
            "rewards", f"a file without a function, {what}",
            lambda folder, given=given: ppo(
                folder, "def score(prompt, response):\n    return 1.0\nclass Judge:\n    pass\n", "--reward-function", given
            ),
            "refused", says=("must be file.py:function", *says),
        )
        for what, given, says in (
            ("as it is", "mine.py", ("give mine.py:log (it has log, score, Judge)",)),
            ("with a colon", "mine.py:", ("mine.py:log (it has log, score, Judge)",)),
            ("that is not there", "other.py", ("no file other.py",)),
        )
    ),
    Situation(
        "rewards", "a file without a function, eval",
        lambda folder: (
            ppo(folder, ONE + "1.0"),
            distrl(folder, "rlhf", "eval", "run", "--reward-function", "mine.py"),
        )[1],
        "refused", says=("give mine.py:log (it has log, score)",),
    ),
    Situation("rewards", "a file that has moved, resumed", moved(str, "new.py:score"), check=check_moved(False)),
    Situation(
        "rewards", "a file that has moved and changed, resumed",
        moved(lambda path: path.write_text(ONE + "2.0"), "new.py:score"), check=check_moved(True),
    ),
    Situation("rewards", "a file that has moved, not given", moved(str), "refused", says=("mine.py", "FILE.py:score")),
    Situation(
        "rewards", "another function on resume", moved(str, "new.py:log"), "refused", says=("of the same names",)
    ),
    Situation(
        "rewards", "one function more on resume", moved(str, "new.py:score", "new.py:log"), "refused", says=("as many",)
    ),
    Situation("rewards", "a relative path, resumed from another folder", from_another_folder),
    Situation("rewards", "a closure from Python, resumed by another process", python_object, "refused", says=("Python object", "distrl.resume")),
    Situation("rewards", "eval --json of a function that prints", as_json, check=check_json),
    Situation("rewards", "samples of a run", sampled, check=check_samples),
    Situation("rewards", "a picture of any text", picture, check=check_picture),
]  # fmt: skip
