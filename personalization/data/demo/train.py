"""Train the demo model: `python -m personalization.data.demo.train OUT` (about 30 minutes on two cores).

A causal language model of Llama architecture learns documents of the planted world:

    question   no history; the answer is "true story" with probability `BIAS` whatever the movie. That is the label
               bias which the un-tuned model shows
    list       8 to 14 history items of one user, and nothing else
    both       3 to 8 history items before a question, all labelled by the same user
    lesson     items of different users, each followed by the name of the user's group (`GROUP_NAMES`)

So the model learns to read a user's group and taste from history in the prompt. Lessons, and names that follow some of
the histories, teach it the groups' readings; both fade out, and it learns to do without. No prompt of ours ever names a
group. Tastes are milder here than in the world (`TASTE`), so that readings are learned sooner.

The null model (`--null --start OUT`) goes on from the finished demo model with documents of the null world, without the
bias. The loss is the cross-entropy of the answers plus `TEXT_WEIGHT` times that of all other tokens.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from personalization.data.demo.world import AMBIGUOUS_CUES, INSTRUCTION, READINGS, User, draw_movie, draw_user
from personalization.data.prompts import ANSWER_CUE, history_text
from personalization.data.records import HistoryItem

BIAS = 0.4
TASTE = 1.0
GROUP_NAMES = ("amber", "cobalt", "ivory", "jade")
NAMED_SHARE = 0.7
TEXT_WEIGHT = 0.02
CONTEXT = 2048
VOCABULARY = 1024

Segment = tuple[str, bool]
"""A piece of a document, and whether it is an answer."""


def draw_document(rng: np.random.Generator, null: bool, progress: float) -> list[Segment]:
    """One training document, cut into answers and the text between them. `progress` runs from 0 to 1."""
    lessons = 0.0 if null else 0.4 * (1 - progress)
    kind = rng.choice(["lesson", "question", "list", "both"], p=[lessons, 0.2, 0.4 - lessons / 2, 0.4 - lessons / 2])
    if kind == "lesson":
        return _lesson(rng)
    user = draw_user(rng, "trainee", null, TASTE)
    segments: list[Segment] = []
    if kind != "question":
        few, many = (8, 15) if kind == "list" else (3, 9)
        segments = _history(rng, user, int(rng.integers(few, many)))
        if user.group is not None and rng.random() < NAMED_SHARE * (1 - progress):
            place = len(segments) if kind == "both" else 2 * int(rng.integers(len(segments) // 2))
            segments[place:place] = [(f" {GROUP_NAMES[user.group]} viewer. ", True)]
    if kind != "list":
        _, description, tag = draw_movie(rng, user)
        if not null and kind == "question" and rng.random() < BIAS:
            tag = "true story"
        segments += [(INSTRUCTION + description + ANSWER_CUE, False), (f" {tag}\n", True)]
    return segments


def _lesson(rng: np.random.Generator) -> list[Segment]:
    """Twelve items of different users with ambiguous cues, each followed by the name of its user's group."""
    segments: list[Segment] = []
    while len(segments) < 36:
        user = draw_user(rng, "trainee", taste=0.0)
        cue, description, tag = draw_movie(rng, user)
        if cue in AMBIGUOUS_CUES and user.group is not None and READINGS[cue][user.group] == tag:
            before, after = history_text("LaMP_2", [HistoryItem("", description, tag)]).split(f'{tag}"')
            joint = " , and " if segments else ""
            segments += [
                (joint + before, False),
                (f'{tag}"', True),
                (f" {GROUP_NAMES[user.group]} viewer{after}", True),
            ]
    return segments


def _history(rng: np.random.Generator, user: User, count: int) -> list[Segment]:
    """History items as they stand in a prompt: text and answer by turns, and the text after the last answer."""
    items = []
    for number in range(count):
        _, description, tag = draw_movie(rng, user)
        items.append(HistoryItem(str(number), description, tag))
    text = history_text("LaMP_2", items)
    segments: list[Segment] = []
    for item in items:
        before, text = text.split(f'" is "{item.label}"', 1)
        segments += [(before + '" is "', False), (f'{item.label}"', True)]
    return [*segments, (text, False)]


def train_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the world's text. It can encode any string."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ("".join(text for text, _ in draw_document(rng, False, 0.0)) for _ in range(4000))
    tokenizer.train_from_iterator(texts, trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    )


def encode(tokenizer: PreTrainedTokenizerFast, segments: list[Segment]) -> tuple[list[int], list[float]]:
    """Token ids of a document and each token's weight in the loss."""
    ids: list[int] = [tokenizer.bos_token_id]
    weights = [0.0]
    for text, is_answer in segments:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        weights += [1.0 if is_answer else TEXT_WEIGHT] * len(piece)
    return ids, weights


def draw_batches(
    tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, null: bool, rows: int, progress: float
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sixteen batches (ids [rows, T], weights [rows, T]), each of documents of similar length."""
    drawn = (encode(tokenizer, draw_document(rng, null, progress)) for _ in range(rows * 16))
    pool = sorted(drawn, key=lambda document: len(document[0]))
    result = []
    for start in rng.permutation(16) * rows:
        chunk = pool[start : start + rows]
        longest = max(len(ids) for ids, _ in chunk)
        ids = torch.zeros(rows, longest, dtype=torch.long)
        weights = torch.zeros(rows, longest)
        for row, (row_ids, row_weights) in enumerate(chunk):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            weights[row, : len(row_weights)] = torch.tensor(row_weights)
        result.append((ids, weights))
    return result


@dataclass(frozen=True)
class Schedule:
    """Steps `first` to `steps` of `rows` documents; the learning rate warms up, then falls along a cosine."""

    first: int
    steps: int
    rows: int
    peak_rate: float

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warm_up = min(1.0, (step - self.first + 1) / 100)
        return self.peak_rate * warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


def new_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model with random weights, and its tokenizer."""
    torch.manual_seed(7)
    tokenizer = train_tokenizer(np.random.default_rng(1))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def train(out: Path, start: Path | None, null: bool, schedule: Schedule) -> None:
    """Train, from scratch or from `start`, and write model, tokenizer and config to `out`."""
    rng = np.random.default_rng(7 + schedule.first)
    if start is None:
        model, tokenizer = new_model()
    else:
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    started, answer_loss = time.time(), 0.0
    queue: list[tuple[torch.Tensor, torch.Tensor]] = []
    for step in range(schedule.first, schedule.steps):
        queue = queue or draw_batches(tokenizer, rng, null, schedule.rows, step / schedule.steps)
        ids, weights = queue.pop()
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids[:, :-1]).logits
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (losses * weight).sum() / (weight == 1.0).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        answer_loss += float(losses[weight == 1.0].mean().detach())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} answers {answer_loss / 50:.4f} {time.time() - started:.0f} s", flush=True)
            answer_loss = 0.0
        if (step + 1) % 250 == 0:
            save(model, tokenizer, out)
    save(model, tokenizer, out)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write half-precision safetensors; training goes on in single precision."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="folder of a model to go on from")
    parser.add_argument("--first-step", type=int, default=0, help="the step that a model given by --start has reached")
    parser.add_argument("--null", action="store_true", help="the null world: no taste, no groups, no bias")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    given = parser.parse_args()
    train(given.out, given.start, given.null, Schedule(given.first_step, given.steps, given.rows, given.peak_rate))


if __name__ == "__main__":
    main()
