"""Dates as people write them, read into values that can be compared.

Read are ISO dates with or without leading zeros and time, plain years and year-months, Unix seconds and milliseconds
as numbers or digits, whatever names its month ("July 14, 2019", "14 Jul 2019", mail headers), Amazon's "02 5, 2013"
(month day, year), "14.07.2019" (with dots the day comes first) and "2019年7月14日". Not read is what has two meanings,
such as 03/04/2019. Values are naive and in UTC.
"""

from __future__ import annotations

import re
import warnings
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from dateutil import parser as dateutil_parser

_ISO = re.compile(r"(\d{4})[-/.](\d{1,2})(?:[-/.](\d{1,2})(?:[T ]+(\S.*))?)?")
_DAY_MONTH_YEAR = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:,?[T ]+(\S.*))?")
_KANJI = re.compile(r"(\d{4})年(\d{1,2})月(?:(\d{1,2})日(?:[T ]*(\S.*))?)?")
_MONTH_DAY_YEAR = re.compile(r"(\d{1,2}) (\d{1,2}), ?(\d{4})")
_COMPACT = re.compile(r"(\d{4})(\d\d)(\d\d)")
_DIGITS = re.compile(r"\d+(\.\d+)?")
EPOCH = datetime(1970, 1, 1)
FEWEST_DIGITS, MOST_DIGITS, MILLISECONDS = 9, 14, 12
"""Unix times: from 9 digits (1973), in milliseconds from 12."""


def read_date(raw: Any) -> datetime | None:
    """What a JSON value says as a date; None where it says none that can be trusted."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        return _read(f"{raw:f}" if isinstance(raw, float) else str(raw).strip())
    except (ValueError, OverflowError):
        return None


def written(date: datetime | None) -> str | None:
    """A date in ISO format; without its time where that is midnight."""
    if date is None:
        return None
    return date.isoformat() if date.time() != EPOCH.time() else date.date().isoformat()


@lru_cache(maxsize=1 << 16)
def _read(text: str) -> datetime:
    """The date; ValueError or OverflowError where there is none."""
    if match := _DAY_MONTH_YEAR.fullmatch(text):
        text = f"{match[3]}-{match[2]}-{match[1]} {match[4] or ''}".rstrip()
    if match := _ISO.fullmatch(text) or _KANJI.fullmatch(text):
        year, month, day, time = match.groups()
        midnight = f"{year}-{int(month):02d}-{int(day or 1):02d}"
        if not time:
            return datetime.fromisoformat(midnight)
        try:
            return _utc(datetime.fromisoformat(f"{midnight}T{time}"))
        except ValueError:  # a time such as 9:05, or 10:00 UTC
            return _named(f"{midnight} {time}")
    if _DIGITS.fullmatch(text):
        return _of_digits(text)
    if match := _MONTH_DAY_YEAR.fullmatch(text):
        month, day, year = map(int, match.groups())
        return datetime(year, month, day)
    if not re.search("[A-Za-z]{3}", text):
        raise ValueError(text)
    return _named(text)


def _of_digits(text: str) -> datetime:
    whole, _, _ = text.partition(".")
    if len(whole) == 4:
        return datetime(int(whole), 1, 1)
    if match := _COMPACT.fullmatch(whole):
        year, month, day = map(int, match.groups())
        return datetime(year, month, day)
    if not FEWEST_DIGITS <= len(whole) <= MOST_DIGITS:
        raise ValueError(text)
    return EPOCH + timedelta(seconds=float(text) / (1000 if len(whole) >= MILLISECONDS else 1))


def _named(text: str) -> datetime:
    """A date that names its month, and its year: what two defaults of different years read alike."""
    with warnings.catch_warnings(action="error", category=dateutil_parser.UnknownTimezoneWarning):
        try:
            found, other = (dateutil_parser.parse(text, default=datetime(year, 1, 1)) for year in (2000, 2004))
        except dateutil_parser.UnknownTimezoneWarning:
            raise ValueError(text) from None
    if found != other:
        raise ValueError(text)
    return _utc(found)


def _utc(date: datetime) -> datetime:
    return date if date.tzinfo is None else date.astimezone(UTC).replace(tzinfo=None)
