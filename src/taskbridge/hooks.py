"""Hooks: an application's own functions, called as a message goes its way (rules H)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, get_args

from taskbridge.logs import logger
from taskbridge.message import Message

HookName = Literal[
    "before_send",
    "after_send",
    "before_run",
    "succeeded",
    "retrying",
    "dead",
    "discarded",
    "worker_started",
    "worker_stopping",
    "operated",
]
HOOK_NAMES: Final[tuple[HookName, ...]] = get_args(HookName)

_log = logger("taskbridge.hooks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What a hook is told.

    Attributes:
        name: The hook's name.
        message: The message it is about; None for `worker_started`, `worker_stopping` and `operated`. For `retrying`,
            the attempt that failed. A `before_send` hook may add to `message.headers`.
        error: What the attempt raised, for `retrying` and `dead`.
        delay_s: Seconds until the next attempt, for `retrying`; until the start, for `before_send` and `after_send`.
        reason: Why, for `dead` and `discarded`.
        result: What the task returned, for `succeeded`.
        operator: Who did it, for `operated`: a user of the page, of Django's admin, or of this system; `-` if that is
            not known.
        action: What was done, for `operated`, such as `replay`.
        target: What it was done to, for `operated`: an id, a queue, a schedule, or the filters of dead letters.
        arguments_of: What answers `arguments`.
    """

    name: HookName
    message: Message | None = None
    error: BaseException | None = None
    delay_s: float = 0.0
    reason: str = ""
    result: object = None
    operator: str = ""
    action: str = ""
    target: str = ""
    arguments_of: Callable[[], Mapping[str, Any] | None] | None = field(default=None, repr=False, compare=False)

    @property
    def arguments(self) -> Mapping[str, Any] | None:
        """The message's arguments by the names of the task's parameters, defaults too; they may be secret.

        They are as the function gets them, and looked up each time that this is asked. None if there is no message, its
        task is not declared here, or they don't fit that.
        """
        return None if self.arguments_of is None else self.arguments_of()


Hook = Callable[[Event], object]


def for_tasks(glob: str, hook: Hook) -> Hook:
    """Return a hook that is called only for messages of tasks whose names match."""

    def matching(event: Event) -> object:
        return hook(event) if event.message is not None and fnmatchcase(event.message.task, glob) else None

    return matching


class Hooks:
    """The hooks of a bridge. They run in the thread that causes the event, in the order in which they were added.

    Attributes:
        of: The hooks of each name; who looks for itself makes no event for nobody.
    """

    def __init__(self) -> None:
        self.of: dict[str, list[Hook]] = {name: [] for name in HOOK_NAMES}

    def named(self, name: str) -> list[Hook]:
        """Return the hooks of a name, to which some may be added; raise `ValueError` if there is none of this name."""
        if name not in self.of:
            from taskbridge.remedies import HOOKS, instead  # here, for only errors need it

            raise ValueError(f"there is no hook {name!r}{instead(name, HOOKS, HOOK_NAMES)}")
        return self.of[name]

    @contextmanager
    def added(self, name: HookName, hook: Hook) -> Generator[None, None, None]:
        """Have a hook while the block runs."""
        hooks = self.of[name]
        hooks.append(hook)
        try:
            yield
        finally:
            hooks.remove(hook)

    def operated(self, operator: str, action: str, target: str) -> None:
        """Log what somebody has done by a command or on a page, and call the hooks for that (rule V4)."""
        _log.info("%s did %s: %s", operator, action, target)
        self.call(Event(name="operated", operator=operator, action=action, target=target))

    def call(self, event: Event) -> None:
        """Call the hooks of an event; one that fails is logged, and changes nothing else."""
        for hook in self.of[event.name]:
            try:
                hook(event)
            except (Exception, SystemExit):  # a hook may call sys.exit()
                about = event.message
                names = ("-", "-", "-") if about is None else (about.task, about.id, about.attempt)
                _log.exception("a %s hook failed (task %s, id %s, attempt %s)", event.name, *names)
