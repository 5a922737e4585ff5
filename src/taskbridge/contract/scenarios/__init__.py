"""The scenarios, a module for each letter of the rules; importing this package fills the table."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Final

NAMES: Final = tuple(module.name for module in iter_modules(__path__))
"""The modules' names."""

for _name in NAMES:
    import_module(f"{__name__}.{_name}")
