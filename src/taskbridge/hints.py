"""Values by type hints: a parameter that is annotated `Order` gets an `Order` (rule S4).

The hints of a task's parameters, and of what it returns, name classes: `list[Order] | None` names `Order`, and so names
what the hints of its fields name. A value of exactly such a class travels as `codec.Typed`: the class's name, and what
the value is made of. Whoever receives it looks the name up among the classes that its own hint names, and makes the
value of that class; nothing found in a message is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from inspect import Parameter, get_annotations, unwrap
from operator import eq
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args, get_origin, get_type_hints

from taskbridge import failures
from taskbridge.codec import MOST_DEPTH, TooDeepError, Typed, plain_copy, to_json, unlike
from taskbridge.exceptions import EncodeError

if TYPE_CHECKING:
    from taskbridge.declaration import Declaration

Path = tuple[Any, ...]
"""Where a value stands, from the inside: the path of what it is in, and how it is found there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How the values of a class travel.

    Attributes:
        cls: The class.
        parts: Returns what a value is made of.
        make: Makes a value of its parts; raises anything if they don't fit.
        is_same: Returns whether a value that was made again is the one that it was made of; None if it surely is.
    """

    cls: type
    parts: Callable[[Any], Any]
    make: Callable[[Any], Any]
    is_same: Callable[[Any, Any], bool] | None = None

    def checked_parts(self, value: Any) -> Any:
        """Return what a value is made of.

        Raises:
            ValueError: It can't be made again of that; it says why.
        """
        name = named(self.cls)
        try:
            parts = self.parts(value)
            is_same = self.is_same is None or self.is_same(self.make(parts), value)
        except (Exception, SystemExit) as exc:  # anything may be raised by a class of the user's own
            raise ValueError(f"{name} can't be made again of what it is sent as: {failures.text_of(exc)}") from exc
        if not is_same:
            raise ValueError(f"{name} is not equal any more when it is made again of what it is sent as")
        return parts


class Forms:
    """The classes that one hint names.

    Attributes:
        of: Their forms, and the names that they have in messages.
        by_name: The forms by these names.
    """

    def __init__(self, forms: Sequence[Form]) -> None:
        names = [form.cls.__name__ for form in forms]
        own = [name if names.count(name) == 1 else named(form.cls) for name, form in zip(names, forms, strict=True)]
        self.by_name: Mapping[str, Form] = dict(zip(own, forms, strict=True))
        self.of: dict[type, tuple[str, Form]] = {form.cls: (name, form) for name, form in self.by_name.items()}
        if (pathlib := sys.modules.get("pathlib")) is not None:  # a `Path` is made as one of the system's own kind
            for cls in (pathlib.Path, pathlib.PurePath):
                if cls in self.of:
                    self.of.setdefault(type(cls()), self.of[cls])

    def lowered(self, value: Any, left: int = MOST_DEPTH) -> Any:
        """Return a value with what is `Typed` in it, up to so many levels deep; what can't be sent stays as it is."""
        found = self.of.get(type(value))
        if found is None:
            value = plain_copy(value)
            kind = type(value)
            if kind not in _CONTAINERS:
                return value
            left = _one_less(left)
            if kind is dict:
                return {self.lowered(key, left): self.lowered(item, left) for key, item in value.items()}
            return kind([self.lowered(item, left) for item in value])
        name, form = found
        return Typed(name, self.lowered(form.checked_parts(value), _one_less(left)))

    def made(self, value: Any, path: Path) -> Any:
        """Return a value with what is `Typed` in it made.

        Raises:
            TypeError: It can't be made; it says where that stands, and why.
        """
        kind = type(value)
        if kind is Typed:
            form = self.by_name.get(value.type)
            if form is None:
                known = ", ".join(self.by_name) or "no class"
                raise TypeError(f"{_told(path)}: it is of class {value.type!r}, and the type hint names {known}")
            parts = self._parts(value.value, path)
            try:
                return form.make(parts)
            except (Exception, SystemExit) as exc:
                raise TypeError(f"{_told(path)}: it is no {named(form.cls)}: {failures.text_of(exc)}") from exc
        if kind is dict:
            keys = unlike([self.made(key, path) for key in value])
            return {key: self.made(item, (path, key)) for key, item in zip(keys, value.values(), strict=True)}
        if kind is list or kind is tuple:
            return kind([self.made(item, (path, index)) for index, item in enumerate(value)])
        return kind(unlike([self.made(item, path) for item in value])) if kind in _CONTAINERS else value

    def _parts(self, parts: Any, path: Path) -> Any:
        if type(parts) is not dict:
            return self.made(parts, path)
        items = cast("dict[Any, Any]", parts).items()
        return {name: self.made(item, (path, name, "field")) for name, item in items}


_CONTAINERS: Final = frozenset((list, dict, tuple, set, frozenset))


def _one_less(left: int) -> int:
    if not left:
        raise TooDeepError
    return left - 1


