"""Servers' programs come from where the variable says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.programs import SYSTEM, Origin, ServerNotInstalled, chosen, origin_of


class TestTheWordsOfTheVariable:
    def test_a_release_alone_is_for_every_server(self) -> None:
        assert chosen("trixie") == {
            kind: Origin(name=kind, release="trixie") for kind in ("redis", "rabbitmq", "postgresql")
        }

    def test_servers_are_named_one_by_one(self) -> None:
        assert chosen("rabbitmq@sid, postgresql@trixie") == {
            "rabbitmq": Origin(name="rabbitmq", release="sid"),
            "postgresql": Origin(name="postgresql", release="trixie"),
        }

    def test_valkey_takes_the_place_of_redis(self) -> None:
        assert chosen("trixie,valkey@sid")["redis"] == Origin(name="valkey", release="sid")

    def test_another_server_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no server 'kafka' in 'kafka@sid': write one of redis, valkey"):
            chosen("kafka@sid")

    def test_without_it_they_are_this_system_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(programs.VARIABLE, raising=False)
        assert origin_of("redis") == Origin(name="redis", release=SYSTEM)

    def test_a_server_that_it_does_not_name_is_this_system_s(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(programs.VARIABLE, "rabbitmq@sid")
        assert origin_of("redis").release == SYSTEM
        assert origin_of("rabbitmq").release == "sid"


class TestAnotherRelease:
    @pytest.fixture
    def origin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
        monkeypatch.setenv(programs.FOLDER_VARIABLE, str(tmp_path))
        for name in ("usr/bin/redis-server", "usr/lib/postgresql/9/bin/initdb", "usr/lib/postgresql/17/bin/initdb"):
            (tmp_path / "next" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "next" / name).symlink_to("/nowhere/but/there")
        return Origin(name="redis", release="next")

    def test_a_program_is_found_below_its_root(self, origin: Origin) -> None:
        assert origin.find("redis-server", package="redis-server") == "/usr/bin/redis-server"

    def test_of_several_versions_the_newest_is_taken(self, origin: Origin) -> None:
        found = origin.find("initdb", package="postgresql", folders=("/usr/lib/postgresql/*/bin",))
        assert found == "/usr/lib/postgresql/17/bin/initdb"

    def test_a_program_that_is_only_on_this_system_is_not_taken(self, origin: Origin) -> None:
        name = Path(sys.executable).resolve().name
        with pytest.raises(ServerNotInstalled, match=r"of next is not unpacked: ./scripts/servers next"):
            origin.find(name, package="python3")

    def test_it_is_run_by_the_script(self, origin: Origin) -> None:
        command = origin.command(["/usr/bin/redis-server", "--port", "1"], (100, 200))
        assert command[1:] == ["--run", "--as", "100:200", "next", "/usr/bin/redis-server", "--port", "1"]
        assert Path(command[0]).name == "servers"


def test_this_system_s_programs_are_run_as_they_are() -> None:
    assert Origin(name="redis").command(["redis-server"], (100, 200)) == ["redis-server"]


class TestTheScript:
    SCRIPT = Path(__file__).parents[2] / "scripts" / "servers"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(self.SCRIPT), *words], capture_output=True, text=True, timeout=60, check=False)

    @pytest.mark.parametrize(
        ("words", "problem"),
        [
            (("--run", "next", "redis-server"), "the servers of next are not unpacked: ./scripts/servers next"),
            (("--ran", "next"), "there is no option --ran; ./scripts/servers --help tells what there is"),
        ],
    )
    def test_what_is_wrong_is_said_with_what_to_do(
        self, words: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(programs.FOLDER_VARIABLE, str(tmp_path))
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (2, f"error: {problem}\n")

    def test_it_tells_how_it_is_used(self) -> None:
        assert "./scripts/servers --again sid" in self.run("--help").stdout

    def test_a_mirror_that_does_not_answer_is_said_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        apt = tmp_path / "bin" / "apt-get"  # to which that is a warning only, unless it is told otherwise
        apt.parent.mkdir()
        apt.write_text(
            '#!/bin/sh\ncase "$*" in *Error-Mode=any*) exit 100 ;; *) echo "W: Failed to fetch" >&2 ;; esac\n'
        )
        apt.chmod(0o755)
        monkeypatch.setenv("PATH", f"{apt.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("DEBIAN_MIRROR", "http://127.0.0.1:1")
        monkeypatch.setenv(programs.FOLDER_VARIABLE, str(tmp_path))
        done = self.run("next")
        assert done.returncode == 2, done.stderr
        # Else this machine can't unpack anything, and that is said before.
        said = (
            r"the list of packages of next could not be fetched|keys of Debian's archive are missing|may not make names"
        )
        assert re.search(rf"error: .*({said})", done.stderr), done.stderr
