"""What a cell of a table or a value of JSON says, whichever library has read it; what a text must be.

The same column reads alike from CSV, JSON Lines, Parquet and pandas: nothing is None, a truth value its word, a whole
number its digits, a date ISO text.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np

WHOLE = 2.0**53
"""Below it a float without a fraction is one whole number, and no other."""


def plain(value: Any) -> Any:
    """None, text, int, a float with a fraction, or what is none of these as it came."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, np.integer | np.floating | Decimal):
        return plain(int(value) if isinstance(value, np.integer) else float(value))
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() and abs(value) < WHOLE else value
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.isoformat() if hasattr(value, "isoformat") else value


def wrong_text(text: str) -> str | None:
    """Why a text cannot be a question, a name or a label; None where it can."""
    if not text.strip():
        return "empty"
    if "\0" in text:
        return "holds a null byte; remove it"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which no tokenizer can read; repair it"
    return None
