"""benchmarks/rlhf: stories from a seed, and the gold program that reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rlhf.gold import BEST, ceiling, prefers, read, read_prompt, score
from benchmarks.rlhf.grammar import FLAWS, KINDS, Story, split, stories

PROMPT = "Mara the baker broke her ladder near the well."
REMEDY = "Soon the joiner came by and mended it with new nails."
REACTION = "She smiled and thanked the joiner with bread."
ENDING = "By evening the ladder was whole again and Mara slept well."


def flawed(*flaws: str, count: int = 200) -> list[Story]:
    return stories(3, "one flaw", count, {name: float(name in flaws) for name in FLAWS})


def mean_score(some: list[Story]) -> float:
    return float(np.mean([score(one.plot.prompt, one.completion) for one in some]))


def test_a_flawless_story_has_every_credit_and_no_charge() -> None:
    for story in flawed():
        reading = read(story.plot.prompt, story.completion)
        assert reading.score == BEST, (story, reading)
        assert all(points > 0 for _, points in reading.lines)


@pytest.mark.parametrize(
    ("flaw", "cost"),
    [
        ("wrong remedy", 2.5),
        ("makeshift remedy", 1.5),
        ("wrong helper", 1.5),
        ("no thanks", 2.0),  # and so no gift
        ("thanks to another", 1.0),
        ("no gift", 0.5),
        ("wrong thing", 1.0),
        ("wrong state", 1.0),
        ("rude", 1.0),
        ("lazy ending", 3.0),  # thing, state and tone, and half a point for the sentence itself
        ("repeats a sentence", 1.0),
        ("rambles", 0.5),
    ],
)
def test_each_flaw_costs_what_the_table_says(flaw: str, cost: float) -> None:
    for story in flawed(flaw):
        assert score(story.plot.prompt, story.completion) == BEST - cost, story


def test_a_wrong_name_and_a_wrong_pronoun_cost_what_the_table_says() -> None:
    costs = {BEST - score(story.plot.prompt, story.completion) for story in flawed("wrong person")}
    assert costs == {0.5, 1.0}


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (f" {REMEDY} {REACTION} {ENDING}", 10.0),
        (f" {REACTION} {REMEDY} {ENDING}", 9.5),  # told out of order
        (f" {REMEDY} {REACTION}", 7.5),
        (f" {REMEDY}", 3.0),  # one sentence
        (f" {REMEDY} {REACTION} {ENDING} {ENDING}", 9.0),
        (f" {REMEDY} {REACTION} The ladder purrs. {ENDING}", 9.0),
        (
            f" {REMEDY} {REACTION} {ENDING[:-1]}",
            5.5,
        ),  # the last sentence has no full stop: unread, and no end
        ("", 0.0),
        ("ladder ladder ladder", 0.0),
        (f" {PROMPT}", 0.0),
    ],
)
def test_a_response_is_credited_in_part(response: str, expected: float) -> None:
    assert score(PROMPT, response) == expected, read(PROMPT, response)


def test_a_response_that_the_length_limit_cut_loses_a_point() -> None:
    assert score(PROMPT, f" {REMEDY} {REACTION} {ENDING}", ended=False) == 9.0


def test_a_remedy_of_another_trouble_is_not_credited() -> None:
    assert (
        score(PROMPT, f" {REMEDY.replace(KINDS[0].remedies[0], KINDS[1].remedies[0])} {REACTION} {ENDING}")
        == 7.5
    )


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_two_strings_are_scored(prompt: str, response: str) -> None:
    assert 0.0 <= score(prompt, response) < BEST


@given(st.lists(st.sampled_from([REMEDY, REACTION, ENDING, "Who cares about it.", "She", "."]), max_size=8))
def test_sentences_in_any_order_and_number_are_scored(parts: list[str]) -> None:
    assert 0.0 <= score(PROMPT, " ".join(parts)) <= BEST


def test_every_prompt_is_read_as_the_plot_it_tells() -> None:
    for story in stories(5, "prompts", 500):
        assert read_prompt(story.plot.prompt) == story.plot


def test_the_corpus_has_room_above_it_and_few_stories_twice() -> None:
    corpus = stories(0, "corpus", 2000)
    scores = np.array([score(one.plot.prompt, one.completion) for one in corpus])
    assert 6.0 < scores.mean() < 7.5
    assert 0.01 < (scores == BEST).mean() < 0.1
    assert len({one.plot.prompt + one.completion for one in corpus}) > 1990
    assert len({word for one in corpus for word in (one.plot.prompt + one.completion).split()}) > 250


def test_a_seed_gives_the_same_stories_and_a_longer_corpus_begins_with_the_shorter() -> None:
    assert stories(1, "corpus", 20) == stories(1, "corpus", 50)[:20]
    assert stories(1, "corpus", 20) != stories(2, "corpus", 20)


def test_no_held_out_prompt_is_trained_on() -> None:
    corpus, prompts, held_out = split(0, 3000, 100, 3000)
    assert len(held_out) == len(set(held_out)) == 100
    assert not set(held_out) & {one.plot.prompt for one in corpus}
    assert not set(held_out) & set(prompts)


def test_preferences_follow_bradley_terry_and_the_ceiling_is_the_golds_own_accuracy() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 21, (2, 200_000)) / 2.0
    preferred = prefers(one, other, generator.random(len(one)), 0.5)
    flipped = preferred ^ (generator.random(len(one)) < 0.25)
    apart = one != other
    for noise, label in ((0.0, preferred), (0.25, flipped)):
        accuracy = (label == (one > other))[apart].mean()
        assert accuracy == pytest.approx(ceiling(one[apart], other[apart], 0.5, noise), abs=0.005)
