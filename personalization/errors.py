"""What can go wrong for a user, and the exit code that says so (sysexits).

    ChamtuneError            70  a state that should not exist
    ├── UsageError           64  a command, spec or parameter that cannot be obeyed
    ├── DataError            65  input that cannot be used
    └── UnavailableError     69  a model, storage or server that cannot be reached

The message is one line: what was found, where, what is allowed, what to do.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class ChamtuneError(Exception):
    """Base of every error that the command line prints without a traceback."""

    exit_code = 70


class UsageError(ChamtuneError):
    """A command, spec or parameter that cannot be obeyed."""

    exit_code = 64


class DataError(ChamtuneError):
    """Input that cannot be used."""

    exit_code = 65


class UnavailableError(ChamtuneError):
    """A model, storage or server that cannot be reached."""

    exit_code = 69
