"""The gold program: what a story is worth, read by the grammar's tables. It stands for the people whom RLHF would ask.

    credit                                       points    deduction                                     points
    the remedy fits the trouble (makeshift: 1)   2.5       a sentence that cannot be read                -1 each
    the helper's trade fits the trouble          1.5       a second remedy, reaction or ending           -1 each
    only the prompt's person is named            0.5       a rambling or lazy sentence                   -0.5 each
    every he or she agrees with that person      1.0       told out of order                             -0.5
    the helper is thanked (another: 0.5)         1.5       a rude ending                                 -0.5
    with a gift                                  0.5       fewer than two sentences or more than four    -1
    the ending is about the thing                1.0       no full stop and end of text                  -1
    and about its right state                    1.0
    in a warm tone                               0.5

10 points at most; never below 0. Nothing that is trained sees this program or its parts, only which of two stories it
preferred.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.rlhf.grammar import (
    ARRIVALS,
    FEELINGS,
    GIFTS,
    HELPERS,
    KINDS,
    LAZY,
    NAMES,
    OPENERS,
    PLACES,
    RAMBLING,
    REMEDIES,
    RUDE,
    STATES,
    THINGS,
    TIMES,
    TRADES,
    WARM,
    Plot,
    pronoun,
)

BEST = 10.0
REMEDY, MAKESHIFT, HELPER, NAMED, PRONOUNS = 2.5, 1.0, 1.5, 0.5, 1.0
THANKS, THANKS_ANOTHER, GIFT, THING, STATE, TONE = 1.5, 0.5, 0.5, 1.0, 1.0, 0.5
UNREADABLE, TWICE, IDLE, ORDER, RUDENESS, COUNT, UNENDED = -1.0, -1.0, -0.5, -0.5, -0.5, -1.0, -1.0


def _any(some: Iterable[str]) -> str:
    return "|".join(re.escape(one) for one in some)


_PERSON = f"(?P<person>{_any(NAMES)}|She|He)"
_REMEDY = re.compile(
    f"(?:{_any(OPENERS)}) the (?P<helper>{_any(HELPERS)}) (?:{_any(ARRIVALS)}) and (?P<remedy>{_any(REMEDIES)})\\."
)
_REACTION = re.compile(
    f"{_PERSON} (?:{_any(FEELINGS)}) and "
    f"(?:went home|thanked the (?P<thanked>{_any(HELPERS)})(?: (?P<gift>{_any(GIFTS)}))?)\\."
)
_ENDING = re.compile(
    f"(?:{_any(TIMES)}) the (?P<thing>{_any(THINGS)}) was (?P<state>{_any(STATES)}) again and "
    f"(?P<person>{_any(NAMES)}|she|he) (?:(?P<warm>{_any(WARM)})|(?P<rude>{_any(RUDE)}))\\."
)
_FORMS = {"remedy": _REMEDY, "reaction": _REACTION, "ending": _ENDING}
_IDLE = frozenset((*LAZY, *RAMBLING))
_PROMPTS = [
    re.compile(
        f"(?P<name>{_any(NAMES)}) the (?P<trade>{_any(TRADES)}) "
        f"{kind.problem.format(their='(?:her|his)', thing=f'(?P<thing>{_any(kind.things)})')} "
        f"(?P<place>{_any(PLACES)})\\."
    )
    for kind in KINDS
]


@dataclass(frozen=True)
class Reading:
    """A story's worth, and what it was credited and charged with: (what, points)."""

    score: float
    lines: tuple[tuple[str, float], ...]


def read_prompt(prompt: str) -> Plot | None:
    """What a prompt says; None where it is none of the grammar's."""
    for number, form in enumerate(_PROMPTS):
        if found := form.fullmatch(prompt.strip()):
            return Plot(found["name"], found["trade"], number, found["thing"], found["place"])
    return None


