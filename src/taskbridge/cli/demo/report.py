"""What the demo shows: a line an event, and at the end both runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from taskbridge.cli.demo.events import Note
from taskbridge.cli.demo.stage import ENDS
from taskbridge.cli.show import Paint, duration

WIDE: Final = 96
"""How many columns a terminal needs for the table with both targets side by side."""

ON_TIME_S: Final = 1.0
"""How late a delayed message may start (rule D2)."""

_STATES: Final = {"succeeded": "done", "dead": "dead", "discarded": "discarded"}


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
        return ", ".join(self.ends) or "lost"

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
        if note.what == "before_run" and note.task == "pack_parcel":
            order.append(note.priority)
    return Run(target=target, stories=list(stories.values()), order=order, left=left)


def _tell(story: Story, note: Note, first_start: float) -> None:
    """Add an event to its message's story."""
    if note.queue not in story.queue.split(", "):
        story.queue += f", {note.queue}"
    match note.what:
        case "after_send" if note.delay_s > 0:
            story.waits.append(note.delay_s)
            story.due = note.at + note.delay_s
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
            story.ends.append(f"dead: {note.reason}" if note.what == "dead" else _STATES[note.what])
            story.text = note.text
        case _:
            pass


def label(note: Note) -> str:
    """Return what a message is called: its task and first argument."""
    return f"{note.task} {note.subject}"


def line(note: Note, opened_at: float, paint: Paint) -> str | None:
    """Return the line of an event; None if it has none."""
    what = _what(note, paint)
    if what is None:
        return None
    attempt = f"attempt {note.attempt}" if note.what not in ("after_send",) else ""
    offset = paint("dim", f"{note.at - opened_at:8.3f} s")
    return f"{offset}  {label(note):<20}  {paint('dim', f'{attempt:<9}')}  {what}"


def _what(note: Note, paint: Paint) -> str | None:
    match note.what:
        case "after_send":
            extra = "" if note.priority == "normal" else f", {note.priority} priority"
            when = f", to start in {duration(note.delay_s)}" if note.delay_s else ""
            return f"{paint('blue', 'sent')} to queue {note.queue}{extra}{when}"
        case "before_run":
            return paint("cyan", "started")
        case "succeeded":
            return f"{paint('green', 'done')}: {note.text}"
        case "retrying":
            return f"{paint('yellow', 'failed')}: {note.text}; again in {duration(note.delay_s)}"
        case "dead":
            return (
                f"{paint('red', 'dead')}: {note.text}; {_REASONS.get(note.reason, note.reason)}, kept as a dead letter"
            )
        case "discarded":
            return f"{paint('magenta', 'discarded')}: {note.text}"
        case _:
            return None


_REASONS: Final = {"exhausted": "no attempts left", "gave_up": "not worth another attempt"}


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
    """Return both runs as a table."""
    rows = _rows(one, other)
    return _side_by_side(one, other, rows, paint) if width >= WIDE else _stacked(one, other, rows, paint)


_Row = tuple[str, tuple[str, ...], tuple[str, ...], str]
"""A label, the cells of either run (four of a message, or one), and the verdict."""

_HEAD: Final = ("queue", "runs", "waits", "end")
_WIDTHS: Final = (9, 4, 10, 15)


def _rows(one: Run, other: Run) -> list[_Row]:
    rows: list[_Row] = []
    for first, second in zip(one.stories, other.stories, strict=False):
        rows.append((_named(first), _cells(first), _cells(second), _verdict(first.differs_from(second))))
    rows.append(
        (
            "parcels, in order",
            (", ".join(one.order),),
            (", ".join(other.order),),
            _verdict([] if one.order == other.order else ["order"]),
        )
    )
    rows.append(
        ("left in the broker", (_left(one),), (_left(other),), _verdict([] if one.left == other.left else ["rest"]))
    )
    late = max(one.late_s, other.late_s)
    on_time = "too early" if one.is_early or other.is_early else "on time" if late <= ON_TIME_S else "late"
    rows.append(("delayed starts", (_late(one),), (_late(other),), on_time))
    return rows


def _named(story: Story) -> str:
    return story.label if story.priority == "normal" else f"{story.label} {story.priority}"


def _cells(story: Story) -> tuple[str, ...]:
    return (story.queue, str(len(story.starts)), story.shown_waits, story.end)


def _verdict(differences: Sequence[str]) -> str:
    return f"{', '.join(differences)} differ" if differences else "identical"


def _left(run: Run) -> str:
    waiting, delayed, dead = run.left
    return f"{waiting} waiting, {delayed} delayed, {dead} dead"


def _late(run: Run) -> str:
    return "some too early" if run.is_early else f"never early, {run.late_s:.2f} s late at most"


def _painted(verdict: str, paint: Paint) -> str:
    return paint({"identical": "green", "on time": "green", "late": "yellow"}.get(verdict, "red"), verdict)


def _joined(cells: Sequence[str]) -> str:
    """Return a run's cells in the widths of their columns, or its only cell across them."""
    if len(cells) == 1:
        return f"{cells[0]:<{sum(_WIDTHS) + 2 * (len(_WIDTHS) - 1)}}"
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _side_by_side(one: Run, other: Run, rows: Sequence[_Row], paint: Paint) -> str:
    first = max(len(row[0]) for row in rows)
    head = _joined(_HEAD)
    lines = [
        f"{'':<{first}}  {paint('bold', f'{one.target:<{len(head)}}')}  {paint('bold', other.target)}",
        paint("dim", f"{'':<{first}}  {head}  {head}"),
    ]
    lines += [
        f"{name:<{first}}  {_joined(left)}  {_joined(right)}  {_painted(verdict, paint)}"
        for name, left, right, verdict in rows
    ]
    return "\n".join(lines)


def _stacked(one: Run, other: Run, rows: Sequence[_Row], paint: Paint) -> str:
    first = max(len(row[0]) for row in rows)
    indent = " " * first
    lines: list[str] = [paint("dim", f"{indent}  {'':<2}  {_joined(_HEAD)}")]
    for name, left, right, verdict in rows:
        lines.append(f"{name:<{first}}  {paint('dim', 'a ')}  {_joined(left)}")
        lines.append(f"{indent}  {paint('dim', 'b ')}  {_joined(right)}  {_painted(verdict, paint)}".rstrip())
    lines.append(paint("dim", f"a {one.target}, b {other.target}"))
    return "\n".join(lines)
