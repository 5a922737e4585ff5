"""What the checks by hand count as a promise that was broken."""

from __future__ import annotations

import pytest

from tests.long.checks import Life, live_at_once


@pytest.mark.parametrize(
    ("lives", "found"),
    [
        ([(1.0, 2.0, "a"), (2.0, 3.0, "b"), (3.5, 4.0, "c")], []),
        ([(2.5, 4.0, "b"), (1.0, 3.0, "a")], [("a", "b", 0.5)]),
        ([(1.0, 9.0, "a"), (2.0, 3.0, "b")], [("a", "b", 7.0)]),
        ([(1.0, 3.0, "a"), (2.0, 1.5, "b")], []),  # its sender had its handle when it had ended
        ([(1.0, 9.0, "a"), (2.0, 1.5, "b"), (3.0, 4.0, "c")], [("a", "c", 6.0)]),
    ],
)
def test_two_messages_of_a_key_are_found_if_both_held_it_at_once(
    lives: list[Life], found: list[tuple[str, str, float]]
) -> None:
    assert live_at_once(lives) == found
