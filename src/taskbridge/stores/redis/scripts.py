"""What happens on the Redis server in one step: the scripts in `lua/`, and the keys that they work on.

| key | type | holds |
|---|---|---|
| `{ns}:record:{id}` | hash | a record, see below |
| `{ns}:ended:{id}` | channel | tells that a record became final |
| `{ns}:cancelled` | sorted set | the life of each cancelled message, by a growing number made of the server's time |
| `{ns}:cancelled:until` | sorted set | the same, by the millisecond at which it is forgotten |
| `{ns}:mark:{life}:{attempt}` | string | the worker that started an attempt, or `ended` |
| `{ns}:alive:{worker}` | string | is there as long as the worker counts as alive |
| `{ns}:schedule:{name}` | hash | what is known of a schedule; the claim of an instant is the field `c:{instant}` |

A record's fields: `record`, all that `taskbridge.stores.form` says, as JSON, but for `result`, which is a field of its
own; `life`, how often the message was replayed, if it was; `version`, which grows by each write (a record of a first
life has none as it is made); and `start:{version}`, the starts of runs that were noted since the last write, as JSON. A
start is noted without reading the record, so that nobody waits for it. What it makes of the record is worked out by
whoever reads that next, in the order of the versions.

The scripts decide nothing: they write what was decided about a version, if that is still the version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from taskbridge.brokers.redis.client import Client
from taskbridge.brokers.redis.scripts import Script

Fields = Mapping[str, str | float | None]
"""What is put into a hash; None is left out."""

_FOLDER: Final = Path(__file__).parent / "lua"

CREATE_RECORDS: Final = Script((_FOLDER / "create_records.lua").read_text())
FORGET_RECORDS: Final = Script((_FOLDER / "forget_records.lua").read_text())
NOTE_START: Final = Script((_FOLDER / "note_start.lua").read_text())
TAKE_OVER_MARK: Final = Script((_FOLDER / "take_over_mark.lua").read_text())
_WRITE: Final = Script((_FOLDER / "write.lua").read_text())


def write(
    client: Client,
    keys: Sequence[str],
    *,
    version: int,
    start: str = "",
    kept_s: float | None = None,
    told: str = "",
    cancelled: str = "",
    cancellation_kept_s: float | None = None,
    fields: Fields,
    timeout_s: float,
) -> Sequence[bytes] | None:
    """Replace a hash if it still has a version; return None then, and else what it holds now.

    Args:
        client: The server.
        keys: The hash; for a record also its channel and the two sorted sets of cancellations.
        version: The version that was decided about.
        start: The start that has made this version; empty if it need not be a certain one.
        kept_s: For how many seconds the hash is kept; None is for ever.
        told: The final state that is published; empty if none is.
        cancelled: The life that is cancelled; empty if none is.
        cancellation_kept_s: For how many seconds that is kept; None is for ever.
        fields: What the hash holds from now on.
        timeout_s: How long it may take.

    Raises:
        BrokerUnavailable: The store doesn't answer.
    """
    pairs = [word for name, value in fields.items() if value is not None for word in (name, _text(value))]
    args = (version, start, milliseconds(kept_s), told, cancelled, milliseconds(cancellation_kept_s), *pairs)
    found: Sequence[bytes] | None = client.run(_WRITE, keys, args, timeout_s=timeout_s)
    return found


def fields_of(found: Sequence[bytes]) -> dict[str, str]:
    """Return the fields of a hash, as Redis lists them."""
    return {name.decode(): value.decode() for name, value in zip(found[::2], found[1::2], strict=True)}


def milliseconds(duration_s: float | None) -> int | str:
    """Return a duration as scripts take it: at least 1; empty is for ever."""
    return "" if duration_s is None else max(1, round(duration_s * 1000))


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else repr(value)
