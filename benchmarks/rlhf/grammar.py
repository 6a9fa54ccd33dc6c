"""Village stories from a seed: the text of the RLHF run. A prompt is the first sentence, a completion is the rest.

    Mara the baker broke her ladder near the well.
    Soon the joiner came by and mended it with new nails. She smiled and thanked the joiner with bread.
    By evening the ladder was whole again and Mara slept well.

A thing decides what may be wrong with it, that decides who can help, how, and how it is in the end: seven kinds of
trouble, 28 things. The corpus is written by a careless writer, who slips with the chances of `FLAWS`, so a model that imitates
it well still has room above it. `gold` reads stories by the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distrl.maths.random import stream


@dataclass(frozen=True)
class Kind:
    """A kind of trouble. `problem` and `makeshift` have a place for what differs; the rest are whole phrases."""

    problem: str  # "broke {their} {thing}"
    things: tuple[str, ...]
    helpers: tuple[str, ...]  # trades that know what to do
    remedies: tuple[str, ...]
    makeshift: str
    state: str  # in the end


KINDS: tuple[Kind, ...] = (
    Kind("broke {their} {thing}", ("ladder", "cart", "chair", "door"), ("joiner", "wheelwright"),
         ("mended it with new nails", "joined it with strong glue"), "tied it with string", "whole"),
    Kind("tore {their} {thing}", ("coat", "sail", "blanket", "tent"), ("tailor", "weaver"),
         ("sewed it with fine thread", "patched it with soft leather"), "pinned it with thorns", "neat"),
    Kind("found a leak in {their} {thing}", ("boat", "roof", "barrel", "trough"), ("cooper", "thatcher"),
         ("sealed it with hot tar", "filled it with clean wax"), "stuffed it with old rags", "tight"),
    Kind("lost {their} {thing}", ("ring", "key", "purse", "lantern"), ("hunter", "shepherd"),
         ("found it under the leaves", "tracked it with a hound"), "wished for it at a shrine", "safe"),
    Kind("saw {their} {thing} sink in the mud", ("goat", "cow", "pony", "calf"), ("carter", "ploughman"),
         ("pulled it out with a rope", "lifted it with a pole"), "called it with oats", "free"),
    Kind("found {their} {thing} sick", ("hen", "lamb", "dog", "mule"), ("healer", "nurse"),
         ("cured it with bitter herbs", "fed it warm milk"), "sang it a lullaby", "well"),
    Kind("could not open {their} {thing}", ("chest", "gate", "box", "shed"), ("locksmith", "tinker"),
         ("freed it with a hook", "oiled it with goose fat"), "kicked it", "open"),
)  # fmt: skip

WOMEN = ("Mara", "Anna", "Ilse", "Greta", "Rosa", "Nell", "Tilda", "Edith", "Bruna", "Clara", "Wanda", "Hedy")
MEN = ("Otto", "Emil", "Hugo", "Jonas", "Piet", "Rolf", "Bruno", "Karl", "Finn", "Anton", "Lukas", "Matti")
TRADES = (
    "baker", "miller", "fisher", "farmer", "brewer", "piper", "gardener", "barber",
    "teacher", "printer", "sailor", "painter", "butcher", "dyer", "ferryman", "beekeeper",
)  # fmt: skip
PLACES = (
    "near the well", "by the river", "at the market", "on the hill", "behind the church", "at the mill",
    "in the square", "on the bridge", "beside the pond", "at the inn", "in the orchard", "by the old wall",
)  # fmt: skip
OPENERS = ("Soon", "Then", "At noon", "Before long", "The next day", "An hour later")
ARRIVALS = ("came by", "ran over", "walked up", "stopped there")
FEELINGS = ("smiled", "laughed", "bowed", "wept", "cheered")
GIFTS = ("with bread", "with honey", "with a song", "with a coin", "with apples")
TIMES = ("By evening", "At last", "In the end", "That night", "By sunset")
WARM = ("slept well", "sang all night", "danced home", "told everyone", "felt happy")
RUDE = ("blamed everyone", "cursed the rain", "shouted at the children", "told nobody")
LAZY = ("That was that.", "The rest is dull.", "Who cares about it.", "And so on.")
RAMBLING = (
    "The sky was grey.", "A crow sat on the wall.", "The bell rang twice.", "Nobody knew why.",
    "The soup was thin.", "Some geese went by.",
)  # fmt: skip

FLAWS: Mapping[str, float] = {
    "wrong remedy": 0.3,
    "makeshift remedy": 0.3,
    "wrong helper": 0.35,
    "wrong person": 0.12,  # another's name, or the other pronoun
    "no thanks": 0.35,
    "thanks to another": 0.1,
    "no gift": 0.45,
    "wrong thing": 0.1,
    "wrong state": 0.1,
    "rude": 0.25,
    "lazy ending": 0.2,
    "repeats a sentence": 0.1,
    "rambles": 0.25,
}

HELPERS = tuple(helper for kind in KINDS for helper in kind.helpers)
THINGS = tuple(thing for kind in KINDS for thing in kind.things)
STATES = tuple(kind.state for kind in KINDS)
REMEDIES = tuple(remedy for kind in KINDS for remedy in (*kind.remedies, kind.makeshift))
NAMES = WOMEN + MEN


def pronoun(name: str) -> str:
    """She, or he."""
    return "She" if name in WOMEN else "He"


@dataclass(frozen=True)
class Plot:
    """Who has which trouble where: what a prompt says."""

    name: str
    trade: str
    kind: int
    thing: str
    place: str

    @property
    def prompt(self) -> str:
        """The first sentence."""
        their = "her" if self.name in WOMEN else "his"
        problem = KINDS[self.kind].problem.format(their=their, thing=self.thing)
        return f"{self.name} the {self.trade} {problem} {self.place}."


@dataclass(frozen=True)
class Story:
    """A prompt and a completion, which begins with a space; `flaws` are the writer's slips."""

    plot: Plot
    completion: str
    flaws: tuple[str, ...]


