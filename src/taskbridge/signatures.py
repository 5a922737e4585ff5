"""Signatures and annotations, looked at before all that type hints name is there.

From Python 3.14 on annotations are evaluated when they are asked for; one that can't be is left as a `ForwardRef`.
"""

from __future__ import annotations

import sys
from functools import partial
from inspect import get_annotations, signature

if sys.version_info >= (3, 14):
    from annotationlib import Format

    signature_of = partial(signature, annotation_format=Format.FORWARDREF)
    annotations_of = partial(get_annotations, format=Format.FORWARDREF)
else:
    signature_of, annotations_of = signature, get_annotations
