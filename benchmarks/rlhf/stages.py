"""The stages of the run, each from the folders of those before it to its own.

language -> sft -> pairs -> reward -> ppo, one for each beta -> results
                                  \\-> best of n           /
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.rlhf import gold, measure
from benchmarks.rlhf.grammar import split
from benchmarks.rlhf.language import make_folder, train_tokenizer
from benchmarks.rlhf.measure import Judge, Sample
from benchmarks.rlhf.settings import Settings
from benchmarks.rlhf.slips import slips
from benchmarks.rlhf.together import together
from distrl.maths.random import derive_seed, stream
from distrl.rlhf.certificate import step
from distrl.rlhf.data import read_demonstrations, read_preferences, read_prompts
from distrl.rlhf.models import read_causal, save
from distrl.rlhf.reward_model import (
    Comparison,
    new_reward_model,
    reference_samples,
    score_scale,
    train_reward_model,
)
from distrl.rlhf.rewards import read_reward, save_reward
from distrl.rlhf.role_spec import ROLES, RoleSpec
from distrl.rlhf.roles import RoleWorker
from distrl.rlhf.sft import train_sft
from distrl.rlhf.tokenizers import read_tokenizer
from distrl.rlhf.training import TrainOptions

Say = Callable[[str], None]
EARLY = (1, 2, 3, 5, 7)  # iterations that are looked at too: most of the way in KL is made there


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """As `write_jsonl` wrote it."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def language(folder: Path, settings: Settings, say: Say) -> None:
    """The corpus, prompts, a tokenizer and a model of random weights."""
    num_held_out = settings.num_curve_prompts + settings.num_final_prompts
    corpus, prompts, held_out = split(settings.seed, settings.num_stories, num_held_out, settings.num_prompts)
    write_jsonl(
        folder / "demonstrations.jsonl",
        [{"prompt": one.plot.prompt, "completion": one.completion} for one in corpus],
    )
    curve = settings.num_curve_prompts
    for name, some in (("prompts", prompts), ("curve", held_out[:curve]), ("final", held_out[curve:])):
        write_jsonl(folder / f"{name}.jsonl", [{"prompt": prompt} for prompt in some])
    tokenizer = train_tokenizer(one.plot.prompt + one.completion for one in corpus)
    make_folder(folder / "model", tokenizer, settings.layers, settings.width, settings.seed)
    say(f"{len(corpus)} stories, {len(tokenizer)} tokens")


def sft(folder: Path, settings: Settings, language: Path, say: Say) -> None:
    """The small GPT learns to write as the careless writer does."""
    tokenizer = read_tokenizer(language / "model")
    rows = read_demonstrations(language / "demonstrations.jsonl", tokenizer).rows
    options = TrainOptions(
        learning_rate=settings.sft_rate,
        epochs=settings.sft_epochs,
        batch_size=settings.sft_batch,
        seed=settings.seed,
    )
    model = train_sft(read_causal(language / "model"), rows, (), options, on_step=_every(100, say))
    save(model, folder / "model", tokenizer)


def pairs(folder: Path, settings: Settings, language: Path, sft: Path, say: Say) -> None:
    """Two responses of the SFT model to each prompt, with the gold's preference by Bradley-Terry.

    `flips_at` is drawn for each pair: its label is flipped where the noise is above it, so more noise flips more of them.
    """
    prompts = [row["prompt"] for row in read_jsonl(language / "prompts.jsonl")]
    training = [prompts[place % len(prompts)] for place in range(settings.num_pairs)]
    curve = [row["prompt"] for row in read_jsonl(language / "curve.jsonl")]
    sets = [("train", 1, training), ("held-out", 3, curve * settings.pairs_per_prompt)]
    jobs = [(settings, sft, some, purpose + k) for _, purpose, some in sets for k in range(2)]
    written = list(together(_written, jobs, settings.threads))
    for (name, purpose, some), one, other in zip(sets, written[::2], written[1::2], strict=True):
        generator = stream(settings.seed, "labels", purpose)
        first_N = gold.prefers(one.gold, other.gold, generator.random(len(some)), settings.label_temperature)
        flips_at_N = generator.random(len(some))
        rows = []
        for i, prompt in enumerate(some):
            if one.texts[i] == other.texts[i]:
                continue
            rows.append({
                "prompt": prompt, "first": one.texts[i], "second": other.texts[i], "gold": [one.gold[i], other.gold[i]],
                "prefers_first": bool(first_N[i]), "flips_at": float(flips_at_N[i]),
            })  # fmt: skip
        write_jsonl(folder / f"{name}.jsonl", rows)
        told = np.array([row["gold"] for row in rows])
        say(f"{name}: {len(rows)} pairs, gold {told.mean():.2f} +- {told.std():.2f}")