class Writer:
    """Draws from one stream; slips with the chances given, never with none."""

    def __init__(self, generator: np.random.Generator, flaws: Mapping[str, float]) -> None:
        self.generator = generator
        self.chances = flaws

    def one(self, *some: str, but: tuple[str, ...] = ()) -> str:
        """One of them, each as likely."""
        left = [each for each in some if each not in but]
        return left[int(self.generator.integers(len(left)))]

    def plot(self) -> Plot:
        """Any of some 129,000."""
        kind = int(self.generator.integers(len(KINDS)))
        return Plot(
            self.one(*NAMES), self.one(*TRADES), kind, self.one(*KINDS[kind].things), self.one(*PLACES)
        )

    def story(self) -> Story:
        """A plot and what came of it, with the slips that it happened to have."""
        plot = self.plot()
        flaws = {name for name, chance in self.chances.items() if self.generator.random() < chance}
        if {"wrong remedy", "makeshift remedy"} <= flaws:
            flaws.discard("makeshift remedy")
        kind = KINDS[plot.kind]
        others = [one for number, one in enumerate(KINDS) if number != plot.kind]

        helper = self.one(*HELPERS, but=kind.helpers) if "wrong helper" in flaws else self.one(*kind.helpers)
        if "wrong remedy" in flaws:
            remedy = self.one(*(remedy for one in others for remedy in one.remedies))
        else:
            remedy = kind.makeshift if "makeshift remedy" in flaws else self.one(*kind.remedies)
        sentences = [f"{self.one(*OPENERS)} the {helper} {self.one(*ARRIVALS)} and {remedy}."]

        slip = int(self.generator.integers(2)) if "wrong person" in flaws else None
        sentences.append(self._reaction(self._subject(plot, slip == 0), helper, flaws))

        if "lazy ending" in flaws:
            sentences.append(self.one(*LAZY))
        else:
            thing = self.one(*THINGS, but=(plot.thing,)) if "wrong thing" in flaws else plot.thing
            state = self.one(*STATES, but=(kind.state,)) if "wrong state" in flaws else kind.state
            subject = self._subject(plot, slip == 1)
            closer = self.one(*(RUDE if "rude" in flaws else WARM))
            sentences.append(
                f"{self.one(*TIMES)} the {thing} was {state} again and "
                f"{subject if subject in NAMES else subject.lower()} {closer}."
            )
        if "repeats a sentence" in flaws:
            at = int(self.generator.integers(2))
            sentences.insert(at + 1, sentences[at])
        if "rambles" in flaws:
            sentences.insert(int(self.generator.integers(1, len(sentences) + 1)), self.one(*RAMBLING))
        return Story(plot, "".join(f" {sentence}" for sentence in sentences), tuple(sorted(flaws)))

    def _subject(self, plot: Plot, wrong: bool) -> str:
        named = bool(self.generator.integers(2))
        if wrong:
            return (
                self.one(*NAMES, but=(plot.name,))
                if named
                else self.one("She", "He", but=(pronoun(plot.name),))
            )
        return plot.name if named else pronoun(plot.name)

    def _reaction(self, subject: str, helper: str, flaws: set[str]) -> str:
        feeling = self.one(*FEELINGS)
        if "no thanks" in flaws:
            return f"{subject} {feeling} and went home."
        thanked = self.one(*HELPERS, but=(helper,)) if "thanks to another" in flaws else helper
        gift = "" if "no gift" in flaws else f" {self.one(*GIFTS)}"
        return f"{subject} {feeling} and thanked the {thanked}{gift}."


def stories(seed: int, purpose: str, count: int, flaws: Mapping[str, float] = FLAWS) -> list[Story]:
    """`count` stories, each from a stream of its own: a longer corpus begins with the shorter one."""
    return [Writer(stream(seed, purpose, number), flaws).story() for number in range(count)]


def split(
    seed: int, num_stories: int, num_held_out: int, num_prompts: int
) -> tuple[list[Story], list[str], list[str]]:
    """A corpus, prompts to train on beyond it, and held-out prompts that neither of them has."""
    held_out = list(
        dict.fromkeys(one.plot.prompt for one in stories(seed, "held-out prompts", 2 * num_held_out))
    )
    held_out = held_out[:num_held_out]
    secret = set(held_out)
    corpus = [one for one in stories(seed, "corpus", num_stories) if one.plot.prompt not in secret]
    prompts = [one.plot.prompt for one in stories(seed, "training prompts", num_prompts)]
    return corpus, [prompt for prompt in prompts if prompt not in secret], held_out
