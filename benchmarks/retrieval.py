"""How long does it take to rank a user's whole history, and does it give what a full sort gives?

    python benchmarks/retrieval.py [--items 100000]

One user with so many items of random embeddings and texts: similarity to a question and the 16 nearest, BM25's index
and one query, label counts. The last line is JSON, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import bm25s
import numpy as np

from personalization.data.records import Dataset, HistoryItem, Question
from personalization.methods.history.bm25 import words
from personalization.methods.history.ranking import Histories, most_relevant
from personalization.tasks import task


class RandomEmbeddings:
    """Embeddings of length one, the same for the same list."""

    kind = "encoder"

    def embeddings(self, texts: list[str], _: object = None) -> np.ndarray:
        vectors = np.random.default_rng(0).normal(size=(len(texts), 384)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def milliseconds(run: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    n = parser.parse_args().items
    random = np.random.default_rng(0)
    lexicon = np.array([f"word{i}" for i in range(20_000)])
    texts = [" ".join(random.choice(lexicon, 12)) for _ in range(n)]
    items = tuple(HistoryItem(str(i), text, f"l{i % 15}") for i, text in enumerate(texts))
    labels = tuple(f"l{i}" for i in range(15))
    world = Dataset(task("LaMP_2"), labels, (Question("q", "u", f"description: {texts[7]} x", items, "l0"),))
    embedded = RandomEmbeddings().embeddings(texts)
    question = embedded[3]
    similarity = embedded @ question
    assert most_relevant(similarity, 16).tolist() == np.argsort(-similarity, kind="stable")[:16].tolist()
    tokens = [words(text) for text in texts]
    index = bm25s.BM25(method="lucene")
    started = time.perf_counter()
    index.index(tokens, show_progress=False)
    indexing = 1000 * (time.perf_counter() - started)
    histories = Histories(RandomEmbeddings(), world)
    wanted = SimpleNamespace(ranking="similarity", mix=0.0, width=0.1, half_life=100.0)
    histories.counts(wanted)
    result = {
        "items": n,
        "top_16_by_similarity": milliseconds(lambda: most_relevant(embedded @ question, 16)),
        "full_sort_by_similarity": milliseconds(lambda: np.argsort(-(embedded @ question), kind="stable")[:16]),
        "bm25_index": round(indexing, 1),
        "top_16_by_bm25": milliseconds(lambda: most_relevant(index.get_scores(tokens[7]), 16)),
        "label_counts": milliseconds(lambda: histories.counts(wanted)),
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
