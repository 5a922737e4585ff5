"""Values by type hints: a parameter that is annotated `Order` gets an `Order` (rule S4).

The hints of a task's parameters, and of what it returns, name classes: `list[Order] | None` names `Order`, and so names
what the hints of its fields name. A value of exactly such a class travels as `codec.Typed`: the class's name, and what
the value is made of. Whoever receives it looks the name up among the classes that its own hint names, and makes the
value of that class; nothing found in a message is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, EnumMeta, Flag
from functools import partial
from inspect import Parameter, getattr_static, unwrap
from itertools import chain
from pathlib import Path, PurePath
from types import MemberDescriptorType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args, get_origin, get_type_hints

from taskbridge import codec, failures
from taskbridge.codec import Typed, is_dict, is_list, one_less, plain_copy, quoted, unlike, with_stack
from taskbridge.exceptions import EncodeError
from taskbridge.signatures import annotations_of

if TYPE_CHECKING:
    from taskbridge.declaration import Declaration

_APART: Final = "pass what it is made of, and make it where it is needed"


@dataclass(frozen=True, slots=True)
class Form:
    """How the values of a class travel.

    Attributes:
        cls: The class.
        parts: Returns what a value is made of.
        make: Makes a value of its parts; raises anything if they don't fit.
        is_equal: Whether what is made again must equal the first value too: more than its parts makes the difference.
        is_sure: Whether every value can be made again of its parts, so that no sender has to try.
    """

    cls: type
    parts: Callable[[Any], Any]
    make: Callable[[Any], Any]
    is_equal: bool = False
    is_sure: bool = False

    def checked_parts(self, value: Any) -> Any:
        """Return what a value is made of; raise `ValueError` if it can't be made again of that as it was."""
        try:
            parts = self.parts(value)
            if self.is_sure:
                return parts
            made = self.make(parts)
            is_same = type(made) is type(value) and (made == value if self.is_equal else self.parts(made) == parts)
        except RecursionError:  # the stack may have been deep already
            raise
        except (Exception, SystemExit) as exc:  # anything may be raised by a class of the user's own
            problem = f"can't be made again of what it is sent as: {failures.text_of(exc)}"
            raise ValueError(f"{_named(self.cls)} {problem}: {_APART}") from exc
        if not is_same:
            problem = "is not equal any more when it is made again of what it is sent as"
            raise ValueError(f"{_named(self.cls)} {problem}: {_APART}")
        return parts


