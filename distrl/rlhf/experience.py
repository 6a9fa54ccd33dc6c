"""From responses and what four models say of them to a `Trajectory`: the same as CartPole's, and from here on nothing differs.

    state    prompt and the tokens so far            reward   score at the last action - beta * KL, token by token
    action   the next token                          end      the last action: scored, so nothing comes after it

The length limit is part of the task: a response that was scored is terminal, with an end of text or without. To
bootstrap beyond it would count the score twice. `--cut-off bootstrap` therefore gives a cut response no score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distrl.maths.kl import kl_per_response, kl_shaped_reward
from distrl.rlhf.recipes import ResponseRecipe
from distrl.rlhf.responses import Floats, Responses
from distrl.trajectory import Trajectory


@dataclass(frozen=True)
class Opinions:
    """What the roles say of responses [T, N].

    log_prob    [T, N]      under the actor as it stands; None: the log-probs of sampling are taken for them
    reference   [T, N]      log-prob under the reference
    score       [N]         of each text; NaN where it could not be scored: that response is left out
    value       [T + 1, N]  V at each decision, and in the row after a response's last one V of what follows; None: no critic
    """

    log_prob: Floats | None
    reference: Floats
    score: Floats
    value: Floats | None


def experience(responses: Responses, said: Opinions, recipe: ResponseRecipe, beta: float) -> Trajectory:
    """The trajectory of a batch of responses; a response whose score is NaN has no valid row.

    Its `extra` columns are "reference_log_prob" and "behaviour_log_prob" (when it was sampled); `log_prob` is the
    denominator of the ratio.
    """
    scored_N = np.isfinite(said.score)
    valid, last = responses.valid & scored_N, responses.last & scored_N
    score, terminal_N = final_scores(responses, said.score, recipe)
    log_prob = responses.log_prob if said.log_prob is None else said.log_prob
    shaped = beta if recipe.kl_in == "reward" else 0.0
    reward = kl_shaped_reward(
        np.nan_to_num(score), log_prob - said.reference, valid, last & ~np.isnan(score), shaped
    )
    value = (
        np.zeros((len(log_prob) + 1, responses.num_responses), np.float32)
        if said.value is None
        else said.value
    )
    starts = np.zeros(valid.shape, bool)
    starts[0] = True
    return Trajectory(
        observation=responses.position,
        action=responses.action,
        reward=reward,
        terminated=last & terminal_N,
        # in padding after the end too: nothing of it may flow back, and the sums stop there
        done=last | ~valid,
        valid=valid,
        episode_start=starts,
        value=np.ascontiguousarray(value[:-1]),
        next_value=np.ascontiguousarray(value[1:]),
        log_prob=log_prob,
        initial_state={"token": responses.token, "length": responses.length},
        extra={"reference_log_prob": said.reference, "behaviour_log_prob": responses.log_prob},
        version=responses.version,
    )


def final_scores(
    responses: Responses, score_N: Floats, recipe: ResponseRecipe
) -> tuple[Floats, NDArray[np.bool_]]:
    """The score that the last action gets, NaN for none, and whether nothing comes after it, [N] each."""
    cut_N = ~responses.ended
    if recipe.cut_off == "penalty":
        return np.where(cut_N, np.float32(recipe.cut_off_penalty), score_N), np.ones(len(score_N), bool)
    if recipe.cut_off == "bootstrap":
        return np.where(cut_N, np.float32(np.nan), score_N), ~cut_N
    return score_N, np.ones(len(score_N), bool)


def episodes(responses: Responses, score_N: Floats, recipe: ResponseRecipe) -> tuple[tuple[float, int], ...]:
    """Return and length of each response that has a score: a response is an episode, an action a step.

    The return is the undiscounted sum of the environment's rewards, the last action's score: without the KL, which is
    the learner's, and 0 where a response that was cut gets none.
    """
    final_N, _ = final_scores(responses, score_N, recipe)
    returns = np.nan_to_num(final_N).tolist()
    lengths = responses.num_actions.tolist()
    return tuple((returns[n], lengths[n]) for n in np.flatnonzero(np.isfinite(score_N)))


def summary(responses: Responses, said: Opinions, recipe: ResponseRecipe, beta: float) -> dict[str, float]:
    """Metrics of a batch, before it is learned from. `kl` is in nats a response: the sum over its tokens, the mean of those.

    `score_mean` is of what the reward said; `objective` is the mean of what is learned from, the last action's score
    less beta * KL, over the responses that have one.
    `sampling_mismatch` is the largest difference between a log-prob of sampling and that computed again; NaN where none was.
    """
    log_prob = responses.log_prob if said.log_prob is None else said.log_prob
    kl_N = kl_per_response(log_prob - said.reference, responses.valid)
    scored = said.score[np.isfinite(said.score)]
    final_N, _ = final_scores(responses, said.score, recipe)
    # a response without a score of the reward's is left out, whatever its end would have got
    learned = (final_N.astype(np.float64) - beta * kl_N)[np.isfinite(said.score) & np.isfinite(final_N)]
    mismatch = np.abs(log_prob - responses.log_prob)[responses.valid]
    return {
        "score_mean": float(scored.mean(dtype=np.float64)) if len(scored) else float("nan"),
        "score_std": float(scored.std(dtype=np.float64)) if len(scored) else float("nan"),
        "kl": float(kl_N.mean()),
        "beta": beta,
        "objective": float(learned.mean()) if len(learned) else float("nan"),
        "response_length_mean": float(responses.num_actions.mean()),
        "ended_fraction": float(responses.ended.mean()),
        "unscored": float(np.sum(~np.isfinite(said.score))),
        "sampling_mismatch": float(mismatch.max())
        if said.log_prob is not None and len(mismatch)
        else float("nan"),
    }
