"""Renames private names of Celery, kombu and py-amqp as they are imported, everywhere, as a new release of them might.

With this folder in `PYTHONPATH` a worker has to take the plain way by itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

PACKAGES = ("celery", "kombu", "amqp")
NAMES = re.compile(r"\b(_task_stack|_get_custom_headers|_on_basic_deliver|_read_buffer)\b")


class Renaming(SourceFileLoader):
    """Compiles a module with the names renamed in its source."""

    def get_code(self, fullname: str) -> CodeType | None:
        source = self.get_source(fullname)
        return None if source is None else compile(NAMES.sub(r"\1_of_late", source), self.path, "exec")


class Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Renaming(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, Finder())
