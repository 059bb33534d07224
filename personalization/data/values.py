"""What a cell of a table or a value of JSON says, whichever library has read it.

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
