"""Paraphrases of items, written by the model that learns from them.

The model reads an item and `ASK`, and goes on: one line, at most LONGER times as long, drawn at a temperature within
the most likely tokens (nucleus sampling, Holtzman et al. 2020). It is kept where the model itself gives it the label
that it gives the item (argmax_y p(y | item), without a history) and where it is no copy; else the item stays as it was.
So a paraphrase brings no label that the model does not see in the item; the gold label is the user's.

What is drawn depends on the item's text alone, whatever else is written, and lies in a file by model and text. Cost: a
generation for each item, one after the other, once for a model; two scoring passes over the items that have one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from personalization.data.records import Dataset
from personalization.errors import UsageError
from personalization.files import write_atomic
from personalization.methods.history.asking import Asking
from personalization.scoring.store import Progress, key_of

ASK = "\n\nThe same in other words:\n"
LONGER = 1.5
TEMPERATURE, TOP_P = 0.8, 0.95
NOTED = 32
"""So many are written between two notes of them on disk."""


def with_paraphrases(
    items: Dataset, rate: float, asking: Asking, scorer: Any, folder: Path, progress: Progress | None = None
) -> Dataset:
    """The same items, a share `rate` of them in the model's own words where these keep the label."""
    if not rate:
        return items
    if scorer.kind != "causal":
        raise UsageError("paraphrase: an encoder cannot write; leave it out")
    rows = [row for row, question in enumerate(items.questions) if _drawn(question.id) < rate]
    texts = [items.task.item(items.questions[row].text) for row in rows]
    written = dict(zip(rows, _written(texts, scorer, folder, progress), strict=True))
    rows = [row for row, before in zip(rows, texts, strict=True) if _differs(written[row], before)]
    told = {row: items.task.about(items.questions[row].text, written[row]) for row in rows}
    before, after = [items.questions[row] for row in rows], [replace(items.questions[r], text=told[r]) for r in rows]
    same = _labels(before, items, asking, scorer) == _labels(after, items, asking, scorer) if rows else []
    kept = {row: one for row, one, alike in zip(rows, after, same, strict=True) if alike}
    questions = tuple(kept.get(row, question) for row, question in enumerate(items.questions))
    return Dataset(items.task, items.labels, questions)


def _differs(one: str, other: str) -> bool:
    return bool(one) and one.lower().split() != other.lower().split()


def _drawn(name: str) -> float:
    """A number from 0 to 1 for an item, whatever else there is."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def _labels(questions: Sequence[Any], items: Dataset, asking: Asking, scorer: Any) -> Any:
    """The column that the model answers to each question alone, int [n]."""
    bare = replace(asking, k=0)
    some = Dataset(items.task, items.labels, tuple(replace(question, history=()) for question in questions))
    return scorer.label_logprobs(bare.prompts(scorer, some)[0], bare.spoken(scorer, some)).argmax(axis=1)


def _written(texts: Sequence[str], scorer: Any, folder: Path, progress: Progress | None) -> list[str]:
    """What the model writes for each text; what it wrote before is read."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"paraphrases-{key_of({'model': scorer.identity, 'ask': ASK})[:32]}.json"
    known: dict[str, str] = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    missing = [text for text in dict.fromkeys(texts) if text not in known]
    note = partial(write_atomic, place)
    for done, text in enumerate(missing, start=1):
        known[text] = _line(text, scorer)
        if done % NOTED == 0 or done == len(missing):
            note(json.dumps(known, ensure_ascii=False))
        if progress is not None:
            progress(done, len(missing))
    return [known[text] for text in texts]


def _line(text: str, scorer: Any) -> str:
    """One line from the model after a text and `ASK`."""
    import torch
    from transformers import GenerationConfig

    backbone = scorer.backbone
    longest = int(LONGER * backbone.lengths([text])[0]) + 1
    prompt = scorer.conversation(None, text + ASK) if scorer.chat else text + ASK
    ids = backbone.encoder.heads([prompt])[0]
    if backbone.context is not None:
        longest = min(longest, backbone.context - 1)
        ids = ids[-(backbone.context - longest) :]
    asked = torch.tensor([list(ids)], device=backbone.model.device)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    ends = backbone.model.generation_config.eos_token_id
    how = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=longest,
        eos_token_id=ends,
        pad_token_id=0,
    )
    devices = [backbone.model.device] if backbone.model.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        out = backbone.model.generate(asked, attention_mask=torch.ones_like(asked), generation_config=how)
    said = backbone.tokenizer.decode(out[0, asked.shape[1] :], skip_special_tokens=True)
    return next((line.strip() for line in str(said).splitlines() if line.strip()), "")
