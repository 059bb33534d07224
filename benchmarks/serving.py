"""What does one question a request cost, is the 20,000th as cheap as the first, and do threads get the same answers?

    python benchmarks/serving.py [--model demo|shape] [--chain calibration|steering|lora] [--requests 20000]
                                 [--pairs 100] [--of-threads 400]

A chain is fitted on users of the planted world, saved as a deployment folder and loaded from it. `shape` is the
12-layer shape of benchmarks/scoring.py, with random weights. Every request is another question, of one of many users.
`ms_first`: median of requests 1 to 50, after a warm-up; `ms_20000th`: median of the last 50. `over_bare_forward`: the
time of a request over that of the model alone on the same prompt, in turns, medians of `--pairs`. `wrong_of_threads`:
of `--of-threads` requests by 8 threads, how many differ in label, or by more than 1e-5, from those one by one. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.records import Dataset, Question
from personalization.deployment import CONFIG, FORMAT, Deployment, Prediction, write_files
from personalization.stages import chain
from personalization.stages.work import Tools, begin
from personalization.tasks import task
from search_spaces import chain_space

spec = importlib.util.spec_from_file_location("scoring", Path(__file__).with_name("scoring.py"))
scoring = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scoring)

SOLVED = {"calibration.fit": "exact", "calibration.kappa": 5.0, "calibration.prior_mode": "user"}
CHAINS: dict[str, dict[str, Any]] = {
    "calibration": SOLVED,
    "steering": {**SOLVED, "steering.alpha_personal": 1.0, "steering.start": 0.34, "steering.shrink": 8.0},
    "lora": {**SOLVED, "adapter.adapter": "lora", "adapter.blend": 1.0, "adapter.start": 0.67, "adapter.epochs": 1},
}
TUNE_USERS = 30
PER_USER = 10
WARM_UP = 20
THREADS = 8
TOLERANCE = 1e-5


def model_in(folder: Path, tune: Dataset) -> str:
    """The 12-layer shape with a tokenizer of the world's texts, as a folder."""
    texts = [*(q.text for q in tune.questions), *(item.text for q in tune.questions for item in q.history)]
    tokenizer = scoring.tokenizer_of([*scoring.texts(2000, 90, seed=1), *texts], scoring.SHAPE["vocab_size"])
    scoring.model_of(scoring.SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def deployed(model: str, name: str, tune: Dataset, folder: Path) -> Deployment:
    """A chain, fitted, saved and loaded again."""
    scorer, full = CachedScorer(model, folder / "scores"), CHAINS[name]
    tools = Tools(scorer, folder=folder / "adapters")
    space = chain_space([s for s in ("adapter", "steering", "calibration") if any(k.startswith(f"{s}.") for k in full)])
    fitted = chain.fit(space.of_full(full), begin(tune, tools, "tune"), tools)
    place = {"path": model, "dtype": "float32", "device": "auto", "blocks": None, "chat": False}
    config = {
        "format": FORMAT,
        "generation": 1,
        "model": {**place, "fingerprint": scorer.fingerprint},
        "task": tune.task.model_dump(mode="json", exclude_defaults=True),
        "labels": list(tune.labels),
        **write_files(fitted, folder / "deploy"),
        "provenance": {},
    }
    (folder / "deploy" / CONFIG).write_text(yaml.safe_dump(config))
    return Deployment.load(folder / "deploy")


def milliseconds(deployment: Deployment, questions: Sequence[Question]) -> list[float]:
    """Of each question, asked alone."""
    found = []
    for question in questions:
        started = time.perf_counter()
        deployment.predict([question])
        found.append(1000 * (time.perf_counter() - started))
    return found


def beside_the_model(deployment: Deployment, questions: Sequence[Question]) -> tuple[float, float]:
    """(milliseconds of a request, of one pass of the model over the same prompt), medians, in turns."""
    ours, bare = [], []
    for question in questions:
        work = begin(Dataset(*deployment.terms, (question,)), deployment.tools)
        seconds, _ = scoring.timed(lambda: deployment.scorer.backbone.label_logprobs(work.prompts, work.spoken))  # noqa: B023
        bare.append(1000 * seconds)
        ours += milliseconds(deployment, [question])
    return statistics.median(ours), statistics.median(bare)


def wrong_of_threads(deployment: Deployment, questions: Sequence[Question]) -> int:
    """Answers by threads that are not those of one by one."""

    def answer(question: Question) -> Prediction:
        return deployment.predict([question])[0]

    alone = [answer(question) for question in questions]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(answer, questions))
    return sum(differ(one, other) for one, other in zip(alone, together, strict=True))


def differ(one: Prediction, other: Prediction) -> bool:
    """In the question, the label, or a probability."""
    apart = np.abs(np.array(list(one.log_probs.values())) - np.array(list(other.log_probs.values()))).max()
    return bool((one.id, one.label) != (other.id, other.label) or apart > TOLERANCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "shape"], default="demo")
    parser.add_argument("--chain", choices=list(CHAINS), default="calibration")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--of-threads", type=int, default=400)
    options = parser.parse_args()
    needed = WARM_UP + max(options.requests, options.pairs, options.of_threads)
    users = TUNE_USERS + -(-needed // PER_USER)
    questions = make_world(0, users, PER_USER).dataset.questions
    tune = Dataset(task("LaMP_2"), scoring.LAMP_2_TAGS, questions[: TUNE_USERS * PER_USER])
    asked = questions[len(tune) :]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = "demo" if options.model == "demo" else model_in(folder / "model", tune)
        deployment = deployed(model, options.chain, tune, folder)
        milliseconds(deployment, asked[:WARM_UP])
        own = asked[WARM_UP:]
        request, bare = beside_the_model(deployment, own[: options.pairs])
        wrong = wrong_of_threads(deployment, own[: options.of_threads])
        print(f"a request {request:.2f} ms, the model alone {bare:.2f} ms", flush=True)
        fresh = Deployment.load(folder / "deploy")
        milliseconds(fresh, asked[:WARM_UP])
        memory = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
        times = milliseconds(fresh, own[: options.requests])
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    result = {
        "model": options.model,
        "chain": options.chain,
        "requests": options.requests,
        "requests_of_threads": options.of_threads,
        "ms_first": round(statistics.median(times[:50]), 3),
        "ms_20000th": round(statistics.median(times[-50:]), 3),
        "over_bare_forward": round(request / bare, 3),
        "wrong_of_threads": wrong,
        "mb_grown": round(memory[1] - memory[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
