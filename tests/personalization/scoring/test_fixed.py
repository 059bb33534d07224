"""Fixed batches under edits: what they start from, where it is stored, and what happens where it does not fit."""

import itertools
import os
from collections import namedtuple
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.models.auto import AutoModelForCausalLM

from personalization.backbones.causal import CausalBackbone
from personalization.backbones.encoder import load_encoder
from personalization.errors import DataError
from personalization.methods.adapters.edit import AdapterEdit
from personalization.methods.adapters.lora import GroupedLora, LoraShape, adapted_modules
from personalization.methods.steering.edit import SteeringEdit
from personalization.methods.steering.moves import Move, SteeringVectors
from personalization.scoring import fixed as module
from personalization.scoring import passes, states
from personalization.scoring.edits import Shelf
from personalization.scoring.fixed import Fixed
from personalization.scoring.passes import shrinking
from personalization.scoring.resume import captured_output
from tests.tiny import SIZES, enlarged, make_tokenizer, of_table

PROMPTS = [f"{'a shy baker discovers ' * (1 + i % 4)}a bank heist in paris.\nanswer:" for i in range(9)]
LABELS = [" comedy\n", " dark comedy\n", " 1\n", " 10\n"]
OWNERS = [f"user {i % 3}" for i in range(9)]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def backbone():
    """A Llama of four layers."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_hidden_layers": 4}, num_key_value_heads=2)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    model = enlarged(AutoModelForCausalLM.from_config(config).eval(), 3.0)
    return CausalBackbone(model, make_tokenizer(bos=True))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    for sizes, tokens in ((module.BATCH_TOKENS, 150), (module.OWN_TOKENS, 150), (module.BATCH_TEXTS, 4)):
        monkeypatch.setitem(sizes, "cpu", tokens)


def steering(backbone, *layers, site="block", seed=0, scope="last"):
    random = np.random.default_rng(seed)
    personal = random.normal(size=(3, len(layers), 32)).astype(np.float32)
    vectors = SteeringVectors(layers, personal, personal[0], np.ones(len(layers), dtype=np.float32))
    users, gates = np.arange(9) % 3, np.array([1, 1, 0, 1, 1, 0.5, 1, 1, 1])
    return SteeringEdit(backbone.layers, vectors, Move(site=site, alpha_personal=0.6), users, gates, scope)


def lora(backbone, first, seed=0, n=9, owners=OWNERS):
    modules = adapted_modules(backbone.model, backbone.layers[first:], "all")
    found = GroupedLora(backbone.model, LoraShape(modules, 2, 4.0, 3))
    with torch.no_grad():
        for number, parameter in enumerate(found.sides[1]):
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(100 * seed + number))
    return AdapterEdit(found, np.arange(n) % 3, owners, first - 1, content=f"seed {seed}")


@contextmanager
def counted(layer):
    """A list with an entry for each time that the inside of a block really runs."""
    runs = []
    handle = layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    yield runs
    handle.remove()


def size_of(rows):
    """Bytes of the states of one layer."""
    return sum(b * t for b, t in map(rows.shape, range(rows.batches))) * 4 * 32


STACKS = {
    "steering above lora": lambda b: [lora(b, 1), steering(b, 2)],
    "steering of the mlp above lora": lambda b: [lora(b, 1), steering(b, 2, site="mlp")],
    "steering of all tokens above lora": lambda b: [lora(b, 1), steering(b, 2, scope="all")],
    "steering above lora in all layers": lambda b: [lora(b, 0), steering(b, 3)],
    "steering in the first layer of lora": lambda b: [lora(b, 2), steering(b, 2)],
    "steering below lora": lambda b: [lora(b, 3), steering(b, 1)],
    "lora above steering": lambda b: [steering(b, 0), lora(b, 3)],
    "lora right above steering": lambda b: [steering(b, 0, 1), lora(b, 2)],
    "steering twice": lambda b: [steering(b, 0, 1), steering(b, 1, seed=1)],
    "steering twice at one layer": lambda b: [steering(b, 1), steering(b, 1, seed=1)],
    "lora, lora and steering": lambda b: [lora(b, 1), lora(b, 2, seed=1), steering(b, 3)],
}


@pytest.mark.parametrize(
    "stack", of_table(STACKS, "steering above lora", "lora right above steering", "steering twice")
)
def test_edits_together_resume_with_the_bits_of_the_full_pass(backbone, stack, tmp_path):
    edits = STACKS[stack](backbone)
    whole, resumed = (backbone.fixed(PROMPTS, LABELS, edits, shelf) for shelf in (None, Shelf(tmp_path, "tiny")))
    expected = whole.table(edits)
    assert whole.batches > 1
    assert (resumed.table(edits) == expected).all()
    assert list(tmp_path.glob("*.states"))
    again = backbone.fixed(PROMPTS, LABELS, edits, Shelf(tmp_path, "tiny"))
    again.table(edits)
    after = edits[-1].after
    with counted(backbone.layers[after]) as below, counted(backbone.layers[after + 1 if after < 3 else 3]) as above:
        assert (again.table(edits) == expected).all()
    assert (len(below), len(above)) == (0, again.batches if after < 3 else 0)
    for left_out in range(len(edits)):
        rest = [edit for number, edit in enumerate(edits) if number != left_out]
        assert np.abs(whole.table(rest) - expected).max() > 1e-3


def test_states_are_those_under_the_edits_below_and_no_others(backbone, tmp_path):
    one, other, above = lora(backbone, 1), lora(backbone, 1, seed=1), steering(backbone, 2)
    rows, bare = (backbone.fixed(PROMPTS, LABELS, [one, above], shelf) for shelf in (Shelf(tmp_path, "tiny"), None))
    for edits in ([one, above], [other, above], [above], [one, steering(backbone, 2, seed=1)]):
        assert (rows.table(edits) == bare.table(edits)).all()
    assert len(list(tmp_path.glob("*.states"))) == 4  # below lora, and above each and none
    changed = backbone.fixed(PROMPTS, LABELS, [one, above], Shelf(tmp_path, "other weights"))
    changed.table([above])
    assert len(list(tmp_path.glob("*.states"))) == 5


@pytest.mark.parametrize("reason", ["the limit", "half of the free disk"])
def test_states_without_room_are_not_stored_and_nothing_else_changes(backbone, reason, tmp_path, monkeypatch, caplog):
    edits = [lora(backbone, 1), steering(backbone, 2)]
    expected = backbone.fixed(PROMPTS, LABELS, edits).table(edits)
    size = size_of(backbone.fixed(PROMPTS, LABELS, edits))
    if reason == "the limit":
        monkeypatch.setenv("CHAMTUNE_CACHE_GB", str((size - 1) / 1e9))
    else:
        monkeypatch.setattr(states.shutil, "disk_usage", lambda _: Usage(10 * size, 0, 2 * size - 1))
    caplog.set_level("INFO")
    rows = backbone.fixed(PROMPTS, LABELS, edits, Shelf(tmp_path / "states", "tiny"))
    assert (rows.table(edits) == expected).all()
    assert "GB of hidden states are not stored" in caplog.text
    assert not list(tmp_path.rglob("*.*"))
    found = rows.last_states([2], edits)
    assert (found == backbone.fixed(PROMPTS, LABELS, edits).last_states([2], edits)).all()
    assert rows.scores(0, edits[:1]).requires_grad
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", str(size / 1e9))
    monkeypatch.setattr(states.shutil, "disk_usage", lambda _: Usage(10 * size, 0, 2 * size))
    roomy = backbone.fixed(PROMPTS, LABELS, edits, Shelf(tmp_path / "states", "tiny"))
    assert (roomy.table(edits) == expected).all()
    assert len(list(tmp_path.rglob("*.states"))) == 1


def test_states_keep_to_the_size_limit(backbone, tmp_path, monkeypatch):
    rows = backbone.fixed(PROMPTS, LABELS, (), Shelf(tmp_path, "tiny"))
    first = rows.last_states([0])
    size = size_of(rows)
    monkeypatch.setenv("CHAMTUNE_CACHE_GB", str(1.5 * size / 1e9))
    for layer in (0, 1):
        edit = steering(backbone, layer)
        assert (rows.table([edit]) == backbone.fixed(PROMPTS, LABELS).table([edit])).all()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".states"]
    assert (rows.last_states([0]) == first).all()


def test_stored_states_are_read_by_the_next_rows_and_checked(backbone, tmp_path, caplog):
    edit = steering(backbone, 1)
    expected = backbone.fixed(PROMPTS, LABELS, [edit], Shelf(tmp_path, "tiny")).table([edit])
    (path,) = tmp_path.glob("*.states")
    fresh = backbone.fixed(PROMPTS, LABELS, [edit], Shelf(tmp_path, "tiny"))
    fresh._run_to = lambda *_: pytest.fail("the states are run again")
    assert (fresh.table([edit]) == expected).all()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    mended = backbone.fixed(PROMPTS, LABELS, [edit], Shelf(tmp_path, "tiny"))
    assert (mended.table([edit]) == expected).all()
    assert "is damaged; the hidden states are computed anew" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_that_are_open_outlive_their_file_and_one_that_is_cut_is_said(tmp_path, dtype):
    torch.manual_seed(0)
    batches = [torch.randn(b, t, 6).to(dtype) for b, t in ((2, 3), (0, 4), (1, 5))]
    shapes = [(2, 3), (0, 4), (1, 5)]
    stored = states.StoredStates(tmp_path / "a.states", shapes, 6, dtype, lambda: batches)
    os.truncate(tmp_path / "a.states", stored.path.stat().st_size - 1)
    assert torch.equal(stored[0], batches[0])
    with pytest.raises(OSError, match="a.states ends after"):
        stored[2]
    mended = states.StoredStates(tmp_path / "a.states", shapes, 6, dtype, lambda: batches)
    (tmp_path / "a.states").unlink()
    assert all(torch.equal(mended[number], one) for number, one in enumerate(batches))


def test_few_layers_stay_open(backbone, tmp_path):
    rows, below = backbone.fixed(PROMPTS, LABELS, (), Shelf(tmp_path, "tiny")), steering(backbone, 0)
    for _ in range(2):
        for layer in range(2):
            rows.states(layer)
    assert list(rows._stored) == [(0,), (1,)]
    rows.states(1, [below])
    assert list(rows._stored) == [(0,), (1, below.key)]
    assert len(list(tmp_path.glob("*.states"))) == 3


def test_a_disk_that_fails_leaves_gradients_on(backbone, tmp_path, monkeypatch):
    @contextmanager
    def full(_):
        class File:
            def write(self, _):
                raise OSError("no space left on device")

        yield File()

    monkeypatch.setattr(states, "atomic_file", full)
    rows = backbone.fixed(PROMPTS, LABELS, (), Shelf(tmp_path, "tiny"))
    with pytest.raises(OSError, match="no space") as failed:
        rows.states(1)
    assert failed.value is not None
    assert not torch.is_inference_mode_enabled()


def test_last_states_are_those_of_each_prompt_alone_under_its_edits(backbone):
    edits = [lora(backbone, 1), steering(backbone, 2)]
    rows = backbone.fixed(PROMPTS, LABELS, edits)
    for some in ([], edits):
        ours = rows.last_states([3, 0, 2], some)
        for row, prompt in enumerate(PROMPTS):
            own = [edit.only(np.array([row])) for edit in some]
            alone = backbone.fixed([prompt], LABELS, own).last_states([3, 0, 2], own)
            assert np.abs(ours[row] - alone[0]).max() <= 1e-4
    plain = rows.last_states([0, 1, 2, 3])
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([backbone.tokenizer(prompt)["input_ids"]])
        with torch.inference_mode(), captured_output(backbone.layers[2]) as seen:
            backbone.model(ids, use_cache=False)
        assert np.abs(plain[row, 2] - seen[0][0, -1].numpy()).max() <= 1e-4
    moved = np.abs(rows.last_states([0, 1, 2, 3], edits) - plain).max(axis=(0, 2))
    assert moved[0] == 0
    assert (moved[1:] > 0).all()


def test_labels_that_cannot_share_a_tree_are_refused(backbone, monkeypatch):
    monkeypatch.setattr(module, "MOST_NODES", 3)
    monkeypatch.setattr("personalization.scoring.packed.MOST_NODES", 3)
    with pytest.raises(DataError, match="take labels of at most 3 tokens together"):
        backbone.fixed(PROMPTS, [" a long label\n", " another long label\n"])


class Memory:
    """Too little of it for batches of more rows than `largest`."""

    def __init__(self, monkeypatch, kind, largest, error=torch.OutOfMemoryError):
        self.sizes, real = [], kind.run

        def run(rows, number, past=None):
            self.sizes.append(rows.shape(number)[0])
            if self.sizes[-1] > largest:
                raise error("CUDA out of memory" if error is torch.OutOfMemoryError else "can't allocate memory")
            return real(rows, number, past)

        monkeypatch.setattr(kind, "run", run)


@pytest.fixture
def whole_again(backbone):
    yield
    backbone.smaller = 1


@pytest.mark.parametrize(
    ("error", "stored"),
    of_table(itertools.product([torch.OutOfMemoryError, RuntimeError], [True, False]), (torch.OutOfMemoryError, True)),
)
def test_batches_that_do_not_fit_in_memory_are_halved(
    backbone, whole_again, stored, error, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", 700)
    edit = steering(backbone, 2, scope="all")
    expected = backbone.fixed(PROMPTS, LABELS, [edit]).table([edit])
    memory = Memory(monkeypatch, module.FixedRows, 2, error)
    shelf = Shelf(tmp_path, "tiny") if stored else None

    def run():
        return backbone.fixed(PROMPTS, LABELS, [edit], shelf).table([edit])

    assert np.abs(shrinking(backbone, run) - expected).max() <= 1e-4
    assert backbone.smaller > 1
    assert f"batches are divided by {backbone.smaller} from now on" in caplog.text
    memory.sizes.clear()
    assert np.abs(shrinking(backbone, run) - expected).max() <= 1e-4
    assert max(memory.sizes) <= 2
    assert not any("forward" in vars(layer) or layer._forward_hooks for layer in backbone.layers)


def test_texts_that_do_not_fit_in_memory_are_halved(tiny_encoder, monkeypatch):
    encoder = load_encoder(str(tiny_encoder), device="cpu")
    monkeypatch.setitem(module.BATCH_TEXTS, "cpu", 16)
    edit = lora(encoder, 1)
    expected = encoder.fixed(PROMPTS, ["a", "b"], [edit]).table([edit])
    memory = Memory(monkeypatch, type(encoder.fixed(PROMPTS, ["a", "b"])), 2)
    found = shrinking(encoder, lambda: encoder.fixed(PROMPTS, ["a", "b"], [edit]).table([edit]))
    assert np.abs(found - expected).max() <= 1e-4
    assert encoder.smaller == 8
    assert memory.sizes[:3] == [9, 8, 4]


def test_one_row_that_does_not_fit_is_raised_and_so_is_another_error(backbone, whole_again, monkeypatch):
    edit = steering(backbone, 2)
    monkeypatch.setattr(passes, "SMALLEST", 4)
    memory = Memory(monkeypatch, module.FixedRows, 0)
    with pytest.raises(torch.OutOfMemoryError):
        shrinking(backbone, lambda: backbone.fixed(PROMPTS, LABELS, [edit]).table([edit]))
    assert backbone.smaller == 4
    tries = []

    def broken():
        tries.append(1)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        shrinking(backbone, broken)
    assert len(tries) == 1
    assert memory.sizes


def test_embeddings_under_an_edit_are_what_its_scores_are_made_of(tiny_encoder, tmp_path):
    encoder = load_encoder(str(tiny_encoder), device="cpu")
    edit = lora(encoder, 1)
    labels = ["comedy", "drama", "a long label"]
    for shelf in (None, Shelf(tmp_path, "tiny")):
        fixed: Fixed = encoder.fixed(PROMPTS, labels, [edit], shelf)
        embedded = fixed.embeddings([edit])
        assert np.allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
        expected = torch.from_numpy(20.0 * embedded @ encoder.embeddings(labels).T).log_softmax(1).numpy()
        assert np.abs(fixed.table([edit]) - expected).max() <= 1e-4
        assert np.abs(fixed.embeddings() - encoder.embeddings(PROMPTS)).max() <= 1e-5
        assert np.abs(embedded - fixed.embeddings()).max() > 0.01
    assert list(tmp_path.glob("*.states"))


def test_what_is_asked_first_changes_no_bit(backbone, tmp_path):
    """What all batches share is run without edits, whichever way it is asked for."""
    edit = steering(backbone, 2)
    fresh = backbone.fixed(PROMPTS, LABELS, [edit])
    expected = fresh.table([edit])
    assert fresh.route.trunk
    with torch.inference_mode():
        for shelf in (None, Shelf(tmp_path, "tiny")):
            rows = backbone.fixed(PROMPTS, LABELS, [edit], shelf)
            assert (rows.scores(1, [edit]).numpy() == expected[rows.members[1]]).all()
    stored = backbone.fixed(PROMPTS, LABELS, [edit], Shelf(tmp_path, "asked for states")).states(2)
    assert [stored[number].shape[:2] for number in range(fresh.batches)] == [
        fresh.shape(number) for number in range(fresh.batches)
    ]


def test_texts_are_learned_from_after_they_were_judged(tiny_encoder):
    encoder = load_encoder(str(tiny_encoder), device="cpu")
    edit, found = lora(encoder, 1), []
    for judged in (False, True):
        texts = encoder.fixed(PROMPTS, ["a", "b"], [edit])
        if judged:
            texts.table([edit])
        found.append(torch.autograd.grad(texts.scores(0, [edit]).square().mean(), edit.adapters.parameters))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in found[0])
