"""What stands in front of a history item when its state is read.

The states are read at the end of prompts about the latest items, of every third item of a history one, of at least 2
and at most `PAIRS`, that have something in front of them:

    answered   the earlier items, each asked and answered as the question will be: the instruction once, then item,
               answer cue and label, with the last word before the item ("description:") in front of the next one
    stated     the earlier items as the prompt stage puts items, then the instruction and the asked item
    others     the others of the 8 latest items, later ones, too, as in `stated`; a state is read of each

Each item's other prompt, without a history, is its own: the instruction, the item and the cue.

A prompt of `answered` begins with the one before it, and one row holds a prompt and those that begin it
(`scoring.rows`). So a history costs one pass over it, a token more for each state that is read, and for each a short
prompt without the instruction, which all share: 1.1 to 1.3 passes. In `stated` histories are shared in the same way,
but each asked item repeats the instruction and its text. Prompts are tokenised whole, and what they share is found
among their tokens: where a tokenizer merges over a border, less is shared, and the states are the same. Items of which
one has no label cannot be answered; they are stated. Where the instruction does not stand in front of the item alone,
it comes with each item. A chat model reads each prompt as what a user says.

A history is cut to the newest `LONGEST` items, and to the newest whose text takes `ROOM` tokens, or fewer where the
model's context is shorter.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from personalization.data.known import History
from personalization.data.prompts import prompt_about
from personalization.data.records import Question

PLACE = "\0"
FRONTS = ("answered", "stated", "others")
PAIRS, SHARE = 8, 3
"""Of how many items states are read at most, and of one in how many."""
LONGEST = 32
ROOM = 1920
"""Tokens; a row that prompts share has 2,048 at most, and theirs come on top."""


def read_items(front: str, count: int) -> int:
    """Of how many items states are read, where so many are laid out."""
    if count < 2:
        return 0
    if front == "others":
        return count
    return min(PAIRS, max(2, -(-count // SHARE)), count - 1)


def segments(front: str, task: Any, question: Question, items: History) -> list[str]:
    """The longest prompt in pieces: what stands before the items once, then each item."""
    alone = [prompt_about(task, question, item.text) for item in items]
    if front != "answered" or any(item.label is None for item in items):
        return [max(alone, key=len), *(task.history_of([item]) for item in items)]
    frame = prompt_about(task, question, PLACE).partition(PLACE)[0].rstrip()
    if not all(text.startswith(frame) for text in alone):
        frame = ""
    mark = frame.split()[-1] if frame else ""
    asked = [mark * (i > 0) + text.removeprefix(frame) for i, text in enumerate(alone)]
    return [frame, *(text + task.continuation(item.label) for text, item in zip(asked, items, strict=True))]


def personal_prompts(front: str, task: Any, question: Question, items: History) -> list[str]:
    """A prompt about each item of which a state is read, with a history in front of it."""
    read = range(len(items) - read_items(front, len(items)), len(items))
    if front == "answered" and all(item.label is not None for item in items):
        frame, *asked = segments(front, task, question, items)
        before = list(accumulate([frame, *asked]))
        return [before[i] + asked[i].removesuffix(task.continuation(items[i].label)) for i in read]
    fronts = [items[:i] if front != "others" else tuple(o for o in items if o is not items[i]) for i in read]
    return [
        task.history_of(own) + prompt_about(task, question, items[i].text) for own, i in zip(fronts, read, strict=True)
    ]


def neutral_prompts(front: str, task: Any, question: Question, items: History) -> list[str]:
    """A prompt about each of these items, alone."""
    return [prompt_about(task, question, item.text) for item in items[len(items) - read_items(front, len(items)) :]]


def newest_that_fit(sizes: list[int], room: int) -> int:
    """How many items fit; at least two. `sizes`: tokens of what stands before them once, and of each, oldest first."""
    once, *own = sizes
    fitting = sum(once + total <= room for total in accumulate(reversed(own)))
    return max(2, fitting)
