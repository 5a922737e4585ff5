"""Which targets a test runs on is chosen by option or environment, and nothing is left out in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
ONE_TEST_A_TARGET = "def test_it(target, target_url): print('<', target, target_url.partition(':')[0], '>')"


@pytest.fixture(autouse=True)
def everything_installed_and_nothing_chosen(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    monkeypatch.delenv("TASKBRIDGE_TEST_TARGETS", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # faster
    pytester.makepyfile(test_one=ONE_TEST_A_TARGET)
    install_all_but("", pytester)


def install_all_but(module: str, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"{CONFTEST.read_text()}\ndef _is_installed(module): return module != {module!r}\n")


def collected(result: pytest.RunResult) -> list[str]:
    return [line.partition("[")[2].rstrip("]") for line in result.outlines if line.startswith("test_one.py::test_it[")]


def test_all_seven_are_the_default(pytester: pytest.Pytester) -> None:
    assert collected(pytester.runpytest("--collect-only", "-q")) == [
        "inline",
        "celery+memory",
        "dramatiq+memory",
        "celery+redis",
        "dramatiq+redis",
        "celery+amqp",
        "dramatiq+amqp",
    ]


@pytest.mark.parametrize(
    ("options", "variable", "chosen"),
    [
        (["--target", "celery+amqp"], "", ["celery+amqp"]),
        (["--target", "celery+amqp,inline"], "", ["inline", "celery+amqp"]),
        (["--target", "celery+amqp", "--target", "inline"], "", ["inline", "celery+amqp"]),
        ([], "inline, dramatiq+redis", ["inline", "dramatiq+redis"]),
        ([], "*+redis", ["celery+redis", "dramatiq+redis"]),
        ([], "inline,celery+*", ["inline", "celery+memory", "celery+redis", "celery+amqp"]),
        (["--target", "inline"], "*+redis", ["inline"]),
    ],
)
def test_a_choice_is_a_list_of_names_and_globs(
    options: list[str], variable: str, chosen: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKBRIDGE_TEST_TARGETS", variable)

    assert collected(pytester.runpytest("--collect-only", "-q", *options)) == chosen


def test_a_choice_that_matches_nothing_is_an_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--target", "celery+sqs")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("*no target matches celery+sqs*")


def test_a_chosen_target_whose_engine_is_missing_fails(pytester: pytest.Pytester) -> None:
    install_all_but("celery", pytester)

    result = pytester.runpytest("--target", "*+memory")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*target celery+memory needs celery*")


def test_files_named_after_a_missing_library_are_left_out_only_when_no_chosen_target_needs_it(
    pytester: pytest.Pytester,
) -> None:
    install_all_but("celery", pytester)
    pytester.makepyfile(test_celery_wire="import not_there")

    pytester.runpytest("--target", "inline").assert_outcomes(passed=1)
    pytester.runpytest("--target", "celery+*").assert_outcomes(errors=1)


def test_files_named_after_an_installed_library_always_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_celery_wire="def test_it(): pass")

    pytester.runpytest("--target", "inline").assert_outcomes(passed=2)


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("true", "errors")])
def test_a_missing_server_skips_but_fails_on_ci(
    ci: str, outcome: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "/nonexistent")

    result = pytester.runpytest("-ra", "--target", "dramatiq+redis")

    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines("*redis-server is not installed: apt-get install redis-server*")
