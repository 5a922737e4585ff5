"""What a chaos run leaves in its folder beside the records and the logs, so that it can be accounted for again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from taskbridge.contract.probe import Records
from tests.chaos.account import Account, settle_up
from tests.chaos.causes import Conditions
from tests.chaos.happenings import Incident, Letter, Send, runs_of, suicides
from tests.chaos.tasks import PROBE_FILE

_FILE: Final = "evidence.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that an account needs besides the probe's records."""

    sends: list[Send]
    letters: list[Letter]
    incidents: list[Incident]
    conditions: Conditions

    def save(self, folder: Path) -> None:
        """Write it into a run's folder."""
        (folder / _FILE).write_text(json.dumps(asdict(self), default=sorted))

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read what `save` wrote."""
        data: dict[str, Any] = json.loads((folder / _FILE).read_text())
        return cls(
            sends=[Send(**each) for each in data["sends"]],
            letters=[Letter(**each) for each in data["letters"]],
            incidents=[_incident(**each) for each in data["incidents"]],
            conditions=Conditions(**data["conditions"]),
        )

    def account(self, folder: Path) -> Account:
        """Return the account, with the records of the probe in this folder."""
        records = Records(folder / PROBE_FILE).all()
        incidents = [*self.incidents, *suicides(records)]
        return settle_up(self.sends, runs_of(records), self.letters, incidents, self.conditions)


def _incident(pids: list[int], **fields: Any) -> Incident:
    return Incident(pids=frozenset(pids), **fields)
