from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taskbridge import Bridge, SettingsError

WIRE = """
from taskbridge.engines.inline import InlineWire

class LoopWire(InlineWire):
    engine = "loop"

def make_wire(kind, settings):
    return LoopWire()
"""

BROKER = """
from taskbridge.brokers import memory

def connect(settings, wire):
    return memory.connect(settings, wire)
"""


STORE = """
from taskbridge.stores import memory

def open_store(settings, url):
    store = memory.open_store(settings, "memory://")
    store.opened_with = url
    return store
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "loops-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loops\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[taskbridge.engines]\nloop = loops\n\n[taskbridge.brokers]\nheap = loops.heap\n\n"
        "[taskbridge.stores]\npile = loops.pile\n"
    )
    (tmp_path / "loops").mkdir()
    (tmp_path / "loops" / "__init__.py").touch()
    (tmp_path / "loops" / "wire.py").write_text(WIRE)
    (tmp_path / "loops" / "heap.py").write_text(BROKER)
    (tmp_path / "loops" / "pile.py").write_text(STORE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.usefixtures("_installed")
def test_an_engine_and_a_broker_are_found_by_entry_point() -> None:
    bridge = Bridge("loop+heap://somewhere/else")

    @bridge.task
    def greet() -> None: ...

    greet.send()

    assert bridge.settings.url.target == "loop+heap"
    assert bridge.wire.engine == "loop"
    assert bridge.counts().waiting == {"default": 1}


@pytest.mark.usefixtures("_installed")
def test_a_found_engine_uses_the_built_in_brokers_and_a_found_broker_the_built_in_engines() -> None:
    assert Bridge("loop+redis://localhost").settings.url.broker == "redis"
    assert Bridge("celery+heap://").settings.url.engine == "celery"


@pytest.mark.usefixtures("_installed")
def test_found_names_are_suggested() -> None:
    with pytest.raises(SettingsError, match="did you mean 'loop'"):
        Bridge("lopp+redis://localhost")


def test_without_a_package_that_brings_it_there_is_no_such_engine() -> None:
    with pytest.raises(SettingsError, match="there is no engine 'loop'"):
        Bridge("loop+heap://")


@pytest.mark.usefixtures("_installed")
def test_a_store_is_found_by_entry_point() -> None:
    bridge = Bridge("inline://", store="pile://user:secret@somewhere/else")
    store = bridge.store

    assert store is not None
    assert vars(store)["opened_with"] == "pile://user:secret@somewhere/else"
    assert store.records.get("nobody", timeout_s=1) is None


@pytest.mark.usefixtures("_installed")
def test_a_mistyped_store_is_told_the_nearest_one_installed() -> None:
    with pytest.raises(SettingsError, match="did you mean 'pile'"):
        Bridge("inline://", store="pyle://somewhere")
