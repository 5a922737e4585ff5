"""SPEC section 4: keywords over environment over defaults, and errors that name the key."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from typing import Any

import pytest

from taskbridge import Bridge, Queue, RetryPolicy, SettingsError
from taskbridge.routing import Route
from taskbridge.settings import load, parse_url


def test_keywords_win_over_the_environment_and_it_over_defaults() -> None:
    environ = {
        "TASKBRIDGE_URL": "celery+redis://a",
        "TASKBRIDGE_LEASE": "7",
        "TASKBRIDGE_NAMESPACE": "env",
        "OTHER": "x",
    }

    settings, chosen = load({"url": "dramatiq+redis://b:1/2", "namespace": None}, environ=environ)

    assert chosen
    assert settings.url.target == "dramatiq+redis"
    assert settings.url.broker_url == "redis://b:1/2"
    assert settings.namespace == "env"
    assert settings.lease_s == 7.0
    assert settings.grace_s == 25.0


def test_the_environment_holds_lists_with_commas() -> None:
    environ = {
        "TASKBRIDGE_QUEUES": "a, b",
        "TASKBRIDGE_ROUTES": "shop.mail.*=mail, shop.*=shop",
        "TASKBRIDGE_RETRY": "max_attempts=3,min_delay=2,jitter=0",
    }

    settings, chosen = load({}, environ=environ)

    assert not chosen
    assert settings.queues == (Queue("a"), Queue("b"))
    assert settings.routes == (Route("shop.mail.*", "mail"), Route("shop.*", "shop"))
    assert settings.retry == RetryPolicy(max_attempts=3, min_delay=2, jitter=0)


def test_queues_have_the_type_that_is_set_or_their_own() -> None:
    settings, _ = load({"queues": ["a", Queue("b", type="quorum")], "queue_type": "classic"}, environ={})
    environ = {"TASKBRIDGE_QUEUES": "a, b = classic", "TASKBRIDGE_QUEUE_TYPE": "quorum"}
    from_environment, _ = load({}, environ=environ)

    assert [settings.type_of(queue) for queue in ("a", "b", "default")] == ["classic", "quorum", "classic"]
    assert [from_environment.type_of(queue) for queue in ("a", "b", "default")] == ["quorum", "classic", "quorum"]
    assert settings.has_quorum
    assert from_environment.has_quorum
    assert not load({"queues": "a,b"}, environ={})[0].has_quorum
    assert list(Bridge("inline://", queues=["a", Queue("b", type="quorum")]).queues()) == ["default", "a", "b"]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("url", "celery", "celery\\+redis://"),
        ("url", "celry+redis://h", "did you mean 'celery'"),
        ("url", "celery+reddis://h", "did you mean 'redis'"),
        ("url", "redis://h", r"name the engine too: celery\+redis://"),
        ("url", "celery+redis://", "host is missing"),
        ("url", "celery+redis://h/x", "database 'x'"),
        ("url", "celery+redis://h:99999", "port"),
        ("url", "celery+amqp://h:x", "port"),
        ("url", "celery+memory://h", "memory://"),
        ("url", "celery+unix://", "path of the socket"),
        ("url", "inline://h", "takes no host"),
        ("url", "inline://?thread=4", "threads=N"),
        ("url", 5, "text"),
        ("namespace", "a b", "letters"),
        ("default_queue", "a b", "queue name"),
        ("url", "celery+amqp://h1/v;amqp://h2/v", "with commas: amqp://"),
        ("url", "celery+amqp://h1;h2/v", "with commas"),
        ("url", "celery+amqp://h1,/v", "between the commas"),
        ("url", "celery+amqp://h1:1,h2:x/v", "port"),
        ("queues", ["mail.DQ"], "Dramatiq"),
        ("queues", "a=lazy", "'classic' or 'quorum', not 'lazy'"),
        ("queues", "a=quorum,a=classic", "'a' has two types"),
        ("queue_type", "lazy", "'classic' or 'quorum', not 'lazy'"),
        ("routes", ["shop"], "look like"),
        ("routes", [("shop.*", "a b")], "queue name"),
        ("retry", 5, "RetryPolicy"),
        ("retry", "max_retries=5", "max_retries"),
        ("send_timeout", 0, "more than 0"),
        ("send_timeout", "soon", "seconds"),
        ("lease", -1, "at least 0"),
        ("grace", float("inf"), "finite"),
        ("store", "postgres://h", "redis://"),
        ("max_message_bytes", "big", "whole number"),
        ("commit", 5, "commit names a database, several, or 'outbox', not 5"),
        ("max_message_bytes", 0, "whole number"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: Any, match: str) -> None:
    with pytest.raises(SettingsError, match=match) as caught:
        load({key: value}, environ={})

    assert caught.value.key == key


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match="did you mean 'namespace'"):
        load({"name_space": "x"}, environ={})
    with pytest.raises(SettingsError, match=r"TASKBRIDGE_SEND_TIME_OUT.*did you mean 'send_timeout'"):
        load({}, environ={"TASKBRIDGE_SEND_TIME_OUT": "5"})


@pytest.mark.parametrize(
    "url",
    [
        "celery+redis://u:s3cret@h:99999/0",
        "celery+amqp://u:s3cret@h:x//",
        "celery+redis://u:s3cret@h/x?password=s3cret",
        "celery+redis://:a/s3cret@h/0",
        "celery+redis://u:12/s3cret@h/0",
        "celery+redis://:s3cret?t@h/0",
        "celery+redis://u:s3cret\uff03x@h/0",
        "celery+redis://u:s3cret[x@h/0",
        "celery+redis://u:1234#s3cret@h/0",
        "celery+amqp://u:1234#s3cret@h/",
        "celery+amqp://u:s3cret@h1:1,h2:x/v",
    ],
)
def test_credentials_are_in_no_error(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"url": url}, environ={})

    assert "s3cret" not in "".join(traceback.format_exception(caught.value)).partition("SettingsError")[2]
    with pytest.raises(SettingsError) as caught:
        load({"store": url.replace("celery+", "")}, environ={})

    assert "s3cret" not in str(caught.value)


def test_credentials_are_in_no_repr() -> None:
    bridge = Bridge("celery+redis://u:s3cret@h:1/0?password=s3cret")

    assert "s3cret" not in repr(bridge) + repr(bridge.settings) + repr(bridge.settings.url)
    assert "h:1" in repr(bridge)


@pytest.mark.parametrize(
    ("url", "broker_url"),
    [
        ("celery+amqp://h", "amqp://h/%2F"),
        ("celery+amqp://h/", "amqp://h/%2F"),
        ("celery+amqp://h//", "amqp://h/%2F"),
        ("celery+amqp://h/%2F", "amqp://h/%2F"),
        ("celery+amqps://u:p@h:1/shop", "amqps://u:p@h:1/shop"),
        ("celery+amqp://u:p@h1:1,h2", "amqp://u:p@h1:1,h2/%2F"),
        ("dramatiq+redis://h", "redis://h/0"),
        ("dramatiq+rediss://:p@h:1/3", "rediss://:p@h:1/3"),
        ("dramatiq+unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
    ],
)
def test_urls_are_made_alike_for_every_client(url: str, broker_url: str) -> None:
    assert parse_url(url).broker_url == broker_url


def test_without_a_url_there_is_one_warning() -> None:
    # In a process of its own: other threads that catch warnings would take it (`warnings.catch_warnings` is for one).
    script = "import taskbridge; print(taskbridge.Bridge().settings.url.target)"
    env = {name: value for name, value in os.environ.items() if not name.startswith("TASKBRIDGE_")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "inline\n"
    assert done.stderr.count("RuntimeWarning: no url is set (TASKBRIDGE_URL") == 1
