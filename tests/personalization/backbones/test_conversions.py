"""A GGUF file is converted once, is known by its bytes alone, and no half conversion is read."""

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from personalization.backbones import conversions, gguf
from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import is_of_hub, is_path, locate_model, model_fingerprint
from personalization.errors import DataError, UnavailableError, UsageError
from personalization.files import sha256_of
from tests.gguf_files import byte_level, make_llama, write_gguf

PROMPTS, LABELS = ["a shy baker\nanswer:", "a pilot\nanswer:"], [" comedy\n", " drama\n"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", make_llama(), byte_level())


@pytest.fixture(scope="module")
def ready(written, tmp_path_factory):
    """A cache with the conversion in it."""
    cache = tmp_path_factory.mktemp("ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        locate_model(str(written))
    return cache


@pytest.fixture
def cache(ready, tmp_path, monkeypatch):
    """A cache of one's own with the conversion in it."""
    shutil.copytree(ready, tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chamtune" / "models"


@pytest.fixture
def conversions_made(monkeypatch):
    made, convert = [], gguf.convert
    monkeypatch.setattr(gguf, "convert", lambda file, folder: (made.append(file), convert(file, folder)))
    return made


def test_a_file_is_converted_once_wherever_it_lies(written, tmp_path, monkeypatch, conversions_made, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scorer = CachedScorer(str(written), tmp_path / "scores")
    scores = scorer.label_logprobs(PROMPTS, LABELS)
    assert scorer.fingerprint == sha256_of(written)
    assert scorer.commit is None
    elsewhere = tmp_path / "moved" / "other.GGUF"
    elsewhere.parent.mkdir()
    shutil.copy(written, elsewhere)
    again = CachedScorer(str(elsewhere), tmp_path / "scores")
    assert again.identity == scorer.identity
    assert np.array_equal(again.label_logprobs(PROMPTS, LABELS), scores)
    assert conversions_made == [written]
    assert [str(scorer.files) in line for line in caplog.messages] == [True]


def test_the_fingerprint_is_the_same_on_another_machine(written, cache, tmp_path, monkeypatch):
    here = model_fingerprint(locate_model(str(written)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    monkeypatch.setattr(conversions, "version", lambda _: "5.99.0")
    assert model_fingerprint(locate_model(str(written))) == here


def test_a_conversion_that_is_there_is_served_without_writing(written, cache, conversions_made, monkeypatch):
    (cache / f".{next(cache.glob('[!.]*')).name}.lock").unlink()
    before = sorted(cache.rglob("*"))
    monkeypatch.setattr(conversions, "locked", None)
    assert CachedScorer(str(written), None).label_logprobs(PROMPTS, LABELS).shape == (2, 2)
    assert sorted(cache.rglob("*")) == before
    assert conversions_made == []


@pytest.mark.parametrize("damage", ["note", "weights", "cut", "torn"])
def test_half_a_conversion_is_made_anew(damage, written, cache, conversions_made):
    folder = next(cache.glob("[!.]*"))
    weights = folder / "model.safetensors"
    if damage == "note":
        (folder / conversions.NOTE).unlink()
    elif damage == "torn":
        (folder / conversions.NOTE).write_text('{"config.json": [')
    elif damage == "weights":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    (cache / f".{folder.name}.draft").mkdir()
    (cache / f".{folder.name}.draft" / "model.safetensors").write_text("left by a killed process")
    assert locate_model(str(written)) == folder
    assert model_fingerprint(folder) == sha256_of(written)
    assert conversions_made == [written]
    assert not list(cache.glob("*.draft"))


def test_a_changed_conversion_has_no_fingerprint(written, cache):
    folder = locate_model(str(written))
    for name in ("model.safetensors", "config.json"):
        bytes_ = bytearray((folder / name).read_bytes())
        bytes_[-1] ^= 1
        shutil.copy(folder / name, folder.parent / "kept")
        (folder / name).write_bytes(bytes_)
        with pytest.raises(DataError, match=rf"{name} is missing or changed; remove the folder, and it is made again"):
            model_fingerprint(folder)
        shutil.copy(folder.parent / "kept", folder / name)
    (folder / "chat_template.json").write_text("{}")
    with pytest.raises(DataError, match="chat_template.json is missing or changed"):
        model_fingerprint(folder)


def test_a_note_in_another_folder_gives_no_fingerprint(written, cache, tmp_path):
    copy = tmp_path / locate_model(str(written)).name
    shutil.copytree(locate_model(str(written)), copy)
    assert model_fingerprint(copy) not in (sha256_of(written), None)


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(DataError, match="broken.gguf cannot be read"):
        locate_model(str(tmp_path / "broken.gguf"))
    assert [path.suffix for path in (tmp_path / "chamtune" / "models").iterdir()] == [".lock"]


def test_processes_that_need_the_same_file_convert_it_once(written, tmp_path, monkeypatch, conversions_made):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    threads = [threading.Thread(target=lambda: found.append(locate_model(str(written)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == len(conversions_made) == 1


KILLED = """
import os, signal, sys
from personalization.backbones import gguf
from personalization.backbones.location import locate_model
convert = gguf.convert
gguf.convert = lambda file, folder: (convert(file, folder), os.kill(os.getpid(), signal.SIGKILL))
locate_model(sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_conversion_is_made_anew(written, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(written)], capture_output=True, check=False)
    assert killed.returncode == -9
    assert {path.suffix for path in (tmp_path / "chamtune" / "models").iterdir()} == {".lock", ".draft"}
    assert model_fingerprint(locate_model(str(written))) == sha256_of(written)


def test_what_cannot_be_written_or_read_is_one_line(written, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match=r"cannot be converted into .*; make room there, or set XDG_CACHE_HOME"):
        locate_model(str(written))
    with pytest.raises(DataError, match=r"GGUF file owner/none.gguf: No such file.*; give the path of one"):
        locate_model("owner/none.gguf")


def test_a_gguf_file_is_a_path_and_no_hub_model(written, cache, monkeypatch):
    monkeypatch.setattr(conversions, "sha256_of", None)
    assert is_path(str(written))
    assert not is_of_hub(str(written))
    assert not is_path("smollm2")
    with pytest.raises(UsageError, match="has no revision 'main'; remove model.revision"):
        locate_model(str(written), "main")


def test_a_folder_with_a_gguf_file_says_which_path_to_give(written):
    with pytest.raises(DataError, match=r"has no \*.safetensors; give the path of its GGUF file, .*tiny.gguf"):
        locate_model(str(written.parent))


def test_the_cache_is_below_home_where_nothing_else_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for told in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", told)
        assert conversions._folder() == tmp_path / ".cache" / "chamtune" / "models"


def test_a_note_names_every_file(written, cache):
    folder = locate_model(str(written))
    noted = json.loads((folder / conversions.NOTE).read_text())
    assert set(noted) == {path.name for path in folder.iterdir()} - {conversions.NOTE}
