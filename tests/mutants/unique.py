"""U and OB, broken."""

# What is put in the place of others' functions takes and returns whatever these do.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

from taskbridge import Unique
from tests.mutants.table import mutant, put

_CLAIMS = "taskbridge.stores.claims"
_TRANSITIONS = "taskbridge.stores.transitions"
_RECORDS = "taskbridge.stores.records"
_SENDING = "taskbridge.sending"
_OUTBOX = "taskbridge.outbox"
_SETTLE = "taskbridge.engines.settle"
_UNIQUE = "taskbridge.unique"


@mutant("U1", "of_many_senders_one_makes_the_message")
def whoever_comes_later_takes_the_key() -> None:
    """Nobody looks whether the message that a key points to has ended."""
    put(_CLAIMS, "_live", lambda _: lambda row, replays: None)


@mutant("U1", "who_cancels_and_sends_again_has_no_two_runs")
def a_run_begins_before_its_start_is_recorded() -> None:
    """Who cancels a message whose run has just begun does not find it running, and frees its key."""
    put(_SETTLE, "_begin_in_order", lambda _: lambda task, records, message: message)


@mutant("U1", "unique_tasks_need_a_store")
def without_a_store_nothing_is_unique() -> None:
    """Without a store, what is to be unique is sent like all else."""
    put(_SENDING, "Sending._keys", lambda _: lambda self, way, call, args_json, form: ("", "", form))


@mutant("U2", "whatever_ends_a_message_frees_its_key")
def only_success_frees_a_key() -> None:
    """A key is held as long as its message has not succeeded."""
    put(_CLAIMS, "FINAL", lambda _: frozenset({"done"}))
    put(_TRANSITIONS, "released", lambda _: lambda key, pointer, me: ([], []))


@mutant("U2", "a_killed_worker_frees_the_key", "dramatiq+redis")
def a_lost_run_keeps_its_key() -> None:
    """A message that died with its worker leaves a record that is not final."""

    def make(record: Any) -> Any:
        def deaf(task: Any, message: Any, verdict: Any) -> Any:
            is_lost = type(getattr(verdict, "error", None)).__name__ == "WorkerLost"
            return None if is_lost else record(task, message, verdict)

        return deaf

    put(_SETTLE, "_record", make)


@mutant("U3", "whatever_ends_a_message_frees_its_key")
def a_retry_frees_the_key() -> None:
    """A key is free between two attempts."""
    put(_CLAIMS, "FINAL", lambda final: final | {"retrying", "running"})


@mutant("U3", "a_replay_takes_the_key")
def a_replay_asks_nobody() -> None:
    """A replayed message runs beside the one that holds its key."""
    put("taskbridge.message", "Message.replayed", lambda stock: lambda self, now: replace(stock(self, now), unique=""))


@mutant("U4", "a_key_until_the_start_is_free_as_the_task_runs")
def every_key_is_held_to_the_end() -> None:
    """Nobody looks at until="start"."""
    put(_UNIQUE, "TO_START", lambda _: "e")


@mutant("U4", "a_conflict_is_told_or_replaced")
def nobody_is_told_of_a_conflict() -> None:
    """on_conflict="raise" is as "skip"."""
    put(_SENDING, "_conflict", lambda _: lambda way, message, outcome: None)


@mutant("U4", "a_conflict_is_told_or_replaced")
def what_is_replaced_is_not_cancelled() -> None:
    """A message is replaced by another one, and is run all the same."""

    def make(plan: Any) -> Any:
        def beside(self: Any, intent: Any, pointer: Any, found: Any) -> Any:
            is_replacing = intent.unique is not None and intent.unique.on_conflict == "replace"
            return self._claiming(intent, pointer, None) if is_replacing else plan(self, intent, pointer, found)

        return beside

    put(_CLAIMS, "Claims._plan", make)


@mutant("U4", "one_follows_with_the_latest_arguments")
def what_follows_keeps_its_first_arguments() -> None:
    """What is to follow starts with the arguments of the first who sent it."""

    def make(following: Any) -> Any:
        def first(self: Any, intent: Any, pointer: Any, text: Any, holder: Any, follower: Any) -> Any:
            commit, outcome = following(self, intent, pointer, text, holder, follower)
            return (commit if follower is None else None), outcome

        return first

    put(_CLAIMS, "Claims._following", make)


@mutant("U4", "one_follows_with_the_latest_arguments")
def what_follows_does_not_wait() -> None:
    """What is to follow is published at once."""
    put(_CLAIMS, "Claims.is_next", lambda _: lambda self, message, *, timeout_s: True)
    put(_CLAIMS, "_SWEEP_S", lambda _: 0.0)


@mutant("U5", "a_debounced_message_starts_after_the_latest_send")
def a_start_is_not_moved() -> None:
    """A debounced message starts so long after the first send."""
    put(_TRANSITIONS, "wait_s", lambda _: lambda row, message, now: 0.0)


