"""What of a RabbitMQ server's queues and policies puts messages at risk.

How queues are declared is asked over AMQP. What operators' policies add to them only the management API tells: of a
time to live or a limit on length, the lower one of policy and argument applies, whatever a queue was declared with
(RabbitMQ's documentation of policies). What the API says of a queue itself is older than the queue for some seconds.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from pika import spec

from taskbridge.brokers.base import Remark
from taskbridge.brokers.rabbitmq.connection import ClientError
from taskbridge.brokers.rabbitmq.publication import Encoder
from taskbridge.brokers.rabbitmq.topology import LONGEST_S
from taskbridge.failures import clipped
from taskbridge.logs import escaped
from taskbridge.message import DeadLetter

_LOST: Final = "what is more is dropped, and so lost"
_HARM: Final = {
    "message-ttl": "messages vanish after so many ms, and delayed ones run early",
    "expires": "a queue that nobody uses for so many ms is deleted with its messages",
    "max-length": _LOST,
    "max-length-bytes": _LOST,
    "delivery-limit": "a message that came back so often is dropped, and so lost",
}
_SHOWN: Final = 3


def refusals(declare: Callable[[], object]) -> Iterator[Remark]:
    """Declare something, and yield what the server says against that."""
    try:
        declare()
    except ClientError as exc:
        if not isinstance(exc.__cause__, ClientError):  # that was no refusal
            raise
        yield Remark("queues", "failed", str(exc))


def policies_on(
    queues: Mapping[str, Mapping[str, Any]],
    encoder: Encoder,
    parameters: Any,
    *,
    management: str | None,
    timeout_s: float,
) -> Iterator[Remark]:
    """Yield what is to be said of policies for an engine's queues (arguments by name), and for the encoder's own.

    `parameters` are pika's, of the host whose management API is asked unless another URL is given.
    """
    levels = encoder.parked(b"", LONGEST_S).destination
    letters = encoder.letter(DeadLetter(message=None, reason="", died_at=0.0)).destination
    calls = [call for each in (levels, letters) for call in each.calls()]
    own = {each.queue: each.arguments for each in calls if isinstance(each, spec.Queue.Declare)}
    if management is None:
        scheme, port = ("http", 15672) if parameters.ssl_options is None else ("https", 15671)
        management = f"{scheme}://{parameters.host}:{port}"
    try:
        policies = [_listed(management, kind, parameters, timeout_s) for kind in ("policies", "operator-policies")]
        found = list(judge({**queues, **own}, policies, letters.name.removesuffix("dead")))
    except Exception as exc:  # refused, silent, no such user there, something else answers, or a pattern in Perl's way
        what = getattr(exc, "pattern", management.rpartition("@")[2])
        why = clipped(escaped(f"{what}: {type(exc).__name__}: {exc}"), 200)
        todo = "name the management API with --management URL, or see `rabbitmqctl list_policies`"
        found = [Remark("policies", "note", f"policies were not looked at ({why}); {todo}")]
    yield from found


def _listed(management: str, kind: str, parameters: Any, timeout_s: float) -> list[dict[str, Any]]:
    """Return the policies of a kind for the virtual host, as the management API lists them."""
    parts, own = urlsplit(management), parameters.credentials
    user, password = getattr(own, "username", ""), getattr(own, "password", "")
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
    api = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/api"
    place = f"{api}/{kind}/{quote(parameters.virtual_host, safe='')}"
    request = Request(place)  # noqa: S310 - whoever starts the command has named it
    request.add_unredirected_header("Authorization", f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}")
    tls = parameters.ssl_options
    context = None if tls is None or parts.scheme != "https" else tls.context
    with urlopen(request, timeout=timeout_s, context=context) as answer:  # noqa: S310
        found: list[dict[str, Any]] = json.load(answer)
    return found


def judge(
    declared: Mapping[str, Mapping[str, Any]], policies: Sequence[Sequence[Mapping[str, Any]]], prefix: str
) -> Iterator[Remark]:
    """Yield what is to be said of policies for queues, which are given by name, with their arguments.

    Of each list of policies, operators' own and others, the one of the highest priority applies to a queue.
    """
    found: defaultdict[tuple[str, Any], list[str]] = defaultdict(list)
    for name, arguments in declared.items():
        plain = {key.removeprefix("x-"): value for key, value in arguments.items()}
        applied = [_applied(each, name, str(plain.get("queue-type"))) for each in policies]
        everything = {key: value for each in (*applied, plain) for key, value in each.items()}
        for key, value in ((key, value) for each in applied for key, value in each.items()):
            if _harms(key, value, everything):
                found[key, value].append(name)
    for (key, value), names in found.items():
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        text = f"a policy sets {key}={value} for {shown}: {_HARM[key]}; let its pattern leave out {prefix!r}"
        yield Remark("policies", "failed", text)
    if not found:
        yield Remark("policies", "ok", "none that harms")


def _applied(policies: Sequence[Mapping[str, Any]], name: str, kind: str) -> Mapping[str, Any]:
    """Return the definition of the policy that applies to a queue of a type; nothing if none does."""
    kinds = ("all", "queues", f"{kind}_queues")
    fit = [each for each in policies if each["apply-to"] in kinds and re.search(each["pattern"], name)]
    chosen: Mapping[str, Any] = max(fit, key=lambda each: int(each["priority"]), default={"definition": {}})
    definition: Mapping[str, Any] = chosen["definition"]
    return definition


def _harms(key: str, value: Any, everything: Mapping[str, Any]) -> bool:
    """Return whether part of a policy harms messages in a queue, of which `everything` is policies and arguments."""
    if key == "delivery-limit":
        return everything.get("queue-type") == "quorum" and value >= 0  # what is given back counts too
    if _HARM.get(key) == _LOST:  # where a full queue refuses, senders are told
        return not everything.get("overflow", "").startswith("reject-publish")
    return key in _HARM
