"""Signatures and annotations, looked at before all that type hints name is there.

From Python 3.14 on annotations are evaluated when they are asked for; one that can't be is left as a `ForwardRef`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from inspect import Signature, get_annotations, signature
from typing import Any

signature_of: Callable[..., Signature] = signature
annotations_of: Callable[..., dict[str, Any]] = get_annotations

if sys.version_info >= (3, 14):
    from annotationlib import Format

    signature_of = partial(signature, annotation_format=Format.FORWARDREF)
    annotations_of = partial(get_annotations, format=Format.FORWARDREF)
