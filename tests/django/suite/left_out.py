"""The tests that don't apply to a backend whose tasks run elsewhere; each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_OTHERS: Final = "is about backends that the test itself defines, and runs none other"
_CUSTOM: Final = {
    "CustomBackendTestCase": (
        "test_backend_does_not_support_priority",
        "test_enqueue_async_task_on_non_async_backend",
        "test_no_enqueue",
        "test_options",
        "test_using_correct_backend",
    ),
    "CustomTaskTestCase": (
        "test_custom_task_default_values",
        "test_custom_task_invalid_kwarg",
        "test_custom_task_with_custom_values",
        "test_custom_task_with_standard_and_custom_values",
    ),
}
_DUMMY: Final = "test_dummy_backend.DummyBackendTestCase"
_IMMEDIATE: Final = "test_immediate_backend.ImmediateBackendTestCase"
_WRITES: Final = "changes a result in the dummy backend's own list, and expects to read that"
_CAN: Final = "expects that results can't be got, and here they can"

LEFT_OUT: Final[Mapping[str, str]] = {
    **{f"test_custom_backend.{case}.{test}": _OTHERS for case, tests in _CUSTOM.items() for test in tests},
    f"{_DUMMY}.test_refresh_result": _WRITES,
    f"{_DUMMY}.test_refresh_result_async": _WRITES,
    f"{_DUMMY}.test_clear": "expects that the dummy backend's `clear` removes all results; no other backend has it",
    f"{_IMMEDIATE}.test_cannot_get_result": _CAN,
    f"{_IMMEDIATE}.test_cannot_refresh_result": _CAN,
    f"{_IMMEDIATE}.test_cannot_pass_run_after": "expects that `run_after` is refused, and here it is kept",
    f"{_IMMEDIATE}.test_throws_keyboard_interrupt": "expects that a task's `KeyboardInterrupt` reaches its sender",
}
"""By module, class and name."""
