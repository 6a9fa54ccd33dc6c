"""Situations: tokenizers as people bring them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.wild.kit import CHATML, byte_level, config_of, jsonl, save, words
from tests.wild.situation import Ended, Situation, distrl
from tests.wild.tokenizer_kit import KINDS, chat, metaspace, real

SMALL = ("--no-tensorboard", "--batch-size", "2", "--epochs", "1")
FEW = (
    "--iterations", "1", "--num-prompts", "2", "--minibatches", "1", "--epochs", "1", "--max-response", "4",
    "--no-tensorboard", "--checkpoint-every", "1",
)  # fmt: skip
TEXTS = [
    {"prompt": "the cat", "completion": " sat on the mat"},
    {"prompt": "what is two plus two ?", "completion": " four"},
]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": "hello there"},
            {"role": "assistant", "content": "how are you ?"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": "sat"},
            {"role": "user", "content": "the dog"},
            {"role": "assistant", "content": "ran"},
        ]
    },
]
ASKED = [
    {"prompt": [{"role": "user", "content": "hello"}]},
    {"prompt": [{"role": "user", "content": "the cat"}]},
]
THINKING = (
    CHATML.removesuffix("{% endif %}")
    + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sft(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], *more: str, family: str = "llama") -> Ended:
    """`distrl rlhf sft` of a tiny model with that tokenizer."""
    save(folder / "model", tokenizer, family)
    data = jsonl(folder / "data.jsonl", rows)
    return distrl(
        folder, "rlhf", "sft", "--model", "model", "--data", data, "--run-dir", "run", *SMALL, *more
    )


def ppo(folder: Path, rows: list[dict[str, Any]], *more: str) -> Ended:
    """`distrl rlhf ppo` of the folder's model."""
    prompts = jsonl(folder / "prompts.jsonl", rows)
    return distrl(
        folder, "rlhf", "ppo", "--model", "model", "--prompts", prompts, "--run-dir", "ppo", *FEW, *more
    )


def classifier(folder: Path, tokenizer: Any, labels: int = 1) -> None:
    """A tiny sequence classifier and its tokenizer: a reward model where it has one label."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model: Any = AutoModelForSequenceClassification.from_config(
            config_of("qwen3", tokenizer, num_labels=labels)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def scored_by(folder: Path, reward: Any, actor: Any, rows: list[dict[str, Any]], labels: int = 1) -> Ended:
    """A run of PPO by a reward model with that tokenizer."""
    save(folder / "model", actor, std=0.2)
    classifier(folder / "reward", reward, labels)
    return ppo(folder, rows, "--reward", "reward")


def scores_are_finite(folder: Path, ended: Ended) -> None:
    """The one iteration has a score for every response."""
    (row,) = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert row["unscored"] == 0 and row["score_std"] >= 0, row


def with_pad(tokenizer: Any) -> Any:
    """The tokenizer and a pad token."""
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def with_image(folder: Path, rows: list[dict[str, Any]], *more: str) -> Ended:
    """A tokenizer with an added token beyond the model's rows, as Gemma 3's."""
    tokenizer = byte_level()
    rows_of_model = max(tokenizer.get_vocab().values()) + 1
    tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
    save(folder / "model", tokenizer, vocab_size=rows_of_model)
    data = jsonl(folder / "data.jsonl", rows)
    return distrl(
        folder, "rlhf", "sft", "--model", "model", "--data", data, "--run-dir", "run", *SMALL, *more
    )


def named(command: tuple[str, ...], folder: Path) -> Ended:
    """A command that is given a model's name on a hub."""
    save(folder / "model", byte_level())
    jsonl(folder / "data.jsonl", TEXTS)
    jsonl(folder / "prompts.jsonl", [{"prompt": "the cat"}])
    return distrl(folder, *command)


NAME = "Qwen/Qwen3-0.6B"
NAMED: dict[str, tuple[str, ...]] = {
    "sft --model": ("rlhf", "sft", "--model", NAME, "--data", "data.jsonl"),
    "reward --model": ("rlhf", "reward", "--model", NAME, "--data", "data.jsonl"),
    "ppo --model": ("rlhf", "ppo", "--model", NAME, "--prompts", "prompts.jsonl", "--reward", "model"),
    "ppo --reward": ("rlhf", "ppo", "--model", "model", "--prompts", "prompts.jsonl", "--reward", NAME),
    "ppo --reference": (
        "rlhf", "ppo", "--model", "model", "--prompts", "prompts.jsonl", "--reward", "model", "--reference", NAME,
    ),
    "ppo --critic": (
        "rlhf", "ppo", "--model", "model", "--prompts", "prompts.jsonl", "--reward", "model", "--critic", NAME,
    ),
    "eval": ("rlhf", "eval", NAME, "--prompts", "prompts.jsonl"),
    "eval --reference": ("rlhf", "eval", "model", "--prompts", "prompts.jsonl", "--reference", NAME),
    "eval --reward": ("rlhf", "eval", "model", "--prompts", "prompts.jsonl", "--reward", NAME),
}  # fmt: skip