class Forms:
    """The classes that one hint names, by themselves and by the names that they have in messages."""

    def __init__(self, forms: Iterable[Form | None]) -> None:
        known = [form for form in forms if form is not None]
        names = [form.cls.__name__ for form in known]
        own = [name if names.count(name) == 1 else _named(form.cls) for name, form in zip(names, known, strict=True)]
        self.of: dict[Any, tuple[str, Form]] = {form.cls: (name, form) for name, form in zip(own, known, strict=True)}
        # In both ways, for which of them is sent changes with what else the hint names.
        self.by_name: Mapping[str, Form] = {_named(form.cls): form for form in known} | dict(self.of.values())
        for cls in {Path, PurePath} & self.of.keys():
            self.of.setdefault(type(cls()), self.of[cls])  # a `Path` is made as one of the system's own kind

    def sent(self, value: Any, path: str) -> Any:
        """Return a value as it travels: with what is `Typed` in it; what no message can hold stays as it is.

        Raises:
            EncodeError: It is nested too deeply, or can't be made again.
        """
        try:
            return self._sent(value) if self.of else value
        except (codec.TooDeepError, RecursionError):
            raise EncodeError(path, f"nested more than {codec.MOST_DEPTH} levels deep, or contains itself") from None
        except ValueError as exc:
            raise EncodeError(path, str(exc)) from exc

    @with_stack
    def _sent(self, value: Any) -> Any:
        return self.lowered(value, codec.MOST_DEPTH)

    def lowered(self, value: Any, left: int) -> Any:
        """Do as `sent`, for a value that may be so many levels deep."""
        found = self.of.get(type(value))
        if found is None:
            if type(value) in codec.SCALARS:  # most are, and to ask for their bases takes longer than all the rest
                return value
            value = plain_copy(value)
            kind = cast("Any", type(value))
            if kind not in codec.CONTAINERS:
                return value
            left = one_less(left)
            if kind is dict:
                return {
                    key if type(key) is str else self.lowered(key, left): self.lowered(value[key], left)
                    for key in unlike(value)
                }
            return kind([self.lowered(item, left) for item in (value if kind in (list, tuple) else unlike(value))])
        name, form = found
        return Typed(name, self.lowered(form.checked_parts(value), one_less(left)))

    def received(self, value: Any, path: str) -> Any:
        """Return a value that has travelled, with what is `Typed` in it made; raise `TypeError` if it doesn't fit."""
        try:
            return self._received(value, path)
        except TypeError:
            raise
        except (Exception, SystemExit) as exc:  # such as a class's own `__hash__` raises
            raise TypeError(f"{path}: {failures.text_of(exc)}") from exc

    @with_stack
    def _received(self, value: Any, path: str) -> Any:
        return self.made(value, path)

    def made(self, value: Any, path: str) -> Any:
        """Do as `received`; raises anything if it doesn't fit."""
        kind = cast("Any", type(value))
        if kind is Typed:
            return self._made_of(value, path)
        if kind not in codec.CONTAINERS:
            return value
        if kind is dict:
            keys = unlike([self.made(key, path) for key in value])
            items = [self.made(item, f"{path}[{quoted(key)}]") for key, item in value.items()]
            return dict(zip(keys, items, strict=True))
        items = [self.made(item, f"{path}[{index}]") for index, item in enumerate(value)]
        return kind(items if kind in (list, tuple) else unlike(items))

    def _made_of(self, typed: Typed, path: str) -> Any:
        form, parts = self.by_name.get(typed.type), typed.value
        if form is None and typed.type == codec.RESULTS_TYPE:
            from taskbridge.flows.results import made  # here, for few tasks get some

            return made(parts, path)
        if form is None:
            known = ", ".join(dict(self.of.values())) or "no class"
            raise TypeError(f"{path}: it is of class {typed.type!r}, and the type hint names {known}")
        if is_dict(parts):
            parts = {name: self.made(item, f"{path}.{name}") for name, item in parts.items()}
        else:
            parts = self.made(parts, path)
        try:
            return form.make(parts)
        except RecursionError:  # the stack may have been deep already
            raise
        except (Exception, SystemExit) as exc:
            raise TypeError(f"{path}: it is no {_named(form.cls)}: {failures.text_of(exc)}") from exc


_NOTHING: Final = Forms(())


