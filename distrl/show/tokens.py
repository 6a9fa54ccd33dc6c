"""Responses of a language model, token by token, as an RL agent's episodes.

    state    prompt and the tokens so far        policy   log pi(token | state)
    action   the next token                      reward   score at the last action - beta * (log pi - log pi_ref)
    episode  one response                        V, A     of the critic, and as the update weighs the token

All of it comes from the run's own parts: its actor and critic as they were saved, its reference, reward and prompts,
and the code that trains. Nothing is computed for the picture alone.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from distrl.errors import BadInput
from distrl.rlhf.data import Prompt
from distrl.rlhf.experience import Opinions, experience
from distrl.rlhf.opinions import join
from distrl.rlhf.responses import Responses
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.rlhf.roles import RoleWorker
from distrl.rlhf.written import ends_of, response_text
from distrl.show import counting
from distrl.show.style import (
    AMBER,
    BLUE,
    GREEN,
    INK,
    RED,
    SOFT,
    legend_above,
    page,
    plain_text,
    write_numbers,
)

SHOWN = 3  # responses: the lowest, the middle and the highest score
MOST_PROMPT = 64  # characters of a prompt, its end
MOST_TOKENS = 40  # of a response that is drawn; the numbers have all


@dataclass(frozen=True)
class Episode:
    """One response; lists are by decision."""

    prompt: str
    question: str | None  # of a chat: the last message of the user
    response: str
    score: float
    ended: bool
    token: list[str]
    log_prob: list[float]
    reference_log_prob: list[float]
    kl: list[float]  # log pi - log pi_ref
    reward: list[float]
    value: list[float] | None
    advantage: list[float]


def show(
    run_dir: Path | None, out: Path, seed: int, trust_run: bool = False, checkpoint: str = "latest"
) -> None:
    """Writes the figure and its numbers for fresh responses of a checkpoint of the run's, or of a small run's."""
    if run_dir is None:
        with counting.run_directory(seed) as small:
            return show(small, out, seed, checkpoint=checkpoint)
    found, about = look(run_dir, seed, trust_run, checkpoint)
    if not found:
        raise BadInput(
            f"{run_dir}: none of the responses has a score, so there is nothing that is learned from"
        )
    order = np.argsort([one.score for one in found], kind="stable")
    places = sorted({0, len(order) // 2, len(order) - 1})[:SHOWN]
    shown = [found[order[place]] for place in places]
    _draw(shown, out, about)
    numbers = write_numbers(out, "tokens", {**about, "episodes": [asdict(one) for one in shown]})
    for one in shown:
        told = f"score {one.score:+.3f}, KL {sum(one.kl):+.3f} nats, rewards sum to {sum(one.reward):+.3f}"
        print(f"{told}\n  {one.question or one.prompt} | {one.response}", file=sys.stderr)
    print(f"figure   {out}\nnumbers  {numbers}", file=sys.stderr)


def look(
    run_dir: Path, seed: int, trust_run: bool, checkpoint: str = "latest"
) -> tuple[list[Episode], dict[str, Any]]:
    """Fresh responses of a checkpoint to a batch of the run's prompts, and what they are of."""
    from distrl.evaluation import find_checkpoint
    from distrl.runtime.placement import hosts_for
    from distrl.stages.look import run_config
    from distrl.stages.materials import read_ppo_materials
    from distrl.stages.ppo import role_spec

    config = run_config(run_dir, trust_run)
    if config is None:
        raise BadInput(f"{run_dir} is no run of `distrl rlhf ppo`: show tokens wants one")
    trees = find_checkpoint(run_dir, checkpoint).trees
    in_process = config.model_copy(update={"placement": "in-process", "roles": None, "seed": seed})
    materials = read_ppo_materials(in_process)
    hosts = hosts_for("in-process", config.recipe, config.value_head, 0.0)
    spec = role_spec(in_process, materials, hosts, "cpu")
    beta = float(trees["run"]["beta"]) or config.recipe.beta
    roles = tuple(role for role in ROLES if role != "critic" or config.recipe.trains_value)
    states: dict[str, Any] = {role: trees[role] for role in ("actor", "critic") if role in trees}
    worker = RoleWorker(spec, roles, materials.models, states)
    episodes = _episodes(worker, spec, materials, beta, int(trees["run"]["iteration"]))
    about = {
        "run": run_dir.resolve().name, "algo": config.algo, "iteration": int(trees["run"]["iteration"]),
        "beta": beta, "kl_in": config.recipe.kl_in, "seed": seed,
        "whitened": config.recipe.normalizes_batch,
    }  # fmt: skip
    return episodes, about