def asked_quietly(folder: Path) -> Ended:
    """`distrl rlhf eval` with an argument of the chat template."""
    save(folder / "model", chat(THINKING))
    prompts = jsonl(folder / "prompts.jsonl", ASKED)
    return distrl(
        folder, "rlhf", "eval", "model", "--prompts", prompts, "--max-response", "4", "--out", "out.jsonl",
        "--chat-kwargs", '{"enable_thinking": false}',
    )  # fmt: skip


def prompts_are_quiet(folder: Path, ended: Ended) -> None:
    """The argument reached the template."""
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"].endswith("<think></think>") for row in rows] == [True, True], rows


PUBLISHED = {
    "temperature": 0.6,
    "top_p": 0.9,
    "do_sample": False,
}  # what transformers warns of, and would not save


def chat_model(folder: Path) -> None:
    """A base model whose generation_config.json has fields of its own, and only the tokenizer's end of text."""
    tokenizer = chat(CHATML)
    save(folder / "model", tokenizer)
    path = folder / "model" / "generation_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | PUBLISHED | {"eos_token_id": tokenizer.eos_token_id})
    )


def taught_to_chat(folder: Path) -> Ended:
    """SFT of a base model on conversations."""
    chat_model(folder)
    data = jsonl(folder / "data.jsonl", CHATS)
    return distrl(folder, "rlhf", "sft", "--model", "model", "--data", data, "--run-dir", "run", *SMALL)


def trained_to_chat(folder: Path) -> Ended:
    """PPO of a base model on conversations."""
    chat_model(folder)
    (folder / "short.py").write_text("def score(prompt, response):\n    return -len(response)\n")
    return ppo(folder, ASKED, "--reward-function", "short.py:score")


