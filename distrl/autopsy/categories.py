"""What a span is, in the words of the autopsy: from the names in the code to the parts that a person knows."""

from __future__ import annotations

ENV = "env step"
INFERENCE = "inference"
SAMPLING = "sampling"
FUSED = "fused rollout"
ROWS = "row writing"
STATE = "group state"
SERIALISATION = "serialisation"
TRANSFER = "transfer"
GAE = "GAE"
UPDATE = "update"
BROADCAST = "broadcast"
KEEPING = "checkpoint, log"
WAITING = "waiting"
OTHER = "other"

# span name -> category; what is not here goes by its first word
_CATEGORIES = {
    "rollout: env step": ENV,
    "rollout: inference": INFERENCE,
    "rollout: evaluate": INFERENCE,
    "rollout: fused": FUSED,
    "rollout: rows": ROWS,
    "rollout: restore": STATE,
    "rollout: snapshot": STATE,
    "rollout: send": SERIALISATION,
    "rollout: policy": BROADCAST,
    "learn: publish": BROADCAST,
    "learn: advantage": GAE,
    "learn: gather": TRANSFER,
    "learn: rows": TRANSFER,
    "learn: transfer": TRANSFER,
    "submit": TRANSFER,
    "transfer": TRANSFER,
    "log": KEEPING,
    "checkpoint": KEEPING,
    "evaluate": KEEPING,
    "watch": KEEPING,
}
_BY_FIRST_WORD = {"rollout": ROWS, "learn": UPDATE, "wait": WAITING}

# In the order of the displays, each with what it holds.
MEANING: dict[str, str] = {
    ENV: "the environment's own step, and its resets",
    INFERENCE: "the policy: an action for every row, then V and log-prob of all rows",
    SAMPLING: "the actions that noise picks, and their log-prob, in a fused rollout",
    FUSED: "inference and env step in one compiled loop",
    ROWS: "noise drawn, rows written, episodes counted",
    STATE: "a group's snapshot at a boundary, and putting it back",
    SERIALISATION: "a fragment written into Ray's object store",
    TRANSFER: "on the way: Ray's calls and answers, fragments joined, rows of minibatches picked, copies to the device",
    BROADCAST: "the new policy made ready, and loaded by the workers",
    GAE: "advantages and targets",
    UPDATE: "forward, loss, backward, optimiser",
    KEEPING: "metrics, checkpoints, evaluations, and what this profile keeps",
    WAITING: "nothing to do until somebody else is done",
    OTHER: "outside every span",
}


def category(span: str) -> str:
    """`learn: advantage` -> `GAE`."""
    known = _CATEGORIES.get(span)
    return known if known is not None else _BY_FIRST_WORD.get(span.split(":", 1)[0].split(" ", 1)[0], OTHER)


def is_wait(span: str) -> bool:
    """Whether the process had nothing to do."""
    return span.startswith("wait")