def _written(job: tuple[Settings, Path, list[str], int]) -> Sample:
    """A response of the SFT model to each of the prompts."""
    settings, sft, prompts, purpose = job
    judge = _judge(settings, sft, None)
    return judge.look(judge.reference, prompts, judge.write(judge.reference, prompts, settings.seed, purpose))


def label(pairs: Path, path: Path, noise: float, count: int | None = None) -> None:
    """Preferences as `distrl rlhf reward` reads them, from the first `count` pairs; a share `noise` of them flipped."""
    rows = []
    for row in read_jsonl(pairs)[:count]:
        texts = row["first"], row["second"]
        chosen = row["prefers_first"] ^ (row["flips_at"] < noise)
        rows.append({"prompt": row["prompt"], "chosen": texts[not chosen], "rejected": texts[chosen]})
    write_jsonl(path, rows)


def reward(folder: Path, settings: Settings, language: Path, sft: Path, pairs: Path, say: Say) -> None:
    """A Bradley-Terry reward model on the SFT model's trunk, normalised on its samples, and how good it is."""
    tokenizer = read_tokenizer(sft / "model")
    label(pairs / "train.jsonl", folder / "train.jsonl", settings.noise, settings.pairs_used)
    label(pairs / "held-out.jsonl", folder / "held-out.jsonl", settings.noise)
    label(pairs / "held-out.jsonl", folder / "held-out-without-noise.jsonl", 0.0)
    rows = read_preferences(folder / "train.jsonl", tokenizer).rows
    options = TrainOptions(
        learning_rate=settings.reward_rate, epochs=settings.reward_epochs, batch_size=settings.reward_batch,
        seed=settings.seed, weight_decay=0.01,
    )  # fmt: skip
    causal = read_causal(sft / "model")
    model = train_reward_model(
        new_reward_model(causal, derive_seed(settings.seed, "reward head")),
        rows,
        (),
        options,
        on_step=_every(50, say),
    )
    prompts = read_prompts(language / "prompts.jsonl", tokenizer).rows[:512]
    samples = reference_samples(
        causal,
        [one.tokens for one in prompts],
        [tokenizer.eos_token_id],
        settings.max_response,
        settings.seed,
    )
    save_reward(model, score_scale(model, samples), folder / "model", tokenizer)
    told = _accuracies(folder, settings, pairs, tokenizer)
    told["num_pairs"] = len(rows)
    told["slips"] = slips(settings.seed, read_reward(folder / "model"), tokenizer)
    (folder / "accuracy.json").write_text(json.dumps(told, indent=1) + "\n")
    say(f"held-out accuracy {told['accuracy']:.3f}, ceiling {told['ceiling']:.3f}")


def _accuracies(folder: Path, settings: Settings, pairs: Path, tokenizer: Any) -> dict[str, Any]:
    """On held-out pairs with labels as they were trained on, on those without noise, and beside the gold itself."""
    model = read_reward(folder / "model").parts.build()
    found: dict[str, Any] = {}
    for label, name in (("accuracy", "held-out"), ("accuracy_without_noise", "held-out-without-noise")):
        rows = read_preferences(folder / f"{name}.jsonl", tokenizer).rows
        objective = Comparison(model, rows)
        with torch.no_grad():
            right = sum(
                float(objective.losses(np.arange(at, min(at + 128, len(rows))))[1]["accuracy"])
                for at in range(0, len(rows), 128)
            )
        found[label] = right / len(rows)
        found["num_held_out"] = len(rows)
    gold_P2 = np.array([row["gold"] for row in read_jsonl(pairs / "held-out.jsonl")])
    for label, noise in (("ceiling", settings.noise), ("ceiling_without_noise", 0.0)):
        found[label] = gold.ceiling(gold_P2[:, 0], gold_P2[:, 1], settings.label_temperature, noise)
    return found