def stops_at_the_end_of_a_turn(run: str, folder: Path, ended: Ended) -> None:
    """transformers stops at the end of text and of a turn; other fields are the base model's."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / run / "model")
    generation: Any = GenerationConfig.from_pretrained(folder / run / "model")
    assert generation.eos_token_id == [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]
    told = json.loads((folder / run / "model" / "generation_config.json").read_text())
    base = json.loads((folder / "model" / "generation_config.json").read_text())
    assert {**told, "eos_token_id": None} == {**base, "eos_token_id": None}, told


TOOLS = [{"type": "function", "function": {"name": "clock", "description": "the time", "parameters": {}}}]
WITH_TOOLS = "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}" + CHATML


def with_tools(from_python: bool, folder: Path) -> Ended:
    """A run of SFT and one of PPO with tools, a list of Python's or a file's relative path; resumed from another folder."""
    import distrl as package

    save(folder / "model", chat(WITH_TOOLS))
    (folder / "tools.json").write_text(json.dumps(TOOLS))
    (folder / "short.py").write_text("def score(prompt, response):\n    return float('clock' in prompt)\n")
    jsonl(folder / "data.jsonl", CHATS)
    jsonl(folder / "prompts.jsonl", ASKED)
    tools: Any = TOOLS if from_python else "tools.json"
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()):
        package.rlhf_sft(
            "model", "data.jsonl", tools=tools, run_dir="run", epochs=1, batch_size=2, tensorboard=False
        )
        package.rlhf_ppo(
            "model", "prompts.jsonl", tools=tools, run_dir="ppo", iterations=1, num_prompts=2, minibatches=1, max_response=4,
            reward_function="short.py:score", tensorboard=False,
        )  # fmt: skip
        told = package.rlhf_evaluate(
            "model", prompts="prompts.jsonl", tools=tools, reward_function="short.py:score"
        )
        assert told["score_mean"] == 1.0
    (folder / "elsewhere").mkdir()
    (folder / "run" / "summary.json").unlink()
    assert distrl(folder / "elsewhere", "rlhf", "sft", "--resume", "../run").status == 0
    return distrl(folder / "elsewhere", "rlhf", "ppo", "--resume", "../ppo", "--iterations", "2")


def tools_are_kept(from_python: bool, folder: Path, ended: Ended) -> None:
    """The file that either run names has the tools, and prompts have them."""
    for run in ("run", "ppo"):
        path = Path(json.loads((folder / run / "config.json").read_text())["tools"])
        assert path == (folder / run if from_python else folder) / "tools.json"
        assert json.loads(path.read_text()) == TOOLS
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["score_mean"] for row in rows] == [1.0, 1.0]


def real_run(name: str, folder: Path) -> Ended:
    """SFT on conversations with a real tokenizer, a model of a narrow trunk behind it."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(real(name))
    save(
        folder / "model",
        tokenizer,
        hidden_size=8,
        intermediate_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    rows = TEXTS if name == "llama2" else CHATS
    data = jsonl(folder / "data.jsonl", rows)
    return distrl(folder, "rlhf", "sft", "--model", "model", "--data", data, "--run-dir", "run", *SMALL)


def _on(make: Callable[[], Any], rows: list[dict[str, Any]], *more: str) -> Callable[[Path], Ended]:
    return lambda folder: sft(folder, make(), rows, *more)


def _situation(name: str, run: Callable[[Path], Ended], *says: str, **more: Any) -> Situation:
    return Situation("tokenizers", name, run, says=says, **more)


SITUATIONS: list[Situation] = [
    *(
        _situation(f"sft with {kind}", _on(make, TEXTS), slow=kind not in ("metaspace first", "word piece"))
        for kind, make in KINDS.items()
    ),
    _situation("sft on conversations", _on(lambda: chat(CHATML), CHATS)),
    _situation("sft on the last turns", _on(lambda: chat(CHATML), CHATS, "--turns", "last")),
    _situation(
        "sft with an argument that the template does not read",
        _on(lambda: chat(CHATML), CHATS, "--chat-kwargs.enable_thinking", "false"),
        "--chat-kwargs.enable_thinking",
        expected="refused",
    ),
    _situation("eval with an argument of the template", asked_quietly, check=prompts_are_quiet),
    _situation(
        "a saved model's ends, after sft", taught_to_chat, check=partial(stops_at_the_end_of_a_turn, "run")
    ),
    _situation(
        "a saved model's ends, after ppo", trained_to_chat, check=partial(stops_at_the_end_of_a_turn, "ppo")
    ),
    *(
        _situation(
            f"tools {what}, resumed from another folder", partial(with_tools, listed), check=partial(tools_are_kept, listed)
        )
        for what, listed in (("as a list from Python", True), ("in a file", False))
    ),
    _situation("sft on conversations without a template", _on(byte_level, CHATS), "chat template", expected="refused"),
    _situation(
        "a system message that the template refuses",
        _on(lambda: chat(NO_SYSTEM), [{"messages": [{"role": "system", "content": "x"}, *CHATS[0]["messages"]]}]),
        "data.jsonl:1", "System role not supported",
        expected="refused",
    ),
    _situation("a token beyond the model's rows that no text has", lambda folder: with_image(folder, TEXTS)),
    _situation(
        "a token beyond the model's rows that a text has",
        lambda folder: with_image(folder, [{"prompt": "a <image_soft_token>", "completion": " b"}]),
        "<image_soft_token>",
        expected="refused",
    ),
    _situation(
        "a reward model whose tokenizer has a pad too",
        lambda folder: scored_by(folder, with_pad(byte_level()), byte_level(), [{"prompt": "the cat"}] * 2),
        check=scores_are_finite,
    ),
    _situation(
        "a reward model of another family, texts",
        lambda folder: scored_by(folder, metaspace(), byte_level(), [{"prompt": "the cat"}] * 2),
        check=scores_are_finite,
    ),
    _situation(
        "a reward model of another family, messages",
        lambda folder: scored_by(folder, metaspace(template=CHATML), chat(CHATML), ASKED),
        check=scores_are_finite,
    ),
    _situation(
        "a reward model of another family without a template, messages",
        lambda folder: scored_by(folder, metaspace(), chat(CHATML), ASKED),
        "--reward", "chat template",
        expected="refused",
    ),
    _situation(
        "a reward model with two labels",
        lambda folder: scored_by(folder, byte_level(), byte_level(), [{"prompt": "the cat"}] * 2, labels=2),
        "num_labels=2",
        expected="refused",
    ),
    _situation(
        "words without a space between prompt and answer",
        _on(lambda: words(["the", "cat", "sat"]), [{"prompt": "the cat", "completion": "sat"}]),
    ),
    *(
        _situation(
            f"text that goes through no chat template, {what}",
            _on(lambda: chat(THINKING), TEXTS, *more),
            more[0].partition(".")[0],
            "--chat",
            expected="refused",
        )
        for what, more in {
            "with a system prompt": ("--system-prompt", "Be brief."),
            "with an argument": ("--chat-kwargs.enable_thinking", "false"),
        }.items()
    ),
    _situation(
        "text as a user's message, with a system prompt",
        _on(lambda: chat(THINKING), TEXTS, "--chat", "--system-prompt", "Be brief."),
    ),
    *(
        _situation(f"a model's name: {what}", partial(named, command), "huggingface-cli download", expected="refused")
        for what, command in NAMED.items()
    ),
    *(
        _situation(f"sft with the tokenizer of {name}", partial(real_run, name), slow=True)
        for name in ("llama2", "llama3", "qwen3", "gemma3")
        if real(name) is not None
    ),
]  # fmt: skip
