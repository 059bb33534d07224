"""Fixtures: no network, no GPU, no hub."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import socket
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from alembic.util import pyfiles

from personalization.backbones.cached import CachedScorer
from personalization.data.demo.world import make_world
from personalization.data.lamp import write_dataset
from personalization.evaluation import Evaluation
from tests.tiny import SHARES, make_model, make_tokenizer, random_evaluation, save_encoder

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def migrations_read_once():
    """Every database that is opened has Alembic load the same dozen files of Optuna. An env.py runs when loaded."""
    kept = cache(pyfiles.load_python_file)

    def load(folder: str, name: str) -> object:
        return (pyfiles.load_python_file if name == "env.py" else kept)(folder, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alembic.script.base.util.load_python_file", load)
        yield


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Figures cost more than the studies of most tests: they are drawn in tests marked `draws` alone."""
    if request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr("tracking.figures._png", lambda _: b"\x89PNG")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Intervals and p-values of a tenth of the draws, where a test does not set their number itself."""
    monkeypatch.setattr("tracking.significance.RESAMPLES", 999)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_model("llama").save_pretrained(folder)
    make_tokenizer(bos=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random sentence encoder."""
    folder = tmp_path_factory.mktemp("tiny-encoder")
    save_encoder(folder)
    return folder / "encoder"


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with LaMP files of 40 planted users with 2 questions each."""
    folder = tmp_path_factory.mktemp("small-data")
    write_dataset(folder, "small", make_world(3, users=40, questions_per_user=2).dataset)
    return folder


@pytest.fixture
def spec_of(tiny_model: Path, small_data: Path):
    """A function that makes a small, fast spec."""
    from studies.spec import StudySpec, parse_spec

    def make(**changes: object) -> StudySpec:
        raw = {
            "name": "small",
            "data": {"path": str(small_data), "shares": SHARES},
            "model": {"path": str(tiny_model)},
            "constraints": {"entropy": ">= 0.6", "top1_share": "<= 0.9"},
            "trials": 12,
            "tracking": "none",
        }
        return parse_spec({**raw, **changes}, "test")

    return make


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `kept_scores`."""
    return tmp_path_factory.mktemp("scores")


@pytest.fixture
def kept_scores(scores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The studies of all homes keep their scores in one folder: the same prompts are scored in one test alone."""

    def scorer(model: str, _folder: Path, *rest: object) -> CachedScorer:
        return CachedScorer(model, scores, *rest)

    monkeypatch.setattr("studies.study.CachedScorer", scorer)


@pytest.fixture
def no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run writes no result folders, which cost more than its trials."""
    monkeypatch.setattr("studies.runner.write_results", lambda *_: None)


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub in a folder: `push(n)` makes commit n of every model what main is; `commit(n)` is its name."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = tmp_path / "hub" / "snapshots"
    branches: dict[str, str] = {}

    def commit(number: int) -> str:
        return f"{number:040x}"

    def push(number: int) -> None:
        branches["main"] = commit(number)
        shutil.copytree(tiny_model, folder / commit(number))
        (folder / commit(number) / "number.json").write_text(str(number))

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        found = folder / branches.get(revision or "main", revision or "main")
        if name != "owner/name" or not found.is_dir():
            raise LocalEntryNotFoundError(f"no {name}\nsecond line")
        return str(found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    push(1)
    return SimpleNamespace(push=push, commit=commit, branches=branches)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A function that runs `chamtune` with these arguments: (exit code, stdout, stderr)."""
    import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["chamtune", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


CAPABILITIES = 0x20080522
"""Version 3 of Linux's header of capability sets."""


@pytest.fixture
def unprivileged():
    """A context in which the modes of files count for root, too."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)

    @contextmanager
    def inside():
        before, without = ((ctypes.c_uint32 * 6)() for _ in range(2))
        assert libc.capget(header, before) == libc.capget(header, without) == 0
        without[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert libc.capset(header, without) == 0
        try:
            yield
        finally:
            assert libc.capset(header, before) == 0

    return inside


@pytest.fixture
def evaluations() -> tuple[Evaluation, Evaluation]:
    """(baseline, better candidate) on the same questions."""
    return random_evaluation(1, skill=0.5), random_evaluation(2, skill=2.0)


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
