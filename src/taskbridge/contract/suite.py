"""Runs scenarios on a target."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Final, Literal

from taskbridge.contract import cleaning
from taskbridge.contract.environment import Environment, EnvironmentSpec
from taskbridge.contract.failure import ContractFailure, NotIdle
from taskbridge.contract.harness import Harness
from taskbridge.contract.pace import Pace
from taskbridge.contract.registry import Scenario
from taskbridge.contract.stopwatch import Stopwatch
from taskbridge.contract.target import Target

PATIENCE_S: Final = 20.0
"""How long something may take that should happen at once, on a busy machine."""

_GONE_S: Final = 5.0
_LOOK_S: Final = 0.1

PARALLEL: Final = 3
"""How many scenarios with environments of their own run at a time."""

Outcome = Literal["passed", "failed", "crashed", "not applicable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of a scenario on a target.

    Attributes:
        scenario: Its name.
        target: The target's.
        outcome: `failed` if a promise was broken, `crashed` if the scenario itself could not go on.
        seconds: How long it took.
        why: What was expected and what was seen, or why it is not applicable.
        stalled_s: If it was run again: how long the machine had stood still while it failed the first time.
        why_again: And what was seen then.
    """

    scenario: str
    target: str
    outcome: Outcome
    seconds: float = 0.0
    why: str = ""
    stalled_s: float = 0.0
    why_again: str = ""


def run_suite(
    target: Target,
    scenarios: Iterable[Scenario],
    *,
    done: Callable[[Result], None],
    patience_s: float = PATIENCE_S,
    parallel: int = PARALLEL,
    pace: Pace | None = None,
    clean: bool = True,
) -> list[Result]:
    """Run scenarios on a target, those that share an environment side by side, and return what came of them.

    One that fails while the machine stands still (`stopwatch.STALL_S`) proves nothing, and is run once more, alone.

    Args:
        target: The target.
        scenarios: What to run.
        done: Told of each result as it comes, from several threads.
        patience_s: How long something may take that should happen at once.
        parallel: How many scenarios with environments of their own run at a time.
        pace: How fast this machine is; measured now if None.
        clean: Whether to remove from the server what was made there.
    """
    logging.getLogger("taskbridge").addHandler(logging.NullHandler())  # else a worker's log goes to standard error
    suite = _Suite(target, done, patience_s, parallel, Pace.measured() if pace is None else pace)
    try:
        return suite.run(list(scenarios))
    finally:
        if clean:
            cleaning.remove(target, suite.namespaces)


