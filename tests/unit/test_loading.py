"""`MODULE[:BRIDGE]` names an application; what is wrong with it is one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from taskbridge import Bridge, TaskBridgeError, default_bridge
from taskbridge.loading import LoadError, load_bridge

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Write]:
    """Write a file of an application, in what is then the current directory; it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TASKBRIDGE_URL", "inline://")
    modules = set(sys.modules)

    def make(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)

    yield make
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


ONE = 'from taskbridge import Bridge\nbridge = Bridge("inline://")\nsame = bridge\n'
TWO = 'from taskbridge import Bridge\nfirst = Bridge("inline://")\nsecond = Bridge("inline://")\nother = 1\n'
NONE = "import taskbridge\n"


def test_a_module_with_one_bridge_means_that_one(write: Write) -> None:
    write("tb_one.py", ONE)
    assert load_bridge("tb_one") is sys.modules["tb_one"].bridge


def test_a_bridge_may_be_named(write: Write) -> None:
    write("tb_pack/__init__.py", "")
    write("tb_pack/two.py", TWO)
    assert load_bridge("tb_pack.two:second") is sys.modules["tb_pack.two"].second


def test_a_module_without_a_bridge_means_the_default_bridge(write: Write) -> None:
    write("tb_none.py", NONE)
    assert load_bridge("tb_none") is default_bridge()