class Hints:
    """The classes that the hints of a task name.

    Args:
        by: Those of each parameter, by its index if it may be given by position, and by its name if by that; and those
            of what the task returns, as `return`.
        others: Those of further arguments by position, and by name.
    """

    def __init__(self, by: Mapping[int | str, Forms], others: Sequence[Forms] = (_NOTHING, _NOTHING)) -> None:
        self._by = by
        self._others = others
        self.result: Forms = by.get("return", _NOTHING)

    def lowered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments as they travel; raises `EncodeError`."""
        return self._each(Forms.sent, args, kwargs)

    def made(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments that have travelled as the function gets them; raise `TypeError` if they don't fit."""
        return self._each(Forms.received, args, kwargs)

    def _each(
        self, act: Callable[[Forms, Any, str], Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        of, (more, named) = self._by.get, self._others
        return (
            [act(of(index, more), value, f"args[{index}]") for index, value in enumerate(args)],
            {name: act(of(name, named), value, f'kwargs["{name}"]') for name, value in kwargs.items()},
        )


NO_HINTS: Final = Hints({})


# What hints name


def hints_of(declaration: Declaration) -> Hints | None:
    """Return what the hints of a task name; None if they name no class."""
    named, by = {name: Forms(found.values()) for name, found in _looked_up(declaration, [])}, dict[int | str, Forms]()
    if not any(forms.of for forms in named.values()):
        return None
    others = [_NOTHING, _NOTHING]
    for index, (name, parameter) in enumerate(declaration.signature.parameters.items()):
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            others[parameter.kind is Parameter.VAR_KEYWORD] = named.get(name, _NOTHING)
            continue
        if parameter.kind is not Parameter.KEYWORD_ONLY:
            by[index] = named.get(name, _NOTHING)
        if parameter.kind is not Parameter.POSITIONAL_ONLY:
            by[name] = named.get(name, _NOTHING)
    return Hints(by | {"return": named.get("return", _NOTHING)}, others)


def unresolved(declaration: Declaration) -> list[str]:
    """Return the hints of a task, and of the classes that they name, that can't be resolved and count as none."""
    problems: list[str] = []
    _ = list(_looked_up(declaration, problems))
    return list(dict.fromkeys(problems))


def _looked_up(declaration: Declaration, problems: list[str]) -> Iterator[tuple[str, dict[Any, Form | None]]]:
    """Yield the classes that each hint of a task names; those that can't be resolved are added to the problems."""
    signature, function = declaration.signature, unwrap(declaration.function)
    hints = {name: each.annotation for name, each in signature.parameters.items()}
    hints["return"] = signature.return_annotation
    given = {name: hint for name, hint in hints.items() if hint is not Parameter.empty}
    scope = getattr(function, "__globals__", None) or vars(sys.modules.get(function.__module__, sys))
    for name, hint in _resolved(given, scope, {}, declaration.name, problems):
        found: dict[Any, Form | None] = {}
        _look(hint, found, problems)
        yield name, found


def _look(hint: Any, found: dict[Any, Form | None], problems: list[str]) -> None:
    """Find the classes that a hint names, at any depth, and how their values travel; None for what travels plainly."""
    cls: Any = get_origin(hint) or hint
    parts: Iterable[Any] = hint if is_list(hint) else get_args(hint)  # a list is in the hint of a callable
    for part in parts:
        _look(type(part) if cls is Literal else part, found, problems)
    for name in ("__supertype__", "__value__"):  # of a NewType, and of `type X = ...`, which may name itself
        if not isinstance(cls, type) and hasattr(cls, name) and cls not in found:
            found[cls] = None
            _look(getattr(cls, name), found, problems)
    if not isinstance(cls, type) or cls in found:
        return
    form = found[cls] = form_of(cls)
    for part in chain.from_iterable(map(get_args, getattr(cls, "__orig_bases__", ()))):
        _look(part, found, problems)
    if _is_typed_dict(cls) or (form is not None and isinstance(form.make, partial)):  # it has fields
        for base in cls.__mro__[:-1]:  # each may be of another module
            try:
                raw = annotations_of(base)
            except Exception as exc:  # from Python 3.14 on they are evaluated when they are asked for
                problems.append(f"{_named(base)}: {exc}")
                continue
            scope = vars(sys.modules.get(base.__module__, sys))
            local = {each.__name__: each for each in (base, *getattr(base, "__parameters__", ()))}
            for _, part in _resolved(raw, scope, local, _named(base), problems):
                _look(part, found, problems)


def _resolved(
    raw: Mapping[str, Any], scope: Mapping[str, Any], local: Mapping[str, Any], owner: str, problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield hints, resolved one by one: one that can't be counts as none, whatever becomes of the others."""
    for name, hint in raw.items():
        try:
            found = get_type_hints(SimpleNamespace(__annotations__={name: hint}), dict(scope), dict(local))
        except Exception as exc:  # whatever the evaluation of somebody's text raises
            what = getattr(hint, "__forward_arg__", hint)  # from Python 3.14 on a `ForwardRef`
            problems.append(f"{owner}: the hint {what!r} of {name!r} can't be resolved: {failures.text_of(exc)}")
        else:
            yield name, found[name]


# The kinds of classes


def form_of(cls: Any) -> Form | None:
    """Return how values of a class travel; None if a hint that names it says nothing."""
    if hasattr(cls, "__mapper__"):  # SQLAlchemy's: a row of a database, which a copy is not
        return None
    if issubclass(cls, Enum):
        return Form(cls, lambda value: value.value, cls, is_sure=_has_members_only(cls))
    if issubclass(cls, PurePath):
        return Form(cls, str, cls)
    if hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json"):
        dump = partial(cls.model_dump, mode="json", by_alias=False, round_trip=True, warnings="error")
        load = partial(cls.model_validate_json, by_alias=False, by_name=True)
        return Form(cls, dump, lambda parts: load(codec.to_json(parts)), is_equal=True)
    names = _fields_of(cls)
    if names is not None:
        make, is_sure = partial(_of_fields, cls, names), _is_made_of_fields_only(cls, names)
        return Form(cls, lambda value: {name: getattr(value, name) for name in names}, make, is_sure=is_sure)
    is_plain = _is_typed_dict(cls) or not {str, int, float, list, dict} & {*cls.__mro__[1:]} or cls is bool
    return None if is_plain else Form(cls, plain_copy, cls)


def _is_typed_dict(cls: Any) -> bool:
    return dict in cls.__mro__ and hasattr(cls, "__total__")


def _fields_of(cls: Any) -> dict[str, str | None] | None:
    """Return a class's fields, and what its `__init__` calls each, if it takes it; None if it is of no such kind."""
    if is_dataclass(cls):
        return {each.name: each.name if each.init else None for each in fields(cls)}
    if "__attrs_attrs__" in vars(cls):
        return {each.name: each.alias if each.init else None for each in cls.__attrs_attrs__}
    names: Any = getattr(cls, "_fields", None) if tuple in cls.__mro__ else None
    return None if names is None else {name: name for name in names}


def _has_members_only(cls: Any) -> bool:
    """Return whether an enum has no values but its members, and finds each by what it is sent as."""
    kind = cast("Any", type(cls))
    own = {name for base in cls.__mro__ if base.__module__ != "enum" for name in base.__dict__}
    if kind is not EnumMeta or issubclass(cls, Flag) or own & {"_missing_", "value"}:
        return False
    try:
        return all(cls(member.value) is member for member in cls)
    except Exception:  # its members have other values than they were made of, say
        return False


def _is_made_of_fields_only(cls: Any, names: Mapping[str, str | None]) -> bool:
    """Return whether a class is a plain dataclass: whatever its fields hold, its `__init__` sets them to that.

    That is so if the `__init__` is the one that `dataclasses` writes, and it calls nothing of the class's own. Which
    one it is can be seen from Python 3.11 on; before, no class counts as plain.
    """
    code: Any = getattr(cls.__init__, "__code__", None)
    if getattr(code, "co_qualname", "") != "__create_fn__.<locals>.__init__" or hasattr(cls, "__post_init__"):
        return False
    kind, given = cast("Any", type(cls)), {name for name in names.values() if name is not None}
    places: list[Any] = [type(getattr_static(cls, name, None)) for name in names]
    return (
        kind is type
        and cls.__new__ is object.__new__
        and cls.__getattribute__ is object.__getattribute__
        and (cls.__setattr__ is object.__setattr__ or cls.__dataclass_params__.frozen)
        and given == {*code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]}  # else there are `InitVar`s
        and all(each is MemberDescriptorType or not hasattr(each, "__set__") for each in places)
    )


def _of_fields(cls: Any, names: Mapping[str, str | None], parts: Any) -> Any:
    if not is_dict(parts):
        raise TypeError(f"it is made of fields, and not of a {type(parts).__name__}")
    for name in parts:
        if name not in names:
            raise TypeError(f"it has no field {name!r}, but {', '.join(names) or 'none'}")
    made = cls(**{known: parts[name] for name, known in names.items() if known is not None and name in parts})
    for name, known in names.items():
        if known is None and name in parts:
            object.__setattr__(made, name, parts[name])  # its class may be frozen
    return made


def _named(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
