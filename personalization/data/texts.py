"""What a text must be, wherever it comes from: files, tables, or HTTP."""

from __future__ import annotations


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