def test_the_url_wins_over_what_the_module_chooses_and_leaves_all_else(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("tb_url.py", 'from taskbridge import Bridge\nb = Bridge("celery+redis://one", lease=7, queues=["vip"])\n')
    monkeypatch.setenv("TASKBRIDGE_URL", "celery+redis://two")

    bridge = load_bridge("tb_url", url="dramatiq+redis://three")

    assert bridge.settings.url.safe_url == "dramatiq+redis://three/0"
    assert bridge.settings.lease_s == 7
    assert [queue.name for queue in bridge.settings.queues] == ["vip"]


def test_a_worker_is_told_the_url_by_a_variable(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("tb_variable.py", 'from taskbridge import Bridge\nb = Bridge("celery+redis://one")\n')
    monkeypatch.setenv("TASKBRIDGE_APP_URL", "dramatiq+redis://three")
    assert load_bridge("tb_variable").settings.url.safe_url == "dramatiq+redis://three/0"


def test_a_module_sees_the_url_while_it_is_imported(write: Write) -> None:
    write("tb_early.py", "from taskbridge import Bridge\nb = Bridge()\nengine = b.settings.url.engine\n")
    load_bridge("tb_early", url="dramatiq+redis://three")
    assert sys.modules["tb_early"].engine == "dramatiq"


def test_a_process_that_runs_tasks_tells_so(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write("tb_ready.py", ONE)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    place = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    monkeypatch.setenv("TASKBRIDGE_APP_READY", str(fifo))
    bridge: Bridge = load_bridge("tb_ready")

    with bridge.embedded_worker(threads=1):
        assert os.read(place, 100) == f"{os.getpid()}\n".encode()

    os.close(place)
    with bridge.embedded_worker(threads=1):  # nobody listens any more
        pass


FILES = {
    "tb_two.py": TWO,
    "tb_none.py": NONE,
    "tb_shop.py": ONE,
    "tb_missing.py": "import os\nimport no_such_module\n",
    "tb_name.py": "from os import no_such_name\n",
    "tb_indirect.py": "import tb_missing\n",
    "tb_raises.py": "x = 1\n\n\nraise ValueError('the first line\\nand a second')\n",
    "tb_silent.py": "raise RuntimeError\n",
    "tb_syntax.py": "x = 1\ndef f(:\n",
    "tb_exit.py": "import sys\nsys.exit(3)\n",
    "tb_settings.py": "from taskbridge import Bridge\n\nb = Bridge('celry+redis://localhost')\n",
    "tb_option.py": "from taskbridge import Bridge\nb = Bridge('inline://')\nf = b.task(que='x')(print)\n",
    "tb_dir/__init__.py": "",
    "tb_dir/tasks.py": ONE,
}


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("tb_shp", "there is no module 'tb_shp' in {here} or on Python's path; did you mean 'tb_shop'?"),
        ("tb_dir.taks", "there is no module 'tb_dir.taks' in package 'tb_dir'; did you mean 'tb_dir.tasks'?"),
        ("zzz.tasks", "there is no module 'zzz' in {here} or on Python's path (for 'zzz.tasks')"),
        ("tb_shop.bridge", "'tb_shop' is a module and no package; for what is in it write tb_shop:bridge"),
        ("tb_shop.py", "'tb_shop.py' is a file; name the module as `import` does: tb_shop"),
        ("./tb_dir/tasks.py", "'./tb_dir/tasks.py' is a file; name the module as `import` does: tb_dir.tasks"),
        ("tb-shop", "'tb-shop' is not MODULE[:BRIDGE], such as shop.tasks or shop.tasks:bridge"),
        ("", "'' is not MODULE[:BRIDGE], such as shop.tasks or shop.tasks:bridge"),
        ("tb_shop:", "'tb_shop:' is not MODULE[:BRIDGE]: '' can't be the name of a bridge"),
        ("tb_shop:brige", "module 'tb_shop' has no 'brige'; did you mean 'bridge'?"),
        ("tb_two:other", "'other' in module 'tb_two' is not a Bridge but of type int"),
        ("tb_two", "module 'tb_two' has several bridges; choose one of tb_two:first, tb_two:second"),
        (
            "tb_missing",
            "module 'tb_missing' can't be imported: ModuleNotFoundError: No module named 'no_such_module' "
            "(tb_missing.py, line 2)",
        ),
        (
            "tb_indirect",
            "module 'tb_indirect' can't be imported: ModuleNotFoundError: No module named 'no_such_module' "
            "(tb_missing.py, line 2)",
        ),
        ("tb_raises", "module 'tb_raises' can't be imported: ValueError: the first line (tb_raises.py, line 4)"),
        ("tb_silent", "module 'tb_silent' can't be imported: RuntimeError (tb_silent.py, line 1)"),
        (
            "tb_exit",
            "module 'tb_exit' can't be imported: it exits when it is imported (guard it with: "
            "if __name__ == '__main__') (tb_exit.py, line 2)",
        ),
        (
            "tb_settings",
            "module 'tb_settings' can't be imported: setting 'url': there is no engine 'celry'; "
            "did you mean 'celery'? (tb_settings.py, line 3)",
        ),
        (
            "tb_option",
            "module 'tb_option' can't be imported: task option 'que' is unknown; did you mean 'queue'? "
            "(tb_option.py, line 3)",
        ),
    ],
)
def test_what_can_not_be_loaded_is_told_in_one_line(write: Write, tmp_path: Path, app: str, says: str) -> None:
    for path, text in FILES.items():
        write(path, text)

    with pytest.raises(LoadError) as caught:
        load_bridge(app)

    assert str(caught.value) == says.format(here=tmp_path)
    assert caught.value.app == app


@pytest.mark.parametrize(
    ("app", "begins", "ends"),
    [
        # Python's own words, which differ between its versions.
        ("tb_name", "module 'tb_name' can't be imported: ImportError: cannot import name", " (tb_name.py, line 1)"),
        ("tb_syntax", "module 'tb_syntax' can't be imported: SyntaxError: ", " (tb_syntax.py, line 2)"),
    ],
)
def test_pythons_own_words_are_kept_with_the_place(write: Write, app: str, begins: str, ends: str) -> None:
    write(f"{app}.py", FILES[f"{app}.py"])
    with pytest.raises(LoadError) as caught:
        load_bridge(app)
    text = str(caught.value)
    assert text.startswith(begins)
    assert text.endswith(ends)
    assert "\n" not in text


def test_a_wrong_url_changes_nothing(write: Write) -> None:
    write("tb_wrong.py", ONE)
    with pytest.raises(TaskBridgeError, match="did you mean 'celery'"):
        load_bridge("tb_wrong", url="celeri+redis://x")
    assert sys.modules["tb_wrong"].bridge.settings.url.engine == "inline"