def _episodes(
    worker: RoleWorker, spec: RoleSpec, materials: Any, beta: float, iteration: int
) -> list[Episode]:
    """Written, judged and credited as in training; a response without a score is in no update, and left out."""
    recipe = spec.recipe
    written = worker.write(iteration)
    responses = Responses.concatenate(written)
    n = responses.num_responses
    value = join([worker.values(written)], n) if recipe.trains_value else None
    said = Opinions(
        None, join([worker.reference_log_probs(written)], n), join([worker.scores(written)], n), value
    )
    assert worker.learner is not None
    task = worker.learner.begin([experience(responses, said, recipe, beta)], 0.0)
    trajectory, advantage = task.trajectory, task.advantage
    tokenizer = materials.tokenizer
    episodes, ends = [], ends_of(tokenizer, materials.end_tokens)
    for i in np.flatnonzero(np.isfinite(said.score)):
        rows = slice(0, int(responses.num_actions[i]))

        def column(table: Any, rows: slice = rows, i: int = int(i)) -> list[float]:
            return [float(number) for number in table[rows, i]]

        actions = responses.action[rows, i].tolist()
        prompt = materials.prompts.rows[int(responses.prompt[i])]
        log_prob, reference = column(responses.log_prob), column(said.reference)
        episodes.append(
            Episode(
                prompt=prompt.text,
                question=_question(prompt),
                response=response_text(tokenizer, prompt.tokens, actions, ends),
                score=float(said.score[i]),
                ended=bool(responses.ended[i]),
                token=[_written(tokenizer, action) for action in actions],
                log_prob=log_prob,
                reference_log_prob=reference,
                kl=[mine - its for mine, its in zip(log_prob, reference, strict=True)],
                reward=column(trajectory.reward),
                value=None if value is None else column(value),
                advantage=column(advantage),
            )
        )
    return episodes


def _question(prompt: Prompt) -> str | None:
    """The last message of the user, where the prompt is a chat."""
    asked = [one for one in prompt.messages or () if one.get("role") == "user"]
    if not asked:
        return None
    content = asked[-1].get("content")
    if isinstance(content, list):  # parts, of which text is shown
        return " ".join(str(one.get("text", "")) for one in content if isinstance(one, dict))
    return str(content)


def _written(tokenizer: Any, token: int) -> str:
    """A token in readable form: spaces as they are within, seen where they are all. Any characters."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    seen = text.strip() or text.replace(" ", "␣")
    return "".join(one if one.isprintable() else "·" for one in seen) or f"<{token}>"


def _draw(shown: list[Episode], out: Path, about: dict[str, Any]) -> None:
    subtitle = f"{about['algo']}, run {about['run']} after {about['iteration']:,} iterations, beta {about['beta']:.3g}"
    caption = _caption(about["kl_in"], about["whitened"])
    with page(
        out, "A language model as an RL agent", plain_text(subtitle), caption, (13.0, 5.4 * len(shown))
    ) as figure:
        axes = figure.subplots(3 * len(shown), 1, squeeze=False)[:, 0]
        for i, episode in enumerate(shown):
            _draw_episode(axes[3 * i : 3 * i + 3], episode)


def _caption(kl_in: str, is_whitened: bool) -> str:
    if kl_in == "reward":
        middle = "the reward, minus beta times the difference of the two in every column, and the score in the last one"
    else:
        middle = "the reward, the score in the last column alone: beta times the KL to the reference is a term of the loss"
    normal = ", brought to mean 0 and deviation 1 over the batch" if is_whitened else ""
    return (
        "Each column is a decision: the state is the prompt and all tokens to the left of it, the action is the token "
        f"below. Top: how likely the actor and the frozen reference find it. Middle: {middle}. Bottom: what the critic "
        f"expects, where there is one, and the advantage that weighs the token's log-prob in the update{normal}."
    )


def _draw_episode(axes: Any, episode: Episode) -> None:
    count = min(len(episode.token), MOST_TOKENS)
    at = np.arange(count)
    cut = (
        ""
        if len(episode.token) <= MOST_TOKENS
        else f" (the first {MOST_TOKENS} of {len(episode.token)} tokens)"
    )
    asked = episode.prompt if episode.question is None else episode.question
    prompt = plain_text(asked if len(asked) <= MOST_PROMPT else f"…{asked[1 - MOST_PROMPT :]}")
    likely, reward, value = axes
    likely.set_title(
        f"“{prompt}”   score {episode.score:+.2f}{'' if episode.ended else ', cut by the limit'}{cut}"
    )
    likely.plot(at, episode.log_prob[:count], "o-", color=BLUE, label="log π", markersize=4)
    likely.plot(at, episode.reference_log_prob[:count], "o--", color=SOFT, label="log π_ref", markersize=4)
    likely.fill_between(
        at,
        episode.log_prob[:count],
        episode.reference_log_prob[:count],
        color=BLUE,
        alpha=0.15,
        label="KL, its k1",
    )
    likely.set_ylabel("log-prob")
    reward.bar(
        at,
        episode.reward[:count],
        color=[GREEN if one >= 0 else RED for one in episode.reward[:count]],
        width=0.6,
    )
    reward.set_ylabel("reward")
    told = f"sum {sum(episode.reward):+.2f}; score {episode.score:+.2f}, KL {sum(episode.kl):+.2f} nats"
    reward.annotate(told, (1.0, 1.02), xycoords="axes fraction", ha="right", va="bottom", size=9, color=SOFT)
    value.bar(at, episode.advantage[:count], color=AMBER, width=0.6, label="advantage")
    if episode.value is not None:
        value.plot(at, episode.value[:count], "o-", color=BLUE, label="V", markersize=4)
    value.set_ylabel("V, A")
    for axis in axes:
        _mark(axis, at, count)
    for axis in (likely, value):
        legend_above(axis)
    value.set_xticks(
        at,
        [plain_text(one, "<U+{:04X}>") for one in episode.token[:count]],
        rotation=55,
        ha="right",
        color=INK,
        rotation_mode="anchor",
    )


def _mark(axis: Axes, at: Any, count: int) -> None:
    axis.axhline(0, color=SOFT, linewidth=0.8)
    axis.set_xlim(-0.7, count - 0.3)
    axis.set_xticks(at, [""] * count)
