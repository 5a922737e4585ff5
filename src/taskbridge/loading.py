"""Finds the bridge of an application that is named on a command line, as `MODULE[:BRIDGE]`."""

from __future__ import annotations

import os
import pkgutil
import re
import sys
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from taskbridge import log_output
from taskbridge.bridge import Bridge, default_bridge
from taskbridge.engines.base import APP_VARIABLE, LEVEL_VARIABLE, METRICS_VARIABLE, READY_VARIABLE, tell_supervisor
from taskbridge.exceptions import TaskBridgeError, nearest
from taskbridge.hooks import Event
from taskbridge.schedules import sender

DJANGO_APP: Final = "taskbridge.django.app"  # what is loaded in a Django project where no module is named
URL_VARIABLE: Final = "TASKBRIDGE_APP_URL"  # its URL wins over all others, even over what the module chooses
_WORD: Final = re.compile(r"[^\W\d]\w*")
_PACKAGE: Final = str(Path(__file__).parent) + os.sep


class LoadError(TaskBridgeError):
    """An application can't be loaded; `app` is what was asked for."""

    def __init__(self, app: str, problem: str) -> None:
        super().__init__(problem)
        self.app = app


def app_of_environment() -> str | None:
    """Return the application that the environment names: by `TASKBRIDGE_APP`, or as a Django project; None if none."""
    return os.environ.get(APP_VARIABLE) or (DJANGO_APP if os.environ.get("DJANGO_SETTINGS_MODULE") else None)


def load_bridge(app: str, *, url: str | None = None) -> Bridge:
    """Import an application's module and return its bridge.

    The current directory is importable, as it is for the command lines of Celery and Dramatiq. `app` is `MODULE` or
    `MODULE:BRIDGE`; without a name the bridge is the module's own, if it has exactly one, and else the default bridge.
    The URL, or `TASKBRIDGE_APP_URL`, wins over every other choice. Raises `LoadError`, which says why in one line, and
    `SettingsError` if the URL is wrong.
    """
    module_name, colon, attribute = app.partition(":")
    _check_names(app, module_name, attribute if colon else None)
    chosen_url = os.environ.get(URL_VARIABLE) if url is None else url
    if chosen_url is not None:
        os.environ["TASKBRIDGE_URL"] = chosen_url  # for what the module does with its bridge while it is imported
    module = _import(app, module_name)
    bridge = _named(app, module, attribute) if colon else _own(app, module)
    if chosen_url is not None:
        bridge.move_to(chosen_url)
    if READY_VARIABLE in os.environ:
        bridge.on("worker_started")(_say_ready)
    return bridge


def worker_bridge(engine: str | None = None) -> Bridge:
    """Return the bridge of the application that the environment names, for the command line of an engine's own worker.

    `engine` is the one whose worker it is, for lines of the log until the application is loaded. If it can't be loaded,
    the process ends with code 2, as for Dramatiq's own failures to import, and a line says why.
    """
    log_output.process.engine = engine
    try:
        with log_output.set_up(os.environ.get(LEVEL_VARIABLE, "INFO")):
            if (name := app_of_environment()) is None:
                raise TaskBridgeError(f"the variable {APP_VARIABLE} is not set: which module has the tasks?")
            bridge = load_bridge(name)
            log_output.process.engine = bridge.settings.url.engine
        sender.check(bridge)
        if METRICS_VARIABLE in os.environ:
            from taskbridge.metrics.tree import report  # here, for few workers are asked for metrics

            report(bridge)
        _ = bridge.native
    except TaskBridgeError as exc:
        log_output.own_lines().error("%s", exc)
        sys.exit(2)
    return bridge


def _say_ready(_: Event) -> None:
    tell_supervisor()


