"""What the demo shows: a line an event, and at the end both runs side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TextIO

from examples.demo.events import Note
from examples.demo.stage import ENDS

ON_TIME_S: Final = 1.0
"""How late a delayed message may start (rule D2)."""

CODES: Final = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35}


class Paint:
    """Colours, on a terminal that wants them; else the text as it is."""

    def __init__(self, stream: TextIO) -> None:
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._on = (terminal and not os.environ.get("NO_COLOR")) or bool(os.environ.get("FORCE_COLOR"))

    def __call__(self, style: str, text: str) -> str:
        """Return text in a style."""
        return f"\x1b[{CODES[style]}m{text}\x1b[0m" if self._on and text else text


_STATES: Final = {"succeeded": "done", "dead": "dead letter", "discarded": "discarded"}


@dataclass(kw_only=True)
class Story:
    """What became of one message.

    Attributes:
        label: The task and its first argument.
        queue: Where it waited, on every attempt; several if they differ.
        priority: Its own.
        waits: The delays that were asked for: before the start, and between attempts, in seconds.
        starts: When each attempt started.
        ends: How it ended; more than one would be a message that ran again after its end.
        late_s: How much later than asked each wait ended; less than 0 is early.
    """

    label: str
    priority: str
    queue: str = ""
    waits: list[float] = field(default_factory=list[float])
    starts: list[float] = field(default_factory=list[float])
    ends: list[str] = field(default_factory=list[str])
    text: str = ""
    late_s: list[float] = field(default_factory=list[float])
    due: float | None = None

    @property
    def end(self) -> str:
        """How it ended, in a word or two."""
        return "+".join(self.ends) or "lost"

    @property
    def shown_waits(self) -> str:
        """The delays in one word: `0.25+0.5 s`."""
        return f"{'+'.join(f'{wait:g}' for wait in self.waits)} s" if self.waits else "-"

    def differs_from(self, other: Story) -> list[str]:
        """Return in what two runs of the same message differ."""
        pairs = {
            "queue": (self.queue, other.queue),
            "priority": (self.priority, other.priority),
            "attempts": (len(self.starts), len(other.starts)),
            "delays": (self.waits, other.waits),
            "end": (self.ends, other.ends),
            "result": (self.text, other.text),
        }
        return [name for name, (one, two) in pairs.items() if one != two]


@dataclass(kw_only=True)
class Run:
    """One run of the shop: its messages in the order in which they were sent, and what was left."""

    target: str
    stories: list[Story]
    order: list[str]
    left: tuple[int, int, int]

    @property
    def late_s(self) -> float:
        """How late the latest delayed start was."""
        return max((late for story in self.stories for late in story.late_s), default=0.0)

    @property
    def is_early(self) -> bool:
        """Whether anything started before its time."""
        return any(late < 0 for story in self.stories for late in story.late_s)


def run_of(target: str, notes: Sequence[Note]) -> Run:
    """Return the run that events tell of."""
    stories: dict[str, Story] = {}
    order: list[str] = []
    left = (0, 0, 0)
    first_start = min((note.at for note in notes if note.what == "before_run"), default=0.0)
    for note in notes:
        if note.what == "closed" and note.left is not None:
            left = note.left
        if note.what == "after_send":
            stories[note.id] = Story(label=label(note), priority=note.priority, queue=note.queue)
        if (story := stories.get(note.id)) is not None:
            _tell(story, note, first_start)
        if note.what == "before_run" and note.task == "pack":
            order.append(note.priority)
    return Run(target=target, stories=list(stories.values()), order=order, left=left)


def _tell(story: Story, note: Note, first_start: float) -> None:
    """Add an event to its message's story."""
    if note.queue not in story.queue.split(", "):
        story.queue += f", {note.queue}"
    match note.what:
        case "after_send" if note.delay_s > 0:
            story.waits.append(note.delay_s)
            story.due = note.sent_at + note.delay_s
        case "before_run":
            if story.due is not None:
                # A worker that only starts then can't be on time; but too early is too early.
                story.late_s.append(note.at - (story.due if note.at < story.due else max(story.due, first_start)))
                story.due = None
            story.starts.append(note.at)
        case "retrying":
            story.waits.append(note.delay_s)
            story.due = story.starts[-1] + note.delay_s
        case _ if note.what in ENDS:
            story.ends.append(_STATES[note.what])
            story.text = f"{note.text} {note.reason}"
        case _:
            pass


def label(note: Note) -> str:
    """Return what a message is called: its task and first argument."""
    return f"{note.task} {note.subject}"


def line(note: Note, opened_at: float, paint: Paint) -> str | None:
    """Return the line of an event; None if it has none."""
    offset = paint("dim", f"{note.at - opened_at:6.3f} s")
    if note.what == "all_sent":
        return f"{offset}  {paint('dim', 'now a worker starts, which runs one task at a time')}"
    what = _what(note, paint)
    if what is None:
        return None
    attempt = "" if note.what == "after_send" else f"attempt {note.attempt}"
    return f"{offset}  {label(note):<19}  {paint('dim', f'{attempt:<9}')}  {what}"


