"""Where taskbridge's classes are meant to differ from those that a suite was written for; each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from tests.peers_suites.running import Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A difference that is intended.

    Attributes:
        suites: A glob of names of suites.
        tests: Globs of tests, by class and name.
        reason: Why, for the page.
    """

    suites: str
    tests: Sequence[str]
    reason: str

    def covers(self, suite: str, test: str) -> bool:
        """Return whether it is about this test of this suite."""
        return fnmatchcase(suite, self.suites) and any(fnmatchcase(test, f"*{each}") for each in self.tests)


DIFFERENCES: Final[Sequence[Difference]] = (
    Difference(
        suites="dramatiq-memory",
        tests=(
            "::test_actors_can_prioritize_work",
            "::test_stub_broker_respects_prefetch",
            "::test_workers_process_messages_in_order",
        ),
        reason="They have a worker prefetch several messages for each thread. Here it takes a message only for a "
        "thread that is free (rule A6), so an actor's `priority`, which orders those, has nothing to order.",
    ),
    Difference(
        suites="dramatiq-memory",
        tests=("::test_exception_from_actor_doesnt_leak",),
        reason="It replaces a method of `StubBroker`'s private message class. In memory, a message that failed keeps "
        "its exception, so that `broker.join` raises it; `flush_all` lets go of it.",
    ),
    Difference(
        suites="dramatiq-redis",
        tests=(
            "::test_redis_consumer_ack_can_retry_on_connection_error",
            "::test_redis_consumer_nack_can_retry_on_connection_error",
            "::test_redis_consumer_nack_does_not_raise_on_missing_id",
            "::test_redis_join_race_condition",
        ),
        reason="They use private parts of Dramatiq's consumer, or count its sets of messages in hand. Here a worker "
        "holds messages on lease (rule A3), and an acknowledgement that Redis did not take is sent again.",
    ),
    Difference(
        suites="dramatiq-rabbitmq",
        tests=(
            "::test_rabbitmq_broker_stops_retrying_declaring_queues_when_max_attempts_reached",
            "::test_rabbitmq_broker_retries_declaring_queues_when_connection_related_errors_occur",
            "::test_rabbitmq_consumers_ignore_unknown_messages_in_ack_and_nack",
        ),
        reason="They replace a private method of the broker, by which it does not declare queues here, or hand a "
        "consumer a message that is none.",
    ),
    Difference(
        suites="dramatiq-rabbitmq",
        tests=(
            "::test_rabbitmq_broker_can_enqueue_messages_with_priority",
            "::test_rabbitmq_messages_belonging_to_missing_actors_are_rejected",
        ),
        reason="Queues are declared with four levels of priority (rule P1), so a `broker_priority` above 3 is 3. The "
        "second test's queue was declared with ten before, by a broker of Dramatiq's.",
    ),
    Difference(
        suites="dramatiq-rabbitmq",
        tests=("::test_rabbitmq_messages_that_failed_to_decode_are_rejected",),
        reason="Bytes that can't be read are a dead letter of taskbridge's (rule Q7), and not in Dramatiq's `.XQ`.",
    ),
    Difference(
        suites="dramatiq-rabbitmq",
        tests=("::test_rabbitmq_queues_only_contains_canonical_name",),
        reason="It expects a broker without queues, and a bridge's has the known ones (rule Q2).",
    ),
    Difference(
        suites="kombu-redis",
        tests=("::test_failed_credentials",),
        reason="It names other credentials, and here the connection is always that of the bridge's URL.",
    ),
    Difference(
        suites="kombu-redis",
        tests=(
            "::test_event_loop_consumes_after_connection_reconnect*",
            "::test_failed_health_check_raises_connection_error",
            "test_RedisSubclientHealthCheck::*",
            "test_RedisBrpopHealthCheck::*",
            "::test_fanout_is_deferred_until_flush*",
        ),
        reason="They use private connections of a channel of kombu's (`client`, `subclient`, `pool`). Here the queues "
        "have connections of their own, whose loss the contract tries.",
    ),
    Difference(
        suites="kombu-redis",
        tests=("test_RedisRestore*::*",),
        reason="They look into kombu's hash of unacknowledged messages and its visibility timeout. Here leases stand "
        "in their place (rules A2, A3 and A8).",
    ),
    Difference(
        suites="kombu-redis",
        tests=("test_RedisQueueExpiration::*",),
        reason="A queue's `expires` is ignored on Redis: a bridge's queues don't expire.",
    ),
    Difference(
        suites="kombu-redis",
        tests=("test_RedisBaseExchangeTypes::test_fanout*",),
        reason="What is sent to an exchange of the kind `fanout` reaches who listens at that moment: it is there for "
        "Celery's remote control and events alone.",
    ),
    Difference(
        suites="kombu-redis",
        tests=("test_RedisPriority::test_publish_requeue_consume*",),
        reason="A message that is requeued is the next one of its priority, not the last.",
    ),
    Difference(
        suites="celery-rabbitmq",
        tests=("test_tasks::test_expired",),
        reason="Celery also hands a task's `expires` to RabbitMQ, which drops what expires in its queue, and nobody "
        "is told. Celery's worker has fetched such a message ahead; here it takes only what it has slots for "
        "(rule A6).",
    ),
    Difference(
        suites="celery-*",
        tests=("test_Inspect::test_active_queues",),
        reason="It expects the queue `celery`. A bridge's queues have names that begin with its namespace (rule Q5).",
    ),
    Difference(
        suites="celery-*",
        tests=("test_Inspect::test_revoked", "test_tasks::test_revoked*"),
        reason="They revoke tasks by remote control. A worker refuses that, unless `remote_control` is set (rule I5).",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A suite's two runs beside one another.

    Attributes:
        stock: How the tests ended as they are.
        ours: How they ended on taskbridge's classes.
    """

    suite: str
    stock: Mapping[str, Outcome]
    ours: Mapping[str, Outcome]

    def worse(self) -> list[str]:
        """Return the tests that pass as they are, and not on taskbridge's classes."""
        passed = [name for name, outcome in self.stock.items() if outcome.ending == "passed"]
        return [name for name in passed if name not in self.ours or self.ours[name].ending != "passed"]

    def better(self) -> list[str]:
        """Return the tests that fail as they are, and pass on taskbridge's classes."""
        failed = [name for name, outcome in self.stock.items() if outcome.ending == "failed"]
        return [name for name in failed if name in self.ours and self.ours[name].ending == "passed"]

    def unexplained(self) -> list[str]:
        """Return what is worse, and is no difference that is intended."""
        return [name for name in self.worse() if reason_of(self.suite, name) is None]


def reason_of(suite: str, test: str) -> Difference | None:
    """Return the difference that is about a test; None if none is."""
    return next((each for each in DIFFERENCES if each.covers(suite, test)), None)
