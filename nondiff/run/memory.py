"""What batches and callbacks remember, as strict JSON: with bytes and numbers that are not finite, which JSON lacks."""

import base64
import math
from typing import Any

from nondiff.run.callback import Json
from nondiff.run.plain import plain

MARKS = ({"base64"}, {"float"}, {"dict"})


def encode(value: Any, owner: str) -> Json:
    """**Raises** `TypeError` that names `owner` for what is no JSON, bytes or number.

    >>> import numpy as np
    >>> decode(encode({"epoch": np.int64(2), "position": (b"ab", None), "best": float("inf"), "a": {"float": 1}}, "me"))
    {'epoch': 2, 'position': [b'ab', None], 'best': inf, 'a': {'float': 1}}
    """
    value = plain(value)
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        encoded = {key: encode(inner, owner) for key, inner in value.items()}
        return {"dict": encoded} if set(encoded) in MARKS else encoded
    if isinstance(value, list | tuple):
        return [encode(inner, owner) for inner in value]
    raise TypeError(
        f"`get_state` of {owner} returned {value!r} ({type(value).__name__}); a checkpoint holds JSON and bytes, never "
        "pickles. Return numbers, strings, bytes, lists and dicts of them by name."
    )


def decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"dict"}:
            return {key: decode(inner) for key, inner in value["dict"].items()}
        if set(value) == {"base64"}:
            return base64.b64decode(value["base64"])
        if set(value) == {"float"}:
            return float(value["float"])
        return {key: decode(inner) for key, inner in value.items()}
    return [decode(inner) for inner in value] if isinstance(value, list) else value