@mutant("U5", "a_debounced_message_starts_after_the_latest_send")
def a_start_is_moved_for_ever() -> None:
    """Nobody looks at at_most."""

    def make(moving: Any) -> Any:
        return lambda self, intent, unique, *given: moving(self, intent, Unique(debounce=unique.debounce_s), *given)

    put(_CLAIMS, "Claims._moving", make)


@mutant("U5", "a_debounced_message_starts_after_the_latest_send")
def a_retry_has_the_first_arguments() -> None:
    """A debounced message is tried again with the arguments of the first send."""

    def make(next_attempt: Any) -> Any:
        first: dict[str, tuple[str, str]] = {}

        def forgetful(self: Any, error: Any) -> Any:
            args = first.get(self.id, (self.args_json, self.kwargs_json))
            return replace(next_attempt(self, error), args_json=args[0], kwargs_json=args[1], plain=None)

        def remembering(begin: Any) -> Any:
            def begins(task: Any, records: Any, message: Any) -> Any:
                first.setdefault(message.id, (message.args_json, message.kwargs_json))
                return begin(task, records, message) if message.attempt == 1 else message

            return begins

        put(_SETTLE, "_begin_in_order", remembering)
        return forgetful

    put("taskbridge.message", "Message.next_attempt", make)


@mutant("U6", "a_chosen_id_is_one_message")
def an_id_is_not_asked_for() -> None:
    """A message of an id that is there already is sent again."""
    put(_SENDING, "Sending._keys", lambda _: lambda self, way, call, args_json, form: ("", "", form))


@mutant("U6", "a_chosen_id_is_one_message")
def other_arguments_are_the_same_message() -> None:
    """Nobody looks whether a chosen id is that of the same call."""
    put(_SENDING, "digest_of", lambda _: lambda call: "0" * 32)


@mutant("U7", "of_many_senders_one_makes_the_message")
def many_are_sent_as_if_they_were_not_unique() -> None:
    """send_many looks at no key."""

    def make(send_many: Any) -> Any:
        def blind(self: Any, calls: Any, **options: Any) -> Any:
            keys = self._keys
            self._keys = lambda way, call, args_json, form: ("", "", form)
            try:
                return send_many(self, calls, **options)
            finally:
                self._keys = keys

        return blind

    put(_SENDING, "Sending.send_many", make)


@mutant("U8", "what_is_in_the_outbox_is_published", "celery+memory")
def the_outbox_is_written_after_the_key() -> None:
    """The key is taken first, and the outbox is not written if the sender ends then."""

    def make(claiming: Any) -> Any:
        def apart(self: Any, *given: Any) -> Any:
            commit, outcome = claiming(self, *given)
            return replace(commit, entries=()), outcome

        return apart

    put(_CLAIMS, "Claims._claiming", make)


@mutant("U8", "a_killed_sender_leaves_nothing_behind", "dramatiq+redis")
def a_key_is_taken_before_its_message_is_published() -> None:
    """On Redis the key is taken in one act, and the message published in another."""

    def make(commit: Any) -> Any:
        def in_two_acts(self: Any, commits: Any, *, timeout_s: float) -> Any:
            if not any(each.commands for each in commits):
                return commit(self, commits, timeout_s=timeout_s)
            done = self.commit([replace(each, commands=()) for each in commits], timeout_s=timeout_s)
            rest = [replace(each, writes=()) for each, is_done in zip(commits, done, strict=True) if is_done]
            commit(self, rest, timeout_s=timeout_s)
            return done

        return in_two_acts

    put("taskbridge.stores.redis.backend", "RedisBackend.commit", make)


@mutant("U8", "a_killed_sender_leaves_nothing_behind", "celery+amqp")
def an_entry_is_removed_before_its_message_is_published() -> None:
    """A sender takes its message out of the outbox, and publishes it then."""

    def make(publish: Any) -> Any:
        def remove_first(self: Any, held: Any, *, timeout_s: float) -> Any:
            self._remove(self._outbox, [each.key for each in held])
            return publish(self, held, timeout_s=timeout_s)

        return remove_first

    put(_OUTBOX, "Relay.publish", make)


@mutant("OB1", "what_is_in_the_outbox_is_published", "celery+memory")
def nobody_looks_into_the_outbox() -> None:
    """Only who has put something in the outbox publishes it."""
    put(_OUTBOX, "Relay.step_store", lambda _: lambda self: 0)


@mutant("OB1", "what_is_published_twice_runs_once", "dramatiq+memory")
def what_is_relayed_is_not_suspect() -> None:
    """A message that may have been published twice does not say so."""
    put("taskbridge.stores.entries", "Held.dumps", lambda dumps: lambda self: dumps(_plain(self)))

    def make(publish: Any) -> Any:
        return lambda self, held, *, timeout_s: publish(self, [_plain(each) for each in held], timeout_s=timeout_s)

    put(_OUTBOX, "Relay.publish", make)


def _plain(held: Any) -> Any:
    return replace(held, message=replace(held.message, relayed=False))
