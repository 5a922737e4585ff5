"""The tasks of the Flask example, on a bridge of their own rather than on the default one."""

import logging

from taskbridge import Bridge, Discard, RetryPolicy, current

bridge = Bridge(namespace="flaskshop", default_queue="shop", routes=[("*.send_*", "email")])
"""Its URL comes from TASKBRIDGE_URL. Making it connects to nothing and imports no engine."""

log = logging.getLogger(__name__)

stock = {"book": 2}
receipts: list[tuple[str, str]] = []


@bridge.task(retry=RetryPolicy(max_attempts=4, min_delay=0.5, give_up_on=KeyError))
def place_order(article: str, quantity: int) -> None:
    if quantity > stock[article]:
        raise Discard(f"only {stock[article]} left")
    stock[article] -= quantity
    send_receipt.using(headers=dict(current().headers)).send(article)


@bridge.task
def send_receipt(article: str) -> None:
    request_id = current().headers.get("request_id", "-")
    receipts.append((request_id, article))
    log.info("receipt sent, request %s", request_id)