def read(prompt: str, response: str, ended: bool = True) -> Reading:
    """Reads any two strings. `ended`: the writer ended the response, no length limit cut it."""
    plot = read_prompt(prompt)
    sentences = re.findall(r"[^.]*\.|[^.]+$", response.strip())
    sentences = [sentence.strip() for sentence in sentences]
    found: dict[str, re.Match[str]] = {}
    order: list[str] = []
    persons: list[str] = []
    charged: list[tuple[str, float]] = []
    for sentence in sentences:
        name, match = _kind_of(sentence)
        if match is not None:
            if name in found:
                charged.append((f"a second {name}", TWICE))
                continue
            found[name] = match
            order.append(name)
            if match.groupdict().get("person"):
                persons.append(match["person"].capitalize())
        elif name == "idle":
            charged.append(("rambles", IDLE))
        else:
            charged.append(("cannot be read", UNREADABLE))
    if order != sorted(order, key=[*_FORMS].index):
        charged.append(("out of order", ORDER))
    if not 2 <= len(sentences) <= 4:
        charged.append(("too few sentences" if len(sentences) < 2 else "too many sentences", COUNT))
    if not (ended and response.rstrip().endswith(".")):
        charged.append(("does not end", UNENDED))
    credited = [] if plot is None else _credits(plot, found, persons)
    lines = (*credited, *charged)
    return Reading(max(0.0, sum(points for _, points in lines)), lines)


def score(prompt: str, response: str, ended: bool = True) -> float:
    """Points, 0 to 10."""
    return read(prompt, response, ended).score


def _kind_of(sentence: str) -> tuple[str, re.Match[str] | None]:
    for name, form in _FORMS.items():
        if match := form.fullmatch(sentence):
            return name, match
    return ("idle" if sentence in _IDLE else "unreadable"), None


def _credits(plot: Plot, found: dict[str, re.Match[str]], persons: Sequence[str]) -> list[tuple[str, float]]:
    kind = KINDS[plot.kind]
    credits: list[tuple[str, float]] = []
    remedy, reaction, ending = (found.get(name) for name in _FORMS)
    if remedy is not None:
        if remedy["remedy"] in kind.remedies:
            credits.append(("remedy fits", REMEDY))
        elif remedy["remedy"] == kind.makeshift:
            credits.append(("makeshift remedy", MAKESHIFT))
        if remedy["helper"] in kind.helpers:
            credits.append(("helper fits", HELPER))
    if persons:
        named = [person for person in persons if person in NAMES]
        called = [person for person in persons if person not in NAMES]
        if all(person == plot.name for person in named):
            credits.append(("right name", NAMED))
        if all(person == pronoun(plot.name) for person in called):
            credits.append(("right pronoun", PRONOUNS))
    if reaction is not None and reaction["thanked"]:
        if remedy is not None and reaction["thanked"] == remedy["helper"]:
            credits.append(("thanks the helper", THANKS))
        else:
            credits.append(("thanks another", THANKS_ANOTHER))
        if reaction["gift"]:
            credits.append(("a gift", GIFT))
    if ending is not None:
        if ending["thing"] == plot.thing:
            credits.append(("right thing", THING))
        if ending["state"] == kind.state:
            credits.append(("right state", STATE))
        credits.append(("warm ending", TONE) if ending["warm"] else ("rude ending", RUDENESS))
    return credits


def prefers(
    score_one: NDArray[np.float64],
    score_other: NDArray[np.float64],
    uniform: NDArray[np.float64],
    temperature: float,
) -> NDArray[np.bool_]:
    """Whether the first of two is preferred, by Bradley-Terry on the gold: P = sigmoid((s1 - s2) / temperature), [N]."""
    preferred: NDArray[np.bool_] = uniform < 1.0 / (1.0 + np.exp(-(score_one - score_other) / temperature))
    return preferred


def ceiling(
    score_one: NDArray[np.float64], score_other: NDArray[np.float64], temperature: float, noise: float
) -> float:
    """The accuracy on such labels, a share `noise` of them flipped, of who knows the gold itself.

    The better one is preferred with probability sigmoid(|s1 - s2| / temperature), and a flip turns p into
    p (1 - noise) + (1 - p) noise.
    """
    right = 1.0 / (1.0 + np.exp(-np.abs(score_one - score_other) / temperature))
    return float((right * (1.0 - noise) + (1.0 - right) * noise).mean())
