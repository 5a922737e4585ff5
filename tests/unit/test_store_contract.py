"""The built-in stores keep what every store promises, and the checks of that have teeth."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

from taskbridge.contract.stores.place import Place
from taskbridge.contract.stores.suite import run_check
from taskbridge.contract.stores.table import CHECKS
from tests.mutants.of_stores import MUTANTS, unproven
from tests.servers import PrivateServer

MODULES = {"memory": None, "redis": "redis", "sqlite": None, "postgresql": "psycopg"}
KINDS = [kind for kind, module in MODULES.items() if module is None or importlib.util.find_spec(module)]

Find = Callable[[str], "tuple[str, PrivateServer | None]"]


@pytest.fixture(scope="session")
def store_at(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Find:
    """Returns the URL of a store of a kind, whose tables are there, and its private server."""

    def find(kind: str) -> tuple[str, PrivateServer | None]:
        if kind == "memory":
            return "memory://", None
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.getbasetemp() / 'store.db'}", None
        if kind == "postgresql":
            _ = request.getfixturevalue("postgresql_store")
        server: PrivateServer = request.getfixturevalue(f"{kind}_server")
        return server.url, server

    return find


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_store_keeps_its_promises(kind: str, name: str, store_at: Find) -> None:
    url, server = store_at(kind)
    result = run_check(CHECKS[name], url, server=server)
    assert result.outcome in ("passed", "not applicable"), result.why
    left_out = {"memory": "", "sqlite": "server", "redis": "tables", "postgresql": "-"}
    assert result.outcome == "passed" or left_out[kind] in result.why


@pytest.mark.parametrize(
    ("name", "kind"), [(name, mutant.kind) for name, mutant in MUTANTS.items() if mutant.kind in KINDS]
)
def test_a_broken_store_is_found_out(name: str, kind: str, store_at: Find) -> None:
    mutant = MUTANTS[name]
    url, server = store_at(kind)
    with mutant.broken():
        result = run_check(CHECKS[mutant.check], url, server=server)
    assert result.outcome == "failed", f"{mutant.title}: {result}"


def test_every_check_has_a_mutant() -> None:
    assert unproven() == []


def test_a_check_that_only_other_processes_make_is_left_out_in_memory() -> None:
    left_out = [name for name, check in CHECKS.items() if check.refusal(Place("memory://"))]
    assert "one_process_claims_a_tick" in left_out
    assert "one_claims_a_tick" not in left_out