def ppo(
    folder: Path, settings: Settings, language: Path, sft: Path, reward: Path, beta: float, say: Say
) -> None:
    """PPO against the reward model, and on the way what held-out prompts show: gold, proxy and KL."""
    tokenizer = read_tokenizer(sft / "model")
    prompts = read_prompts(language / "prompts.jsonl", tokenizer).rows
    start, source = read_causal(sft / "model"), read_reward(reward / "model")
    spec = RoleSpec(
        recipe=replace(settings.recipe, beta=beta),
        seed=derive_seed(settings.seed, "ppo"),
        prompts=tuple(one.tokens for one in prompts),
        num_prompts=settings.batch,
        end_tokens=(tokenizer.eos_token_id,),
        reward=source,
        generation_batch=settings.batch,
        forward_batch=settings.batch,
        critic_rate=settings.critic_rate,
        threads=settings.threads,
    )
    # from the reward model, which has read such stories to their end; its head at 0
    arrays = source.parts.arrays
    critic = source.parts.with_arrays({**arrays, "score.weight": np.zeros_like(arrays["score.weight"])})
    worker = RoleWorker(spec, ROLES, {"actor": start, "reference": start, "critic": critic})
    judge = _judge(settings, sft, reward)
    curve_prompts = [row["prompt"] for row in read_jsonl(language / "curve.jsonl")]
    actor = cast(Any, worker.learner).policy.actor
    curve = []
    for iteration in range(settings.iterations + 1):
        if iteration % settings.evaluate_every == 0 or iteration in (*EARLY, settings.iterations):
            seen = judge.look(
                actor, curve_prompts, judge.write(actor, curve_prompts, settings.seed, 10 + iteration)
            )
            curve.append({"iteration": iteration, **means(seen)})
            say("  ".join(f"{name} {value:.3f}" for name, value in curve[-1].items()))
        if iteration < settings.iterations:
            step(worker, iteration, iteration / settings.iterations, beta)
    (folder / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
    save(start.with_arrays(worker.snapshot().arrays), folder / "model", tokenizer)


def best_of_n(folder: Path, settings: Settings, language: Path, sft: Path, reward: Path, say: Say) -> None:
    """The control: the SFT model's response that the proxy likes best of n."""
    judge = _judge(settings, sft, reward)
    model = judge.reference
    prompts = [row["prompt"] for row in read_jsonl(language / "curve.jsonl")]
    drawn = [
        judge.look(model, prompts, judge.write(model, prompts, settings.seed, 1000 + k))
        for k in range(settings.best_of)
    ]
    proxy_PN, gold_PN = (
        np.stack([getattr(one, name) for one in drawn], axis=1) for name in ("proxy", "gold")
    )
    found, n = [], 1
    while n <= settings.best_of:
        found.append({
            "n": n, "kl": measure.best_of_kl(n), "proxy": measure.best_of(proxy_PN, proxy_PN, n),
            "gold": measure.best_of(proxy_PN, gold_PN, n),
        })  # fmt: skip
        n *= 2
    told = {"gold_mean": float(gold_PN.mean()), "gold_std": float(gold_PN.std()), "best_of": found}
    told["proxy_mean"], told["proxy_std"] = float(proxy_PN.mean()), float(proxy_PN.std())
    told["correlation"] = _correlation(proxy_PN.ravel(), gold_PN.ravel())
    (folder / "best_of_n.json").write_text(json.dumps(told, indent=1) + "\n")
    say(
        f"gold of the SFT model {told['gold_mean']:.2f}, of the best of {found[-1]['n']} {found[-1]['gold']:.2f}"
    )


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    spread = float(one.std() * other.std())
    return float(((one - one.mean()) * (other - other.mean())).mean()) / spread if spread else 0.0


def final(settings: Settings, language: Path, model: Path, sft: Path, reward: Path) -> Sample:
    """What a trained model writes to the prompts that nothing was chosen by."""
    judge = _judge(settings, sft, reward)
    prompts = [row["prompt"] for row in read_jsonl(language / "final.jsonl")]
    policy = judge.reference if model == sft else read_causal(model / "model").build()
    purpose = 5 if model == sft else 6
    return judge.look(policy, prompts, judge.write(policy, prompts, settings.seed, purpose))


def means(sample: Sample) -> dict[str, float]:
    """Of a sample, with standard errors where they are read."""
    return {
        "kl": float(sample.kl.mean()),
        "proxy": float(sample.proxy.mean()),
        "gold": float(sample.gold.mean()),
        "gold_error": float(sample.gold.std() / np.sqrt(len(sample.gold))),
        "flawless": float((sample.gold == gold.BEST).mean()),
        "ended": float(sample.ended.mean()),
    }


def _judge(settings: Settings, sft: Path, reward: Path | None) -> Judge:
    source = None if reward is None else read_reward(reward / "model")
    return Judge(
        read_tokenizer(sft / "model"), read_causal(sft / "model").build(), source, settings.max_response
    )


def _every(steps: int, say: Say) -> Callable[[dict[str, float]], None]:
    def told(metrics: dict[str, float]) -> None:
        if int(metrics["step"]) % steps == 0 and "loss" in metrics:
            more = f", accuracy {metrics['accuracy']:.3f}" if "accuracy" in metrics else ""
            say(f"step {metrics['step']:.0f}, loss {metrics['loss']:.3f}{more}")

    return told