def _check_names(app: str, module_name: str, attribute: str | None) -> None:
    if module_name.endswith(".py") or "/" in module_name:
        guess = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise LoadError(app, f"{module_name!r} is a file; name the module as `import` does: {guess}")
    if not all(_WORD.fullmatch(word) for word in module_name.split(".")):
        raise LoadError(app, f"{app!r} is not MODULE[:BRIDGE], such as shop.tasks or shop.tasks:bridge")
    if attribute is not None and not _WORD.fullmatch(attribute):
        raise LoadError(app, f"{app!r} is not MODULE[:BRIDGE]: {attribute!r} can't be the name of a bridge")


def _import(app: str, name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise LoadError(app, _missing(name, exc.name, here)) from exc
        raise LoadError(app, _broken(name, exc)) from exc
    except LoadError:
        raise
    except (Exception, SystemExit) as exc:
        raise LoadError(app, _broken(name, exc)) from exc


def _missing(name: str, missing: str, here: str) -> str:
    parent, _, last = missing.rpartition(".")
    places = getattr(sys.modules.get(parent), "__path__", None) if parent else [here]
    if places is None:
        return f"{parent!r} is a module and no package; for what is in it write {parent}:{last}"
    hint = nearest(last, [module.name for module in pkgutil.iter_modules(places)])
    if parent:
        hint = hint.replace("did you mean '", f"did you mean '{parent}.")
    where = f"in package {parent!r}" if parent else f"in {here} or on Python's path"
    asked = "" if missing == name else f" (for {name!r})"
    return f"there is no module {missing!r} {where}{asked}{hint}"


def _broken(name: str, error: BaseException) -> str:
    return f"module {name!r} can't be imported: {reason(error)}"


def reason(error: BaseException, *, library: Path | None = None) -> str:
    """Return why an application can't be imported, in one line, and where its own code failed.

    `library` is the folder of one that calls that code, so that it is not the application's own.
    """
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    what = text.strip().partition("\n")[0]
    if isinstance(error, SystemExit):
        what = "it exits when it is imported (guard it with: if __name__ == '__main__')"
    elif not isinstance(error, TaskBridgeError):
        what = f"{type(error).__name__}: {what}".removesuffix(": ")
    if type(error).__name__ == "AppRegistryNotReady":
        what += " Is it a Django project? Set DJANGO_SETTINGS_MODULE, and name no module."
    return what + _place(error, _PACKAGE if library is None else (_PACKAGE, f"{library}{os.sep}"))


def _place(error: BaseException, foreign: str | tuple[str, ...]) -> str:
    """Return where the application's own code failed, as ` (file, line n)`; it is not in foreign folders."""
    places = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen")
        and not frame.filename.startswith(foreign)
        and "/importlib/" not in frame.filename
    ]
    if isinstance(error, SyntaxError) and error.filename is not None:
        places.append((error.filename, error.lineno))
    if not places:
        return ""
    filename, line = places[-1]
    return f" ({filename.removeprefix(os.getcwd() + os.sep)}, line {line})"


def _named(app: str, module: ModuleType, attribute: str) -> Bridge:
    if not hasattr(module, attribute):
        raise LoadError(app, f"module {module.__name__!r} has no {attribute!r}{nearest(attribute, _bridges(module))}")
    found = getattr(module, attribute)
    if not isinstance(found, Bridge):
        kind = type(found).__name__
        raise LoadError(app, f"{attribute!r} in module {module.__name__!r} is not a Bridge but of type {kind}")
    return found


def _own(app: str, module: ModuleType) -> Bridge:
    bridges = _bridges(module)
    distinct = {id(bridge): bridge for bridge in bridges.values()}
    if len(distinct) == 1:
        return next(iter(distinct.values()))
    default = default_bridge()
    if distinct and not default.declarations():
        names = ", ".join(f"{module.__name__}:{name}" for name in bridges)
        raise LoadError(app, f"module {module.__name__!r} has several bridges; choose one of {names}")
    return default


def _bridges(module: ModuleType) -> dict[str, Bridge]:
    return {name: value for name, value in vars(module).items() if isinstance(value, Bridge)}
