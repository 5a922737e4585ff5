"""Rule S8: the form has a version, and every form ever released is still read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from taskbridge import DeadLetter, DecodeError, ErrorInfo, Message
from taskbridge.exceptions import NewerFormError
from taskbridge.message import loads, loads_letter, loads_meta, new_id

FORM_1, FORM_2 = (
    json.loads((Path(__file__).parent / "forms" / f"form_{number}.json").read_text()) for number in (1, 2)
)

MESSAGE = Message(
    id="7c0b5c4e-8f0e-4a53-9c86-0e3f3f1d2a11",
    task="shop.tasks.ship",
    queue="parcels",
    priority="high",
    attempt=3,
    enqueued_at=1700000000.5,
    expires_at=1700003600.0,
    headers={"trace": "abc"},
    error=ErrorInfo(type="OSError", message="gone"),
    waits=2,
    waits_since=1700000100.0,
    args_json='[1,{"$":"tuple","v":[2]}]',
    kwargs_json='{"fast":true}',
)


def test_the_first_form_is_read_as_it_was_written() -> None:
    assert loads(FORM_1["message"]) == MESSAGE
    assert MESSAGE.dumps() == FORM_1["message"]


def test_the_second_form_is_read_as_it_was_written() -> None:
    message = replace(MESSAGE, form=2, args_json='[{"$":"typed","type":"Order","v":{"id":1}}]')

    assert loads(FORM_2["message"]) == message
    assert message.dumps() == FORM_2["message"]


def test_the_first_form_of_what_an_engines_message_carries_is_read() -> None:
    message = loads_meta(FORM_1["meta"], id="i", task="t", args=[], kwargs={})

    assert (message.queue, message.attempt, message.enqueued_at) == ("parcels", 1, 1700000000.5)
    assert message.dumps_meta() == FORM_1["meta"]


def test_arguments_come_out_the_same_from_text_and_from_what_was_decoded() -> None:
    args, kwargs = [1, {"$": "tuple", "v": [2]}], {"$": {"$": "bytes", "v": "AA=="}}
    message = loads_meta(FORM_1["meta"], id="i", task="t", args=args, kwargs=kwargs)
    from_text = replace(message, plain=None)

    assert message.arguments() == from_text.arguments() == ([1, (2,)], {"$": b"\0"})
    assert message == from_text
    assert args == [1, {"$": "tuple", "v": [2]}]


def test_a_task_that_changes_its_arguments_does_not_change_the_message() -> None:
    message = loads_meta(FORM_1["meta"], id="i", task="t", args=[[1]], kwargs={"more": {}})
    args, kwargs = message.arguments()
    args[0].append(2)
    kwargs["more"]["key"] = 1

    assert message.arguments() == ([[1]], {"more": {}})


def test_the_first_form_of_a_dead_letter_is_read() -> None:
    letter = loads_letter(FORM_1["letter"])

    assert letter.reason == "exhausted"
    assert letter.message is not None
    assert letter.message.attempt == 5
    assert letter.dumps() == FORM_1["letter"]


def test_what_the_first_form_got_later_is_read() -> None:
    replayed = loads_meta(FORM_1["replayed"], id="i", task="t", args=[], kwargs={})
    letter = loads_letter(FORM_1["letter_of_worker"])

    assert (replayed.replays, letter.worker) == (2, "host:1")
    assert replayed.dumps_meta() == FORM_1["replayed"]
    assert letter.dumps() == FORM_1["letter_of_worker"]


def test_headers_of_other_types_than_text_take_the_second_form_and_nothing_else_does() -> None:
    message = replace(MESSAGE, headers={"trace": "abc", "tenant": 7, "dry": True, "parent": None}, form=2)

    assert message.dumps() == FORM_2["headers"]
    assert loads(FORM_2["headers"]) == message
    assert '"form":1' in replace(MESSAGE, headers={}).dumps()
    assert replace(message, form=1).dumps() == FORM_2["headers"]
    assert (
        message.size == replace(MESSAGE, headers={"trace": "abc", "tenant": "7", "dry": "True", "parent": "None"}).size
    )


@pytest.mark.parametrize(
    "value", ["1.5", "9223372036854775808", "-9223372036854775809", "[]", "{}", '"\\ud800"', "NaN"]
)
def test_other_values_of_headers_are_refused(value: str) -> None:
    with pytest.raises(DecodeError, match="header"):
        loads(FORM_2["headers"].replace('"tenant":7', f'"tenant":{value}'))


def test_a_newer_form_is_told_from_a_broken_one() -> None:
    newer = FORM_1["message"].replace('"form":1', '"form":4')

    with pytest.raises(NewerFormError):
        loads(newer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"form":"x"}',
        FORM_1["message"].replace('"form":1', '"form":0'),
        FORM_1["message"].replace('"high"', '"urgent"'),
        FORM_1["message"].replace('"attempt":3', '"attempt":"3"'),
        FORM_1["message"].replace('"parcels"', "null"),
        FORM_1["message"].replace('"args"', '"arguments"'),
        FORM_1["message"].replace('["OSError","gone"]', "5"),
        FORM_1["message"].replace('{"trace":"abc"}', "7"),
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        loads(text)


@pytest.mark.parametrize("part", ["id", "task", "queue"])
@pytest.mark.parametrize("text", ["a\x1b[2J", "a\nb", "a\x9bb", "a\u2028b"])
def test_names_that_command_a_terminal_are_refused(part: str, text: str) -> None:
    odd = {**json.loads(MESSAGE.dumps()), part: text}
    with pytest.raises(DecodeError, match=f"its {part} is"):
        loads(json.dumps(odd))
    with pytest.raises(DecodeError, match=f"its {part} is"):
        loads_letter(json.dumps({**json.loads(FORM_1["letter"]), "message": odd}))


def test_what_was_written_as_an_error_is_kept_in_a_form_that_every_store_takes() -> None:
    odd = loads(json.dumps({**json.loads(MESSAGE.dumps()), "error": ["a\0b", "\ud800" * 10_000]}))

    assert odd.error == ErrorInfo(type="a\\x00b", message="\\ud800" * 2_000)


def test_a_retry_keeps_all_but_the_attempt_and_the_error() -> None:
    following = MESSAGE.next_attempt(ValueError("no"))

    assert following.attempt == 4
    assert following.error == ErrorInfo(type="ValueError", message="no")
    assert loads(following.dumps()) == following


def test_bytes_that_are_no_message_are_kept_as_they_came() -> None:
    letter = DeadLetter(message=None, reason="undecodable", died_at=1.0, raw=bytes(range(256)))

    came = loads_letter(letter.dumps())

    assert came == letter
    assert came.id == letter.id


def test_ids_are_random_uuids() -> None:
    ids = {new_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(str(UUID(text)) == text and UUID(text).version == 4 for text in ids)


def test_a_child_that_c_code_has_forked_gives_other_ids_than_its_parent() -> None:
    """Such as uWSGI's: it calls no hook of Python's."""
    code = (
        "import ctypes, os\n"
        "from taskbridge.message import new_id\n"
        "new_id()\n"
        "child = ctypes.CDLL(None).fork()\n"
        "os.write(1, f'{new_id()}\\n'.encode())\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert len(set(done.stdout.split())) == 2, done


def test_a_forked_child_gives_other_ids_than_its_parent() -> None:
    new_id()  # more are drawn with it
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, that there are threads
        child = os.fork()
    if child == 0:
        os.write(writer, "\n".join(new_id() for _ in range(200)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 1 << 16).decode().split("\n")
    ours = [new_id() for _ in range(200)]
    os.close(reader)
    os.close(writer)

    assert len({*theirs, *ours}) == 400
