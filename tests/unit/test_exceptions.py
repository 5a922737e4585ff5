"""Errors come through a pickle and a copy as they were: pools of processes send them."""

from __future__ import annotations

import copy
import pickle

import pytest

from taskbridge import exceptions as e
from taskbridge.retry import Discard, Retry

_AWAY = e.BrokerUnavailable("away", maybe_taken=True)
ERRORS = [
    Discard("no"),
    Retry(after=5, reason="later"),
    e.SettingsError("url", "wrong"),
    e.DeclarationError("no task"),
    e.UnsupportedError("A2", "inline", "no"),
    e.NotInstalledError("engine", "celery"),
    e.NoCurrentTaskError("none"),
    e.EncodeError("args[0]", "no"),
    e.DecodeError("no"),
    e.NewerFormError("form 9"),
    e.UnknownQueue("vip", ["default"]),
    e.UnknownSchedule("nightly", []),
    e.MessageTooLarge("t", 9, 8, headers=True),
    _AWAY,
    e.StoreNotReady("old", url="sqlite:///x"),
    e.PartlyPublished(_AWAY, accepted=frozenset({0}), unsure=frozenset({1})),
    e.SendError("away", sent=["a"], unsent=["b"], maybe_taken=True),
    e.UniqueConflict(id="m", task="t", state="queued"),
    e.IdempotencyConflict(id="m", task="t"),
    e.NoSuchDeadLetter("m"),
    e.StoreUnavailable("away", maybe_taken=True),
    e.NoSuchRecord("m"),
    e.ResultTimeout("m", "queued", "in time"),
    e.TaskFailed(id="m", task="t", reason="exhausted", type="ValueError", message="no", traceback=""),
    e.TaskCancelled(id="m", task="t"),
    e.TaskDiscarded(id="m", task="t", reason="expired"),
    e.ResultNotEncodable(id="m", task="t", problem="too large"),
    e.ResultInTask("t"),
    e.TimeLimitExceeded("it ran longer than 1 s"),
    e.WorkerLost("gone"),
]


def test_no_error_is_left_out() -> None:
    bases = {e.TaskBridgeError, e.CodecError}
    kinds = {kind for kind in vars(e).values() if isinstance(kind, type) and issubclass(kind, e.TaskBridgeError)}
    assert kinds - bases == {type(error) for error in ERRORS} - {Discard, Retry}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_through_as_it_was(error: Exception) -> None:
    for came in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(came), str(came), vars(came)) == (type(error), str(error), vars(error))
