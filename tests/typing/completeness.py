"""`python -m tests.typing.completeness`: whether pyright knows the types of all public names, in every environment.

Left out are the modules in which Django looks for an app's declarations by their names: nobody imports them, and their
attributes have the types that Django's own stubs leave open.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Final

_DECLARATIONS: Final = tuple(
    f"taskbridge.django.{module}." for module in ("admin", "apps", "forms", "import_beat", "migrations", "models")
)
_COMMAND: Final = ("pyright", "--verifytypes", "taskbridge", "--ignoreexternal", "--outputjson")


def main() -> int:
    """Print the public names whose types pyright does not know, and return 1 if there are any."""
    told: dict[str, Any] = json.loads(subprocess.run(_COMMAND, capture_output=True, text=True, check=False).stdout)
    symbols: list[dict[str, Any]] = told["typeCompleteness"]["symbols"]
    public = [each for each in symbols if each["isExported"] and not each["name"].startswith(_DECLARATIONS)]
    unknown = [each for each in public if not each["isTypeKnown"] or each["isTypeAmbiguous"]]
    for each in unknown:
        print(each["name"], *(found["message"] for found in each["diagnostics"]), sep="\n  ")
    print(f"{len(public) - len(unknown)} of {len(public)} public names have known types")
    return 1 if unknown or not public else 0


if __name__ == "__main__":
    sys.exit(main())
