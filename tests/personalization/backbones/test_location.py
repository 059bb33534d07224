"""Where a model lies, and which state of it."""

import logging

import pytest

from personalization.backbones.cached import CachedScorer
from personalization.backbones.location import locate_model, usable_dtype
from personalization.errors import DataError, UnavailableError, UsageError


def test_a_hub_model_is_read_at_its_revision(hub):
    hub.branches["v1"] = hub.commit(1)
    hub.push(2)
    assert locate_model("owner/name").name == hub.commit(2)
    assert locate_model("owner/name", "v1").name == locate_model("owner/name", hub.commit(1)).name == hub.commit(1)
    with pytest.raises(UnavailableError, match=r"'owner/name' at revision 'v9' cannot be fetched: no owner/name$"):
        locate_model("owner/name", "v9")


def test_one_scorer_reads_one_commit(hub, tmp_path):
    scorer = CachedScorer("owner/name", tmp_path)
    assert scorer.commit == hub.commit(1)
    before = scorer.fingerprint
    hub.push(2)
    assert str(scorer.backbone.model.config.name_or_path).endswith(hub.commit(1))
    assert CachedScorer("owner/name", tmp_path).fingerprint != before
    assert CachedScorer("owner/name", tmp_path, revision=hub.commit(1)).fingerprint == before


def test_a_model_on_this_machine_has_no_revision(tiny_model, tmp_path):
    assert CachedScorer(str(tiny_model), tmp_path).commit is None
    for name in ("demo", str(tiny_model)):
        with pytest.raises(UsageError, match="no hub model, and has no revision 'main'; remove model.revision"):
            locate_model(name, "main")


def test_a_mistyped_folder_is_not_asked_for_at_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "nema").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'owner/name' is no folder, but owner is one and holds nema; .* e.g. main"):
        locate_model("owner/name")
    assert locate_model("owner/name", "main").name == hub.commit(1)
    with pytest.raises(DataError, match="'a/b/c' is no folder; give a folder, a GGUF file, a hub id .*one of demo"):
        locate_model("a/b/c")


X86 = "processor\t: 0\nmodel name\t: bf16 of old\nflags\t\t: fpu avx2 f16c{}\n"


@pytest.mark.parametrize(
    ("info", "dtype", "used"),
    [
        (X86.format(""), "bfloat16", "float32"),
        (X86.format(""), "float16", "float32"),
        (X86.format(""), "float32", "float32"),
        (X86.format(" avx512_bf16"), "bfloat16", "bfloat16"),
        (X86.format(" amx_bf16"), "bfloat16", "bfloat16"),
        (X86.format(" avx512_bf16"), "float16", "float32"),
        (X86.format(" avx512_fp16"), "float16", "float16"),
        ("Features\t: fp asimd asimdhp\n", "float16", "float16"),
        ("Features\t: fp asimd bf16\n", "bfloat16", "bfloat16"),
        ("processor : 0\n", "bfloat16", "bfloat16"),
        (None, "bfloat16", "bfloat16"),
    ],
)
def test_a_processor_runs_the_dtypes_that_it_has_instructions_for(info, dtype, used, tmp_path, monkeypatch, caplog):
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr("personalization.backbones.location.CPU_INFO", tmp_path / "cpuinfo")
    with caplog.at_level(logging.WARNING):
        assert usable_dtype(dtype, on_cpu=True) == used
    assert (f"dtype {dtype} is run as float32" in caplog.text) == (dtype != used)
    assert usable_dtype(dtype, on_cpu=False) == dtype


def test_scores_are_stored_under_the_dtype_that_made_them(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("personalization.backbones.location.CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(X86.format(""))
    scorer = CachedScorer(str(tiny_model), tmp_path, "bfloat16", "cpu")
    assert scorer.identity == CachedScorer(str(tiny_model), tmp_path, "float32", "cpu").identity
    assert str(scorer.backbone.model.dtype) == "torch.float32"
    (tmp_path / "cpuinfo").write_text(X86.format(" amx_bf16"))
    able = CachedScorer(str(tiny_model), tmp_path, "bfloat16", "cpu")
    assert able.identity["dtype"] == "bfloat16"
    assert str(able.backbone.model.dtype) == "torch.bfloat16"
    assert CachedScorer(str(tiny_model), tmp_path, "bfloat16", "cuda").identity["dtype"] == "bfloat16"
