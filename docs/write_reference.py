"""Writes the page of all public signatures: `python docs/write_reference.py > docs/reference/index.md`.

They are read from the source rather than from the running objects, for only there are overloads, parameters of
decorated functions and the names of types as they were written.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from itertools import chain, pairwise, zip_longest
from types import ModuleType
from typing import Final

import taskbridge
from taskbridge import operations, testing

HEAD: Final = """\
# Reference

<!-- Written by docs/write_reference.py: change the source or that, not this page. -->

All public names with their signatures, on one page. Import them from `taskbridge`, or from `taskbridge.testing` where
it says so. What they mean, with arguments and errors, is on the pages below.

```{toctree}
:maxdepth: 1

tasks
flows
retries
bridge
testing
errors
protocols
command-line
```

`P` and `R` are the parameters and the result of your own function, so that a type checker knows them wherever a task
is called or sent; `R2` is the result of a task that follows it. The [other words](#words) in these signatures stand at
the end.
"""

GROUPS: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "Declare": ("tasks.md", ("task", "Unique", "Cron", "Every", "Queue", "Priority")),
    "Send": ("tasks.md", ("Task", "AsyncTask", "Call", "Handle")),
    "Follow": ("tasks.md", ("Status", "State", "Attempt", "Progress", "MessageResults")),
    "Flows": (
        "flows.md",
        ("group", "become", "Flow", "FlowHandle", "FlowStatus", "FlowEnd", "Results", "Outcome"),
    ),
    "Inside a task": ("tasks.md", ("current", "Context")),
    "Retry": ("retries.md", ("RetryPolicy", "Retry", "Discard", "ErrorInfo")),
    "Configure": ("bridge.md", ("configure", "default_bridge", "Bridge")),
    "Around and after runs": ("bridge.md", ("around", "on", "Event")),
    "Operate": (
        "bridge.md",
        (
            "Counts",
            "Health",
            "Pause",
            "DeadLetters",
            "DeadPage",
            "DeadEntry",
            "Replayed",
            "DeadLetter",
            "Message",
            "Schedules",
            "ScheduleEntry",
        ),
    ),
}
"""The public names but for errors, by what they are for, with the page that explains them."""

MADE_BY_YOU: Final = frozenset({"Bridge", "RetryPolicy", "Retry", "Discard", "Unique", "Cron", "Every", "Queue"})
"""Classes that an application makes objects of; of all others, what makes them is no concern of its own."""

FOR_ENGINES: Final[Mapping[str, frozenset[str]]] = {
    name: frozenset(words.split())
    for name, words in {
        "Bridge": "around_of broker broker_for cancellations check_priorities clock declaration_of declarations divert "
        "engine flows knows marks move_to now pauses queue_of recording records records_of relay run_until store wire "
        "worker_commands work_is_there bound is_stopping task around on",
        "Task": "declaration",
        "Call": "declaration options encoded sender followed",
        "Handle": "bridge",
        "Flow": "stages failure end id sender followed",
        "FlowHandle": "bridge",
        "Results": "flow parts",
        "Status": "result_json sent",
        "MessageResults": "aside ended aended",
        "Context": "message runner",
        "Event": "arguments_of",
        "RetryPolicy": "wait_s retries",
        "Cron": "spec zone ticks",
        "Every": "interval_s spec ticks",
        "DeadLetter": "dumps",
        "DeadLetters": "shown_arguments",
        "Message": "form waits waits_since redelivered requeues unique digest relayed keeps_call flow plain life "
        "attempt_key size headers_size check_rare next_attempt replayed dumps dumps_meta",
        "Schedules": "declare add planned declared check send follow",
        "Unique": "check held_by",
    }.items()
}
"""What those who write an engine need and applications don't, and what stands elsewhere on the page."""

WIDTH: Final = 92
"""How long a line of a signature may be."""

LONGEST: Final = 120
"""How long any line may be."""

INHERITED: Final = {"Task": "Sendable", "Call": "Steps", "Bridge": "Parts"}
"""Bases that are not public themselves; what they have is shown with the class."""

ELSEWHERE: Final = {
    "AsyncTask": "using, send, schedule and all else as in Task",
    "Flow": "then, then_call, on_failure and on_end as in Call",
    "Bridge": "task, around and on: as the functions of these names",
}
"""What is said of members that stand elsewhere on the page."""

WORDS: Final = {
    "durations": ("Duration", "When"),
    "tasks": ("Header",),
    "flows.states": ("FlowState",),
    "unique": ("Until", "OnConflict"),
    "schedules.plan": ("CatchUp", "Overlap"),
    "routing": ("QueueType",),
    "hooks": ("HookName",),
}
"""Aliases that signatures name, by module."""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, (link, names) in GROUPS.items():
        parts += [f"## {title}\n", f"[In full]({link})\n", _block(_text(_home(name), name) for name in names)]
    shown = ("inline", "capture_sent", "watch_sent", "Sent", "SentMessage", "fake_run")
    parts += ["## Test\n", "From `taskbridge.testing`: [in full](testing.md)\n"]
    parts += [_block(_text(testing, name) for name in shown)]
    parts += ["## See what goes on\n", "From `taskbridge.operations`: [in full](bridge.md)\n"]
    parts += [_block(_text(operations, name) for name in operations.__all__)]
    parts += ["## Errors\n", "[In full](errors.md)\n", _block(["\n".join(map(_error, _errors()))])]
    aliases = [_text(import_module(f"taskbridge.{home}"), name) for home, names in WORDS.items() for name in names]
    parts += ["## Words\n", _block(["\n".join(aliases)])]
    return "\n".join(parts)


def _block(texts: Iterable[str]) -> str:
    """Return a block in the form of a stub, as `ruff format` writes it: no empty line between functions."""
    given = [text.replace("'", '"') for text in texts]
    between = ["\n" if _is_function(one) and _is_function(other) else "\n\n" for one, other in pairwise(given)]
    return "\n".join(["```pyi", "".join(chain(*zip_longest(given, between, fillvalue=""))), "```", ""])


def _is_function(text: str) -> bool:
    return text.startswith(("def ", "@"))


def _home(name: str) -> ModuleType:
    return import_module(f"taskbridge.{taskbridge._HOMES[name]}")


def _text(module: ModuleType, name: str) -> str:
    found = getattr(module, name)
    if inspect.isclass(found):
        return "\n".join(_class(found))
    if inspect.ismethod(found):  # a method of the default bridge, which is a subclass of Bridge
        return "\n".join(_functions(_members(taskbridge.Bridge), name, drops_self=True))
    if inspect.isfunction(found):
        return "\n".join(_functions(_statements(module), name))
    [alias] = [each for each in _statements(module) if _target(each) == name]
    assert isinstance(alias, ast.Assign | ast.AnnAssign)
    assert alias.value is not None
    line = f"{name} = {ast.unparse(alias.value)}"
    if len(line) <= LONGEST or not isinstance(alias.value, ast.Subscript):
        return line
    assert isinstance(alias.value.slice, ast.Tuple)
    parts = [f"    {ast.unparse(each)}," for each in alias.value.slice.elts]
    return "\n".join([f"{name} = {ast.unparse(alias.value.value)}[", *parts, "]"])


class _Values(ast.NodeTransformer):
    """Puts values in the place of a module's constants, such as `DEFAULT_LIMIT`."""

    def __init__(self, module: ModuleType) -> None:
        self._values = vars(module)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self._values.get(node.id)
        is_constant = isinstance(node.ctx, ast.Load) and node.id.isupper() and isinstance(value, int | float | str)
        return ast.Constant(value) if is_constant else node


def _statements(module: ModuleType) -> list[ast.stmt]:
    read = ast.parse(inspect.getsource(module).replace("R_co", "R"))
    return [_Values(module).visit(each) for each in read.body]


def _members(kind: type) -> list[ast.stmt]:
    name = kind.__name__
    all_of_it = _statements(import_module(kind.__module__))
    [found] = [each for each in all_of_it if isinstance(each, ast.ClassDef) and each.name == name]
    return found.body


def _target(statement: ast.stmt) -> str:
    if isinstance(statement, ast.Assign):
        [target, *_] = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        target = statement.target
    else:
        return ""
    return target.id if isinstance(target, ast.Name) else ""


def _class(kind: type) -> Iterator[str]:
    name = kind.__name__
    lines = [f"    {line}" for line in _lines(kind)]
    if name in ELSEWHERE:
        lines.append(f"    # {ELSEWHERE[name]}")
    yield f"class {name}{_base(kind)}:{'' if lines else ' ...'}"
    yield from lines


def _base(kind: type) -> str:
    if issubclass(kind, BaseException):
        return "(Exception)"
    if kind.__name__ in ("Task", "AsyncTask"):
        return "(Generic[P, R])"
    if getattr(kind, "__parameters__", ()):
        return "(Generic[R])"
    if issubclass(kind, list):
        return "(list[SentMessage])"
    return "(Sequence[R])" if issubclass(kind, Sequence) else ""


def _lines(kind: type) -> Iterator[str]:
    name = kind.__name__
    if name in MADE_BY_YOU and is_dataclass(kind) and "__init__" not in _names(_members(kind)):
        yield from _constructor(kind)
        return
    done = set(FOR_ENGINES.get(name, ()))
    for each in kind.__mro__:
        if each is kind or each.__name__ == INHERITED.get(name):
            members = _members(each)
            wanted = [word for word in _names(members) if word not in done and _is_shown(word, kind)]
            done.update(wanted)
            for word in wanted:
                yield from _member(members, word)


def _names(members: Sequence[ast.stmt]) -> list[str]:
    return list(dict.fromkeys(str(getattr(each, "name", "")) or _target(each) for each in members))


def _is_shown(name: str, kind: type) -> bool:
    if name == "__init__":
        return kind.__name__ in MADE_BY_YOU
    return name == "__call__" or (name != "" and not name.startswith("_"))


def _constructor(kind: type) -> Iterator[str]:
    """Yield the signature of an `__init__` that `dataclass` has made."""
    [function] = ast.parse(f"def __init__(self, {str(inspect.signature(kind))[1:]}: ...").body
    assert isinstance(function, ast.FunctionDef)
    for each in (*function.args.args, *function.args.kwonlyargs):
        if isinstance(each.annotation, ast.Constant):  # annotations are kept as text
            each.annotation = ast.parse(str(each.annotation.value), mode="eval").body
    yield from _signature(function)


def _member(members: Sequence[ast.stmt], name: str) -> Iterator[str]:
    each = next(each for each in members if name in (getattr(each, "name", ""), _target(each)))
    if isinstance(each, ast.AnnAssign):
        default = "" if each.value is None or isinstance(each.value, ast.Call) else f" = {ast.unparse(each.value)}"
        yield f"{name}: {ast.unparse(each.annotation)}{default}"
    elif isinstance(each, ast.Assign):
        yield from _in_thread(each, members)
    elif isinstance(each, ast.FunctionDef) and "property" in map(ast.unparse, each.decorator_list):
        assert each.returns is not None
        yield f"{name}: {ast.unparse(each.returns)}  # read only"
    else:
        yield from _functions(members, name)


def _in_thread(assigned: ast.Assign, members: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the signature of `asend = in_thread(send)`."""
    call = assigned.value
    if isinstance(call, ast.Call) and ast.unparse(call.func) == "in_thread":
        method = ast.unparse(call.args[0])
        for line in _functions(members, method):
            yield line.replace(f"def {method}(", f"async def {_target(assigned)}(")


def _functions(statements: Sequence[ast.stmt], name: str, *, drops_self: bool = False) -> Iterator[str]:
    """Yield the signatures of a function: those of its overloads, if it has any."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = [each for each in statements if isinstance(each, kinds) and each.name == name]
    overloads = [each for each in found if "overload" in map(ast.unparse, each.decorator_list)]
    for each in overloads or found:
        if drops_self:
            del (each.args.posonlyargs or each.args.args)[0]
        yield from _signature(each)


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    marks = map(ast.unparse, function.decorator_list)
    yield from (f"@{mark}" for mark in marks if mark in ("classmethod", "contextmanager"))
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    start = f"{'async ' if isinstance(function, ast.AsyncFunctionDef) else ''}def {function.name}("
    given = list(_arguments(function.args))
    line = f"{start}{', '.join(given)}){returns}: ..."
    if len(line) <= WIDTH:
        yield line
        return
    yield start
    yield from (f"    {each}," for each in given)
    yield f"){returns}: ..."


def _arguments(given: ast.arguments) -> Iterator[str]:
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    for place, (each, default) in enumerate(zip(positional, defaults, strict=True), 1):
        yield _argument(each, default)
        if place == len(given.posonlyargs):
            yield "/"
    if given.vararg:
        yield f"*{_argument(given.vararg, None)}"
    elif given.kwonlyargs:
        yield "*"
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(each, default)
    if given.kwarg:
        yield f"**{_argument(given.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    hint = f": {ast.unparse(argument.annotation)}" if argument.annotation else ""
    if default is None:
        return f"{argument.arg}{hint}"
    return f"{argument.arg}{hint}{' = ' if hint else '='}{ast.unparse(default)}"


def _errors() -> list[type[BaseException]]:
    grouped = {name for _, group in GROUPS.values() for name in group}
    found = [getattr(taskbridge, name) for name in taskbridge.__all__ if name not in grouped]
    return sorted(found, key=lambda kind: (kind is not taskbridge.TaskBridgeError, kind.__name__))


def _error(kind: type[BaseException]) -> str:
    bases = ("Exception" if base.__name__ == "Portable" else base.__name__ for base in kind.__bases__)
    return f"class {kind.__name__}({', '.join(bases)}): ..."


if __name__ == "__main__":
    sys.stdout.write(page())
