"""Times as they are said."""

from __future__ import annotations

import calendar
from datetime import datetime

PARTS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def lasted(seconds: float) -> str:
    """A duration in its two largest units, days to seconds."""
    if seconds < 1:
        return "under a second"
    left, found = round(seconds), list[str]()
    for name, size in PARTS:
        count, left = divmod(left, size)
        if count:
            found.append(f"{count} {name}{'s' if count > 1 else ''}")
        elif found:
            break
    return " ".join(found[:2])


def period(seconds: float) -> str:
    """A duration in ISO 8601."""
    return f"PT{round(seconds)}S"


def day(told: str) -> str:
    """A time in ISO 8601."""
    at = datetime.fromisoformat(told)
    return f"{at.day} {calendar.month_abbr[at.month]} {at.year}, {at:%H:%M}"
