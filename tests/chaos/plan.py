"""What a chaos run is going to do, all drawn from one seed: what is sent when, and what is broken when."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from taskbridge import Priority
from tests.chaos.happenings import PRODUCER
from tests.chaos.kinds import KINDS
from tests.chaos.tasks import QUEUES

Disorder = Literal[
    "kill a process",
    "kill a worker",
    "kill a supervisor",
    "stop a worker",
    "start anew",
    "freeze shortly",
    "freeze",
    "cut",
    "drop",
    "black hole",
    "restart the broker",
    "deploy",
]

PLACES: Final = ("w1", "w2", "w3")

# What one round holds; the number after it is how long a round takes, in s.
_ROUND: Final[tuple[Disorder, ...]] = (
    "kill a process",
    "freeze",
    "cut",
    "kill a worker",
    "black hole",
    "kill a process",
    "stop a worker",
    "drop",
    "restart the broker",
    "kill a supervisor",
    "cut",
    "freeze shortly",
    "start anew",
    "black hole",
)
_SHORT_ROUND: Final[tuple[Disorder, ...]] = (
    "kill a process",
    "kill a worker",
    "freeze",
    "cut",
    "black hole",
    "restart the broker",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a chaos run is asked to be.

    Attributes:
        messages: How many are sent.
        seconds: Over how long.
        lease_s: The setting `lease`.
        seed: What everything is drawn from.
        short: Whether each disorder comes once, for continuous integration.
        priorities: Whether messages have all four priorities; else all are `normal`.
    """

    messages: int
    seconds: float
    lease_s: float
    seed: int
    short: bool = False
    priorities: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Sending:
    """One message to be sent, so many seconds after the beginning."""

    at_s: float
    key: str
    kind: str
    number: float
    delay_s: float
    queue: str
    priority: Priority


@dataclass(frozen=True, kw_only=True, slots=True)
class Act:
    """One thing to be broken, so many seconds after the beginning, and for how long if it is mended later."""

    at_s: float
    what: Disorder
    place: str
    lasts_s: float
    luck: float


def sendings(options: Options) -> list[Sending]:
    """Return what is to be sent, in the order of time."""
    draw = random.Random(f"sendings {options.seed}")
    names = [kind.name for kind in KINDS.values()]
    weights = [kind.weight for kind in KINDS.values()]
    times = sorted(draw.uniform(0, options.seconds) for _ in range(options.messages))
    kinds = draw.choices(names, weights, k=options.messages)
    if options.short:  # few messages: one of each kind at least
        kinds[: len(names)] = names
        draw.shuffle(kinds)
    return [
        _sending(draw, options, index, at_s, kind) for index, (at_s, kind) in enumerate(zip(times, kinds, strict=True))
    ]


def _sending(draw: random.Random, options: Options, index: int, at_s: float, kind: str) -> Sending:
    numbers = {
        "flaky": float(draw.randint(1, 3)),
        "slow": draw.uniform(0.2, 1.0),
        "long": options.lease_s * 1.4,
        "once": draw.uniform(0.0, 0.3),
        "coroutine": draw.uniform(0.0, 0.2),
    }
    sending = Sending(
        at_s=at_s,
        key=f"m{index:05}",
        kind=kind,
        number=numbers.get(kind, 0.0),
        delay_s=draw.uniform(0.5, 4.0 if options.short else 20.0) if kind == "delayed" else 0.0,
        queue=draw.choice(QUEUES),
        priority=draw.choices(("normal", "low", "high", "critical"), (7, 1, 1, 1))[0],
    )
    return sending if options.priorities else replace(sending, priority="normal")


def acts(options: Options) -> list[Act]:
    """Return what is to be broken, in the order of time. The last ones are over when the last message is sent."""
    draw = random.Random(f"acts {options.seed}")
    kinds = _drawn_kinds(draw, options)
    first_s, step_s = 1.0, (options.seconds - 1.0) / max(1, len(kinds))
    found = [_act(draw, options, first_s + step_s * index, what) for index, what in enumerate(kinds)]
    deploy = Act(at_s=options.seconds * 0.45, what="deploy", place="", lasts_s=0, luck=0)
    return sorted([*found, deploy], key=lambda act: act.at_s)


def _drawn_kinds(draw: random.Random, options: Options) -> Sequence[Disorder]:
    if options.short:
        return draw.sample(_SHORT_ROUND, k=len(_SHORT_ROUND))
    rounds = max(1, round(options.seconds / (3.5 * len(_ROUND))))
    return [what for _ in range(rounds) for what in draw.sample(_ROUND, k=len(_ROUND))]


def _act(draw: random.Random, options: Options, at_s: float, what: Disorder) -> Act:
    lasting = {
        "freeze": options.lease_s * draw.uniform(1.2, 1.8),
        "freeze shortly": options.lease_s * draw.uniform(0.2, 0.6),
        "cut": draw.uniform(0.3, 2.5),
        "black hole": draw.uniform(0.5, options.lease_s * 1.5),
        "kill a worker": draw.uniform(0.0, 2.0),
        "restart the broker": draw.uniform(0.2, 2.0),
    }
    everyone = (*PLACES, PRODUCER) if what in ("cut", "drop", "black hole") else PLACES
    return Act(
        at_s=at_s + draw.uniform(0.0, 1.0),
        what=what,
        place=draw.choice(everyone),
        lasts_s=lasting.get(what, 0.0),
        luck=draw.random(),
    )