def _what(note: Note, paint: Paint) -> str | None:
    error = note.text.partition(":")[0]
    match note.what:
        case "after_send":
            extra = "" if note.priority == "normal" else f", {note.priority}"
            when = f", due in {note.delay_s:g} s" if note.delay_s else ""
            return f"{paint('blue', 'sent')} to queue {note.queue}{extra}{when}"
        case "succeeded":
            return f"{paint('green', 'done')}: {note.text}"
        case "retrying":
            return f"{paint('yellow', 'failed')}: {error}, again in {note.delay_s:g} s"
        case "dead":
            return f"{paint('red', 'dead letter')}: {error}, {note.reason.replace('_', ' ')}"
        case "discarded":
            return f"{paint('magenta', 'discarded')}: {note.text}"
        case _:
            return None


def is_identical(one: Run, other: Run) -> bool:
    """Return whether two runs did the same, and neither started anything too early."""
    return (
        len(one.stories) == len(other.stories)
        and not any(first.differs_from(second) for first, second in zip(one.stories, other.stories, strict=True))
        and one.order == other.order
        and one.left == other.left
        and not one.is_early
        and not other.is_early
    )


def comparison(one: Run, other: Run, *, width: int, paint: Paint) -> str:
    """Return both runs as a table, side by side if that fits the width."""
    rows = [*_story_rows(one, other), *_run_rows(one, other)]
    first = max(len(row.name) for row in rows)
    if width >= first + 2 * len(_joined(_CELLS)) + _QUEUE + len("identical") + 8:
        return "\n".join(_side_by_side(one, other, rows, first, paint))
    return "\n".join(_stacked(one, other, rows, first, paint))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A row of the table.

    Attributes:
        name: Of what it is about.
        queues: Of either run; empty for what has none.
        cells: Of either run: how often it ran, its delays and its end; or one text.
        verdict: Whether the runs are the same here.
    """

    name: str
    queues: tuple[str, str] = ("", "")
    cells: tuple[tuple[str, ...], tuple[str, ...]]
    verdict: str


_CELLS: Final = ("runs", "delays", "end")
_WIDTHS: Final = (4, 10, 11)
_QUEUE: Final = 9


def _story_rows(one: Run, other: Run) -> list[_Row]:
    return [
        _Row(
            name=first.label if first.priority == "normal" else f"{first.label} {first.priority}",
            queues=(first.queue, second.queue),
            cells=(_cells(first), _cells(second)),
            verdict=_verdict(first.differs_from(second)),
        )
        for first, second in zip(one.stories, other.stories, strict=False)
    ]


def _run_rows(one: Run, other: Run) -> list[_Row]:
    late = max(one.late_s, other.late_s)
    on_time = "too early" if one.is_early or other.is_early else "on time" if late <= ON_TIME_S else "late"
    return [
        _Row(
            name="packed in order",
            cells=((", ".join(one.order),), (", ".join(other.order),)),
            verdict=_verdict([] if one.order == other.order else ["order"]),
        ),
        _Row(
            name="left at the end",
            cells=((_left(one),), (_left(other),)),
            verdict=_verdict([] if one.left == other.left else ["rest"]),
        ),
        _Row(name="delays kept", cells=((_late(one),), (_late(other),)), verdict=on_time),
    ]


def _cells(story: Story) -> tuple[str, ...]:
    return (str(len(story.starts)), story.shown_waits, story.end)


def _verdict(differences: Sequence[str]) -> str:
    return f"differs: {', '.join(differences)}" if differences else "identical"


def _left(run: Run) -> str:
    waiting, delayed, dead = run.left
    return f"{waiting} waiting, {delayed} delayed, {dead} dead"


def _late(run: Run) -> str:
    return "some too early" if run.is_early else f"{run.late_s:.2f} s late at most"


def _painted(verdict: str, paint: Paint) -> str:
    return paint({"identical": "green", "on time": "green", "late": "yellow"}.get(verdict, "red"), verdict)


def _joined(cells: Sequence[str]) -> str:
    """Return a run's cells in the widths of their columns, or its only cell across them."""
    if len(cells) == 1:
        return f"{cells[0]:<{sum(_WIDTHS) + 2 * (len(_WIDTHS) - 1)}}"
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _side_by_side(one: Run, other: Run, rows: Sequence[_Row], first: int, paint: Paint) -> Iterator[str]:
    head = _joined(_CELLS)
    indent = " " * (first + 2)
    yield f"{indent}{'':<{_QUEUE}}  {paint('bold', f'{one.target:<{len(head)}}')}  {paint('bold', other.target)}"
    yield paint("dim", f"{indent}{'queue':<{_QUEUE}}  {head}  {head}".rstrip())
    for row in rows:
        queue = " | ".join(dict.fromkeys(row.queues))
        left, right = map(_joined, row.cells)
        yield f"{row.name:<{first}}  {queue:<{_QUEUE}}  {left}  {right}  {_painted(row.verdict, paint)}"


def _stacked(one: Run, other: Run, rows: Sequence[_Row], first: int, paint: Paint) -> Iterator[str]:
    names = [run.target.partition("+")[0] for run in (one, other)]
    second = max(map(len, names))
    yield paint("dim", f"{'':<{first}}  {'':<{second}}  {'queue':<{_QUEUE}}  {_joined(_CELLS)}".rstrip())
    for row in rows:
        labels = (f"{row.name:<{first}}", _painted(row.verdict, paint) + " " * (first - len(row.verdict)))
        for label_, name, queue, cells in zip(labels, names, row.queues, row.cells, strict=True):
            yield f"{label_}  {paint('dim', f'{name:<{second}}')}  {queue:<{_QUEUE}}  {_joined(cells)}".rstrip()
