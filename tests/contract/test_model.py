"""Batches of programs, made by Hypothesis: what happens on a target is what the reference model says."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from taskbridge import Bridge, DeadLetter
from taskbridge.contract import model
from taskbridge.contract.environment import Environment, EnvironmentSpec
from taskbridge.contract.harness import Harness
from taskbridge.contract.pace import Pace
from taskbridge.contract.probe import Record, Records
from taskbridge.contract.program import ASK, DISCARD, ERRORS, POLICIES, RETURN, Plan, Step, ask, fail
from taskbridge.contract.suite import PATIENCE_S
from taskbridge.contract.target import ON_TIME_S, Target
from taskbridge.contract.tasks import PROBE_FILE, QUEUES, Tasks

IN_CI = bool(os.environ.get("CI"))
LONGEST_S = 1.2

durations = st.sampled_from((0.0, 0.05, 0.4, 1.0, LONGEST_S))
steps = st.one_of(
    st.just(RETURN),
    st.just(ASK),
    st.just(DISCARD),
    *[st.builds(fail, st.sampled_from(tuple(ERRORS)))] * 3,  # the most telling ones come most often
    st.builds(ask, durations),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    policy = draw(st.sampled_from(tuple(POLICIES)))
    program = draw(st.lists(steps, min_size=1, max_size=4))
    if POLICIES[policy].max_attempts is None:
        program.append(RETURN)
    return Plan(
        steps=tuple(program),
        policy=policy,
        queue=draw(st.sampled_from((None, "vip", "left"))),
        priority=draw(st.sampled_from((None, "low", "normal", "high", "critical"))),
        delay_s=draw(durations),
        headers=draw(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=2)),
    )


batches = st.lists(plans(), min_size=1, max_size=12)


class Virtual:
    """A bridge whose clock jumps: the longest delays are over at once. In between it goes on as all clocks do."""

    def __init__(self, folder: Path) -> None:
        self.began = time.monotonic()
        self.bridge = Bridge("inline://?threads=0", default_queue=QUEUES[0], queues=QUEUES)
        self.tasks = Tasks(self.bridge, folder)
        self.records = Records(folder / PROBE_FILE)

    def send(self, plan: Plan) -> tuple[str, float]:
        task = self.tasks.programs[plan.policy].using(
            queue=plan.queue, priority=plan.priority, expires=plan.expires_s, headers=plan.headers
        )
        before = self.bridge.now()
        if plan.delay_s:
            return task.schedule(plan.delay_s, plan.plain_steps()).id, before
        return task.send(plan.plain_steps()).id, before

    def latest_s(self) -> Callable[[float], float]:
        """Return the latest start by its delay: what all has taken so far is time that passed on its clock, too."""
        took_s = time.monotonic() - self.began
        return lambda delay_s: delay_s + ON_TIME_S + took_s

    def seen(self, message_id: str, sent_at: float) -> model.Seen:
        letters = tuple(letter for letter in self.bridge.dead_letters() if letter.id == message_id)
        return model.Seen(sent_at=sent_at, records=tuple(self.records.of(message_id)), letters=letters)


def run_virtually(batch: list[Plan]) -> list[str]:
    """Return in what a batch on the virtual clock differs from the model."""
    with tempfile.TemporaryDirectory() as folder:
        virtual = Virtual(Path(folder))
        sent = [(plan, *virtual.send(plan)) for plan in batch]
        virtual.bridge.run_until_idle()
        assert not virtual.bridge.counts().delayed
        latest_s = virtual.latest_s()
        return [
            difference
            for plan, message_id, sent_at in sent
            for difference in model.differences(
                plan, model.expected(plan, message_id), virtual.seen(message_id, sent_at), latest_s=latest_s
            )
        ]


@settings(deadline=None, derandomize=IN_CI, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(batches)
def test_batches_go_as_the_model_says(batch: list[Plan]) -> None:
    assert run_virtually(batch) == []


@settings(deadline=None, derandomize=IN_CI, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(plans(), st.sampled_from((0.3, 2.0, 100.0, 10_000.0)), st.sampled_from((0.0, 50.0, 5000.0, 80_000.0)))
def test_expiry_goes_as_the_model_says(plan: Plan, expires_s: float, delay_s: float) -> None:
    long = Step(outcome="retry", after_s=delay_s + 20)
    expiring = replace(plan, steps=(long, *plan.steps), delay_s=delay_s, expires_s=expires_s)
    assume(all(abs(due_s - expires_s) > 5 * ON_TIME_S for due_s in (delay_s, 2 * delay_s + 20)))
    assert run_virtually([expiring]) == []


SPEC = EnvironmentSpec(name="model", workers=1, threads=8, grace_s=4)


@pytest.fixture(scope="session")
def environment(target_url: str) -> Iterator[Environment]:
    with Environment(Target.of(target_url), SPEC, patience_s=PATIENCE_S, pace=Pace.of_this_run()) as environment:
        yield environment


# Shrinking would cost seconds a try here; what fails here and not on the virtual clock is not about the batch's size.
@settings(
    deadline=None,
    derandomize=True,
    max_examples=2,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(batch=st.lists(plans(), min_size=30, max_size=40))
def test_batches_go_as_the_model_says_on_every_target(environment: Environment, batch: list[Plan]) -> None:
    Harness(environment).run(batch)


# That the comparison itself can fail: a true story, told wrongly in each way, differs.

STORY = Plan(steps=(fail("TransientError"), fail()), policy="anything", delay_s=0.4, priority="high")


def told(change: Callable[[model.Seen], model.Seen]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        virtual = Virtual(Path(folder))
        message_id, sent_at = virtual.send(STORY)
        virtual.bridge.run_until_idle()
        seen = virtual.seen(message_id, sent_at)
        trace = model.expected(STORY, message_id)
        return model.differences(STORY, trace, change(seen), latest_s=virtual.latest_s())


def without(kind: str, attempt: int) -> Callable[[model.Seen], model.Seen]:
    def change(seen: model.Seen) -> model.Seen:
        kept = [record for record in seen.records if (record.kind, record.attempt) != (kind, attempt)]
        return replace(seen, records=tuple(kept))

    return change


def twice(kind: str, attempt: int) -> Callable[[model.Seen], model.Seen]:
    def change(seen: model.Seen) -> model.Seen:
        again = [record for record in seen.records if (record.kind, record.attempt) == (kind, attempt)]
        return replace(seen, records=(*seen.records, *again))

    return change


def otherwise(kind: str, attempt: int, change: Callable[[Record], Record]) -> Callable[[model.Seen], model.Seen]:
    def change_all(seen: model.Seen) -> model.Seen:
        records = [
            change(record) if (record.kind, record.attempt) == (kind, attempt) else record for record in seen.records
        ]
        return replace(seen, records=tuple(records))

    return change_all


def moved(by_s: float) -> Callable[[Record], Record]:
    return lambda record: replace(record, at=record.at + by_s)


def early(attempt: int) -> Callable[[model.Seen], model.Seen]:
    """Return what makes an attempt start a millisecond before its delay is over."""

    def change(seen: model.Seen) -> model.Seen:
        before = {record.kind: record for record in seen.records if record.attempt == attempt - 1}
        due = seen.sent_at + STORY.delay_s if attempt == 1 else before["end"].at + before["retrying"].data["delay_s"]
        return otherwise("start", attempt, lambda record: replace(record, at=due - 0.001))(seen)

    return change


def with_data(**data: object) -> Callable[[Record], Record]:
    return lambda record: replace(record, data={**record.data, **data})


def letters(change: Callable[[DeadLetter], tuple[DeadLetter, ...]]) -> Callable[[model.Seen], model.Seen]:
    return lambda seen: replace(seen, letters=change(seen.letters[0]))


WRONG_STORIES: dict[str, Callable[[model.Seen], model.Seen]] = {
    "a start is missing": without("start", 3),
    "it started once more": twice("start", 3),
    "an end is missing": without("end", 1),
    "the first start is early": early(1),
    "a retry is a little early": early(2),
    "a retry is late": otherwise("start", 3, moved(3600.0)),
    "a delay is another": otherwise("retrying", 1, with_data(delay_s=0.07)),
    "a run ended otherwise": otherwise("end", 2, with_data(ending="returned")),
    "a verdict is missing": without("retrying", 2),
    "the dead hook is missing": without("dead", 3),
    "the dead hook came twice": twice("dead", 3),
    "it was discarded too": otherwise("retrying", 2, lambda record: replace(record, kind="discarded")),
    "the reason is another": otherwise("dead", 3, with_data(reason="gave_up")),
    "a hook before a run is missing": without("before_run", 2),
    "a hook before sending is missing": without("before_send", 1),
    "there is no letter": letters(lambda letter: ()),
    "there are two letters": letters(lambda letter: (letter, letter)),
    "the letter has another reason": letters(lambda letter: (replace(letter, reason="gave_up"),)),
    "the letter has no error": letters(lambda letter: (replace(letter, error=None),)),
}


@pytest.mark.parametrize("story", WRONG_STORIES)
def test_a_wrong_story_differs_from_the_model(story: str) -> None:
    assert told(WRONG_STORIES[story]) != []


def test_the_true_story_does_not_differ_from_the_model() -> None:
    assert told(lambda seen: seen) == []


def test_a_plan_that_never_ends_has_no_trace() -> None:
    with pytest.raises(ValueError, match="never ends"):
        model.expected(Plan(steps=(fail(),), policy="unlimited"), "some id")