class _Suite:
    def __init__(
        self, target: Target, done: Callable[[Result], None], patience_s: float, parallel: int, pace: Pace
    ) -> None:
        self._target = target
        self._done = done
        self._patience_s = patience_s
        self._parallel = parallel
        self._pace = pace
        self._stalls = Stopwatch()
        self._stalled: list[tuple[Scenario, Result]] = []
        self._lock = threading.Lock()
        self._results: list[Result] = []
        self._free_namespaces: defaultdict[str | None, list[str]] = defaultdict(list)  # by the type of their queues
        self.namespaces: set[str] = set()

    def run(self, scenarios: Sequence[Scenario]) -> list[Result]:
        with self._stalls:
            self._run(scenarios)
            while self._stalled:
                scenario, result = self._stalled.pop()
                self._run_alone(scenario, doubted=result)
        return self._results

    def _run(self, scenarios: Sequence[Scenario]) -> None:
        quiet: list[Scenario] = []
        alone: list[Scenario] = []
        together: defaultdict[EnvironmentSpec, list[Scenario]] = defaultdict(list)
        for scenario in scenarios:
            if reason := scenario.refusal(self._target):
                self._keep(self._result(scenario, "not applicable", why=reason))
            elif scenario.environment.quiet:
                quiet.append(scenario)
            elif scenario.environment.shared:
                together[scenario.environment].append(scenario)
            else:
                alone.append(scenario)
        for scenario in quiet:
            self._run_alone(scenario)
        with ThreadPoolExecutor(self._parallel + len(together), "contract") as pool:
            opened = [threading.Event() for _ in together]
            futures = [
                pool.submit(self._run_together, spec, group, event)
                for (spec, group), event in zip(together.items(), opened, strict=True)
            ]
            try:
                for event in opened:  # first those that run longest; starting everything at once takes longer
                    event.wait()
                futures += [pool.submit(self._run_alone, scenario) for scenario in alone]
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C: only what runs now is waited for, so that its workers are ended
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _run_together(self, spec: EnvironmentSpec, scenarios: Sequence[Scenario], opened: threading.Event) -> None:
        """Run scenarios side by side on one environment; who can't be judged in company is run again alone."""
        unjudged: list[Scenario] = []
        began = time.monotonic()
        try:
            with (
                self._environment(spec) as environment,
                ThreadPoolExecutor(len(scenarios), "contract-scenario") as pool,
            ):
                opened.set()
                results = [*pool.map(self._attempt, scenarios, repeat(environment))]
        except Exception as exc:
            results = [self._result(scenario, *_outcome(exc)) for scenario in scenarios]
        finally:
            opened.set()
        for scenario, result in zip(scenarios, results, strict=True):
            if result is None:
                unjudged.append(scenario)
            else:
                self._keep_or_doubt(scenario, result, began)
        for scenario in unjudged:
            self._run_alone(scenario)

    def _run_alone(self, scenario: Scenario, *, doubted: Result | None = None) -> None:
        """Run a scenario on an environment of its own, perhaps because of a stall the first time."""
        began = time.monotonic()
        try:
            with self._environment(scenario.environment) as environment:
                result = self._attempt(scenario, environment)
                assert result is not None or scenario.environment.shared
        except Exception as exc:
            result = self._result(scenario, *_outcome(exc))
        if result is None:
            result = self._result(scenario, "failed", "the target does not come to rest, though all messages ended")
        result = replace(result, seconds=time.monotonic() - began)
        if doubted is None:
            self._keep_or_doubt(scenario, result, began)
        else:
            self._keep(replace(result, stalled_s=doubted.stalled_s, why_again=doubted.why))

    @contextmanager
    def _environment(self, spec: EnvironmentSpec) -> Generator[Environment]:
        """Open an environment; on RabbitMQ, in the namespace of one that is closed, for each has dozens of queues."""
        with self._lock:
            free = self._free_namespaces[spec.queue_type]
            namespace = free.pop() if free and not spec.new else None
        with Environment(
            self._target, spec, patience_s=self._patience_s, pace=self._pace, namespace=namespace
        ) as environment:
            self.namespaces.add(environment.namespace)
            yield environment
            environment.end_workers()
            if self._target.address.broker == "amqp" and self._is_free(environment):
                with self._lock:
                    free.append(environment.namespace)

    def _is_free(self, environment: Environment) -> bool:
        """Return whether another environment may have a namespace: RabbitMQ knows that the workers are gone."""
        deadline = time.monotonic() + _GONE_S
        while not cleaning.is_deserted(self._target, environment.namespace):
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return environment.is_clean()

    def _attempt(self, scenario: Scenario, environment: Environment) -> Result | None:
        """Run a scenario; return None if others kept the environment from being idle."""
        began = time.monotonic()
        harness = Harness(environment)
        try:
            scenario.run(harness)
        except NotIdle as exc:
            if scenario.environment.shared and not exc.own:
                return None
            outcome, why = _outcome(exc)
        except Exception as exc:
            outcome, why = _outcome(exc)
        else:
            outcome, why = "passed", ""
        finally:
            harness.close()
        return self._result(scenario, outcome, why, seconds=time.monotonic() - began)

    def _result(self, scenario: Scenario, outcome: Outcome, why: str = "", seconds: float = 0.0) -> Result:
        return Result(scenario=scenario.name, target=self._target.name, outcome=outcome, seconds=seconds, why=why)

    def _keep_or_doubt(self, scenario: Scenario, result: Result, began: float) -> None:
        """Keep a result, unless it is a failure on a machine that stood still meanwhile."""
        stalled_s = self._stalls.stalled_s(since=began)
        if stalled_s and result.outcome in ("failed", "crashed"):
            self._stalled.append((scenario, replace(result, stalled_s=stalled_s)))
        else:
            self._keep(result)

    def _keep(self, result: Result) -> None:
        with self._lock:
            self._results.append(result)
        self._done(result)


def _outcome(error: Exception) -> tuple[Outcome, str]:
    if isinstance(error, ContractFailure):
        return "failed", str(error)
    return "crashed", "".join(traceback.format_exception(error))