def _told(path: Path) -> str:
    """Return a path as errors tell it, such as `args[0].lines[2]`."""
    if len(path) == 1:
        return str(path[0])
    before, step, *is_field = path
    if is_field:
        return f"{_told(before)}.{step}"
    return f'{_told(before)}["{step}"]' if isinstance(step, str) else f"{_told(before)}[{step!r}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hints:
    """The classes that the hints of a task name: of its parameters, and of what it returns.

    Attributes:
        positional: Those of the parameters that may be given by position, in order.
        named: Those of the parameters that may be given by name.
        others: Those of further arguments, by position and by name: `*args` and `**kwargs`.
        result: Those of what it returns.
    """

    positional: Sequence[Forms]
    named: Mapping[str, Forms]
    others: tuple[Forms, Forms]
    result: Forms

    def lowered(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments as they travel.

        Raises:
            EncodeError: One of them can't be sent.
        """
        return (
            [_lowered(self._at(index), value, f"args[{index}]") for index, value in enumerate(args)],
            {name: _lowered(self._of(name), value, f'kwargs["{name}"]') for name, value in kwargs.items()},
        )

    def made(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments that have travelled as the function gets them.

        Raises:
            TypeError: They don't fit the hints; it says where, and why.
        """
        return (
            [self._at(index).made(value, (f"args[{index}]",)) for index, value in enumerate(args)],
            {name: self._of(name).made(value, (f'kwargs["{name}"]',)) for name, value in kwargs.items()},
        )

    def lowered_result(self, value: Any) -> Any:
        """Return what the task returned as it is recorded; raises `EncodeError`."""
        return _lowered(self.result, value, "result")

    def _at(self, index: int) -> Forms:
        return self.positional[index] if index < len(self.positional) else self.others[0]

    def _of(self, name: str) -> Forms:
        return self.named.get(name, self.others[1])


def _lowered(forms: Forms, value: Any, path: str) -> Any:
    if not forms.of:
        return value
    try:
        return forms.lowered(value)
    except TooDeepError:
        raise EncodeError(path, f"nested more than {MOST_DEPTH} levels deep, or contains itself") from None
    except ValueError as exc:
        raise EncodeError(path, str(exc)) from exc


# What hints name

_NOTHING: Final = Forms(())
NO_HINTS: Final = Hints(positional=(), named={}, others=(_NOTHING, _NOTHING), result=_NOTHING)
"""The hints of a task that has none."""


def hints_of(declaration: Declaration) -> Hints | None:
    """Return what the hints of a task name; None if they name no class."""
    of = dict[str, Forms]()
    for name, hint in _function_hints(declaration, []):
        forms = dict[Any, Form | None]()
        _look(hint, forms, [])
        of[name] = Forms([form for form in forms.values() if form is not None])
    if not any(forms.by_name for forms in of.values()):
        return None
    positional, named, others = list[Forms](), dict[str, Forms](), [_NOTHING, _NOTHING]
    for name, parameter in declaration.signature.parameters.items():
        forms_here = of.get(name, _NOTHING)
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            others[parameter.kind is Parameter.VAR_KEYWORD] = forms_here
            continue
        if parameter.kind is not Parameter.KEYWORD_ONLY:
            positional.append(forms_here)
        if parameter.kind is not Parameter.POSITIONAL_ONLY:
            named[name] = forms_here
    return Hints(positional=positional, named=named, others=(others[0], others[1]), result=of.get("return", _NOTHING))


def unresolved(declaration: Declaration) -> list[str]:
    """Return the hints of a task, and of the classes that they name, which can't be resolved and count as none."""
    problems: list[str] = []
    seen: dict[Any, Form | None] = {}
    for _, hint in _function_hints(declaration, problems):
        _look(hint, seen, problems)
    return problems


def _function_hints(declaration: Declaration, problems: list[str]) -> Iterator[tuple[str, Any]]:
    signature, function = declaration.signature, unwrap(declaration.function)
    hints = {name: each.annotation for name, each in signature.parameters.items()}
    hints["return"] = signature.return_annotation
    scope = getattr(function, "__globals__", None) or vars(sys.modules.get(function.__module__, sys))
    given = {name: hint for name, hint in hints.items() if hint is not Parameter.empty}
    yield from _resolved(given, scope, {}, declaration.name, problems)


def _class_hints(cls: type, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the hints of a class's attributes, each resolved where it stands: a base may be of another module."""
    for base in cls.__mro__[:-1]:
        try:
            raw = get_annotations(base)
        except Exception as exc:  # a name that is not there; annotations are made when they are asked for
            problems.append(f"{named(base)}: {exc}")
            continue
        local = {base.__name__: base, **{each.__name__: each for each in getattr(base, "__parameters__", ())}}
        yield from _resolved(raw, vars(sys.modules.get(base.__module__, sys)), local, named(base), problems)


def _resolved(
    raw: Mapping[str, Any], scope: Mapping[str, Any], local: Mapping[str, Any], owner: str, problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """Yield hints that are resolved one by one: one that can't be counts as none, whatever becomes of the others."""
    for name, hint in raw.items():
        try:
            found = get_type_hints(SimpleNamespace(__annotations__={name: hint}), dict(scope), dict(local))
        except Exception as exc:  # whatever the evaluation of somebody's text raises
            problems.append(f"{owner}: the hint {hint!r} of {name!r} can't be resolved: {failures.text_of(exc)}")
        else:
            yield name, found[name]


def _look(hint: Any, found: dict[Any, Form | None], problems: list[str]) -> None:
    """Find the classes that a hint names, at any depth, and how their values travel; None for what travels plainly."""
    origin = get_origin(hint)
    for part in hint if isinstance(hint, list) else get_args(hint):  # a list is in the hint of a callable
        _look(type(part) if origin is Literal else part, found, problems)
    cls: Any = origin or hint
    if isinstance(cls, type):
        if cls in found:
            return
        form = found[cls] = form_of(cls)
        if _is_typed_dict(cls) or (form is not None and isinstance(form.make, partial)):  # it has fields
            for _, each in _class_hints(cls, problems):
                _look(each, found, problems)
    for name in ("__supertype__", "__value__"):  # of a NewType, and of `type X = ...`, which may name itself
        if hasattr(cls, name) and cls not in found:
            found[cls] = None
            _look(getattr(cls, name), found, problems)


# The kinds of classes


def form_of(cls: Any) -> Form | None:
    """Return how values of a class travel; None if a hint that names it says nothing."""
    pathlib = sys.modules.get("pathlib")
    if hasattr(cls, "__mapper__"):  # SQLAlchemy's: a row of a database, which a copy is not
        return None
    if issubclass(cls, Enum):
        return Form(cls=cls, parts=lambda value: value.value, make=cls)
    if pathlib is not None and issubclass(cls, pathlib.PurePath):
        return Form(cls=cls, parts=str, make=cls)
    if hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json"):
        return Form(cls=cls, parts=_model_parts, make=lambda parts: _model_of(cls, parts), is_same=eq)
    names = _fields_of(cls)
    if names is not None:
        parts = partial(_field_parts, tuple(names))
        return Form(cls=cls, parts=parts, make=partial(_of_fields, cls, names), is_same=_is_same(cls, parts))
    return next(
        (
            Form(cls=cls, parts=plain_copy, make=cls, is_same=lambda made, value: plain_copy(made) == plain_copy(value))
            for base in (str, int, float, list, dict)
            if issubclass(cls, base) and cls not in (base, bool) and not _is_typed_dict(cls)
        ),
        None,
    )


def _is_typed_dict(cls: type) -> bool:
    return dict in cls.__mro__ and hasattr(cls, "__total__")


def _fields_of(cls: Any) -> dict[str, str | None] | None:
    """Return a class's fields, and what its `__init__` calls each, if it takes it; None if it is of no such kind."""
    if is_dataclass(cls):
        return {each.name: each.name if each.init else None for each in fields(cls)}
    if "__attrs_attrs__" in vars(cls):
        return {each.name: each.alias if each.init else None for each in cls.__attrs_attrs__}  # attrs 22.2
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return {name: name for name in cls._fields}
    return None


def _is_same(cls: Any, parts: Callable[[Any], Any]) -> Callable[[Any, Any], bool] | None:
    """Return what tells whether a value was made again as it was; None if only fields are set to make one."""
    own = vars(cls).get("__dataclass_params__")
    changes = any(hasattr(cls, name) for name in ("__post_init__", "__pydantic_validator__"))
    if own is not None and own.init and not changes:
        return None
    return lambda made, value: type(made) is type(value) and parts(made) == parts(value)


def _field_parts(names: Sequence[str], value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}


def _of_fields(cls: Any, names: Mapping[str, str | None], parts: Any) -> Any:
    if type(parts) is not dict:
        raise TypeError(f"it is made of fields, not of a {type(parts).__name__}")
    given = cast("dict[str, Any]", parts)
    for name in given:
        if name not in names:
            raise TypeError(f"it has no field {name!r}, but {', '.join(names) or 'none'}")
    made = cls(**{known: given[name] for name, known in names.items() if known is not None and name in given})
    for name, known in names.items():
        if known is None and name in given:
            object.__setattr__(made, name, given[name])  # its class may be frozen
    return made


def _model_parts(value: Any) -> Any:
    return value.model_dump(mode="json", by_alias=False, round_trip=True, warnings="error")


def _model_of(cls: Any, parts: Any) -> Any:
    return cls.model_validate_json(to_json(parts), by_alias=False, by_name=True)


def named(cls: Any) -> str:
    """Return a class's name with its module's."""
    return f"{cls.__module__}.{cls.__qualname__}"
