"""L, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.mutants.table import mutant, put

_DEAD = "taskbridge.dead"
_MESSAGE = "taskbridge.message"
_MEMORY = "taskbridge.brokers.memory"


def _replayed_otherwise(make: Any) -> None:
    def making(replayed: Any) -> Any:
        return lambda self, now: make(self, replayed(self, now))

    put(_MESSAGE, "Message.replayed", making)


@mutant("L1", "a_dead_letter_tells_all")
def the_traceback_is_lost() -> None:
    """A dead letter does not tell where the error was raised."""
    put(_DEAD, "entry_of", lambda entry_of: lambda letter: replace(entry_of(letter), traceback=""))


@mutant("L1", "dead_letters_are_found")
def a_reason_finds_all() -> None:
    """Dead letters are not told apart by their reasons."""
    put(_DEAD, "_filter", lambda matches: lambda task, reason, queue: matches(task, None, queue))


@mutant("L1", "dead_letters_are_found")
def a_page_begins_where_the_last_did() -> None:
    """The second page is the first one again."""
    put(_DEAD, "_place_of", lambda _: lambda after: (0.0, ""))


@mutant("L1", "secrets_are_not_shown")
def secrets_are_shown_if_hiding_fails() -> None:
    """If the function that takes secrets out fails, all is shown."""
    put(_DEAD, "_hidden", lambda _: lambda entry, why: entry)


@mutant("L2", "a_replay_starts_again")
def a_replay_goes_on_counting() -> None:
    """A replay is one more attempt."""
    _replayed_otherwise(lambda message, again: replace(again, attempt=message.attempt))


@mutant("L2", "a_replay_starts_again")
def a_replay_is_an_ordinary_message() -> None:
    """A replay goes to its queue with the priority of a message that asked for none."""
    _replayed_otherwise(lambda message, again: replace(again, priority="normal"))


@mutant("L2", "a_replay_of_many_starts_those")
def a_replay_leaves_the_letters() -> None:
    """What is replayed stays dead as well, and is replayed again and again."""

    def make(take_dead: Any) -> Any:
        def leaving(self: Any, decide: Any, **given: Any) -> Any:
            kept = list(self._letters)
            taken = take_dead(self, decide, **given)
            self._letters[:] = kept
            return taken

        return leaving

    put(_MEMORY, "MemoryBroker.take_dead", make)


@mutant("L2", "a_replay_of_many_starts_those")
def a_replay_drops_what_it_takes_out() -> None:
    """What is replayed is no longer dead, and waits nowhere."""
    put(_DEAD, "Taken", lambda taken: lambda **given: taken())


@mutant("L2", "a_staggered_replay_starts_by_and_by")
def a_replay_is_never_staggered() -> None:
    """All messages of a staggered replay start at once."""
    put(_DEAD, "Taken", lambda taken: lambda message=None, delay_s=0.0: taken(message=message))


@mutant("L2", "a_replay_forgets_a_past_expiry")
def a_replay_has_expired() -> None:
    """A replay keeps the expiry that has passed, so that it is discarded."""
    _replayed_otherwise(lambda message, again: replace(again, expires_at=message.expires_at))


@mutant("L3", "what_is_purged_is_gone", "dramatiq+redis")
def dramatiq_keeps_a_copy() -> None:
    """A dead message is among Dramatiq's own dead ones, too."""

    def make(end: Any) -> Any:
        return lambda self, *tags, dead=False: end(self, *tags, dead=True)

    put("taskbridge.engines.redis_leases", "Leases.end", make)


@mutant("L3", "what_is_purged_is_gone")
def a_purge_takes_all() -> None:
    """A purge does not look at the queue."""
    put(_DEAD, "_filter", lambda matches: lambda task, reason, queue: matches(task, reason, None))


@mutant("L3", "what_is_purged_is_gone")
def a_purge_only_says_so() -> None:
    """What is purged is still there."""

    def make(_: Any) -> Any:
        return lambda self, decide, *, ids=None, timeout_s: [
            letter.id for letter in self.dead_letters(ids) if decide(letter)
        ]

    put(_MEMORY, "MemoryBroker.take_dead", make)
