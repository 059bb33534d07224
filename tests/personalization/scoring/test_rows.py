import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personalization.scoring.candidates import build_tree
from personalization.scoring.rows import SHORTEST, common_prefix, cut_rows, lay_out, trunk_length

HIDDEN = 64


def arrays(*prompts):
    return [np.array(p, dtype=np.int32) for p in prompts]


def test_candidates_share_their_beginnings_and_feed_no_last_token():
    tree = build_tree([[1], [1, 2], [1, 2, 3], [4, 5]])
    assert tree.tokens.tolist() == [1, 2, 4]
    assert tree.depths.tolist() == [1, 2, 1]
    assert tree.sees.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert [tree.candidate(k) for k in range(4)] == [[1], [1, 2], [1, 2, 3], [4, 5]]
    assert tree.chains() == [[0, 1], [2]]


def test_single_token_candidates_cost_nothing():
    assert len(build_tree([[1], [2], [3]]).tokens) == 0


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=20))
def test_the_tree_holds_every_candidate(candidates):
    tree = build_tree(candidates)
    assert [tree.candidate(k) for k in range(len(candidates))] == candidates
    assert len(tree.tokens) == len({tuple(c[:j]) for c in candidates for j in range(1, len(c))})


def test_the_trunk_leaves_every_prompt_a_token_of_its_own():
    assert trunk_length(arrays([1, 2, 3], [1, 2, 3, 4], [1, 2, 9])) == 2
    assert trunk_length(arrays([1, 2, 3], [1, 2, 3])) == 2
    assert trunk_length(arrays([1, 2, 3])) == 0
    assert common_prefix(*arrays([5], [5])) == 0


def users(count, questions, history, own):
    random = np.random.default_rng(0)
    prompts = []
    for _ in range(count):
        stem = random.integers(0, 1000, history).tolist()
        prompts += [[*stem, *random.integers(0, 1000, own).tolist()] for _ in range(questions)]
    order = random.permutation(len(prompts))
    return arrays(*[prompts[i] for i in order])


def test_questions_of_a_user_share_a_row_with_their_history_once():
    prompts = users(6, 5, history=100, own=10)
    rows = cut_rows(prompts, 0, 4, HIDDEN, 2048)
    assert sorted(len(row.prompts) for row in rows) == [5] * 6
    assert {row.stem for row in rows} == {100}
    assert {row.width for row in rows} == {100 + 5 * 14}


def test_short_beginnings_and_long_rows_are_not_shared():
    assert all(len(row.prompts) == 1 for row in cut_rows(users(3, 4, SHORTEST - 1, 9), 0, 0, HIDDEN, 2048))
    assert all(row.width <= 300 for row in cut_rows(users(2, 30, 100, 40), 0, 0, 1000, 300))


def cost(prompts, parts, trunk, nodes):
    total = 0.0
    for part in parts:
        last, begins = (
            prompts[part[-1]][trunk:],
            [common_prefix(prompts[i][trunk:], prompts[part[-1]][trunk:]) for i in part],
        )
        width = len(last) + sum(len(prompts[i]) - trunk - at for i, at in zip(part[:-1], begins, strict=False))
        width += nodes * len(part)
        total += width + width * (trunk + width) / (6 * HIDDEN)
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 20), st.integers(0, 5))
def test_no_other_cut_costs_less(seed, trunk, nodes):
    random = np.random.default_rng(seed)
    base = random.integers(0, 2, trunk).tolist()
    stems = [random.integers(0, 50, random.integers(8, 60)).tolist() for _ in range(2)]
    prompts = arrays(
        *[[*base, *stems[random.integers(2)][: random.integers(8, 60)], *random.integers(0, 50, 4)] for _ in range(6)]
    )
    rows = cut_rows(prompts, trunk, nodes, HIDDEN, 10_000)
    assert sorted(i for row in rows for i in row.prompts) == list(range(6))
    order = [i for row in rows for i in row.prompts]
    ours = cost(prompts, [row.prompts for row in rows], trunk, nodes)
    for cuts in itertools.product([False, True], repeat=5):
        parts, start = [], 0
        for place, cut in enumerate([*cuts, True], start=1):
            if cut:
                parts.append(order[start:place])
                start = place
        shared = [
            min(
                (common_prefix(prompts[a][trunk:], prompts[b][trunk:]) for a, b in itertools.pairwise(part)), default=99
            )
            for part in parts
        ]
        if min(shared) >= SHORTEST:
            assert ours <= cost(prompts, parts, trunk, nodes) + 1e-6


def test_prompts_that_continue_one_another_cost_one_pass_over_the_longest():
    random = np.random.default_rng(1)
    histories = [random.integers(0, 1000, 200).tolist() for _ in range(3)]
    prompts = arrays(*[history[:end] for history in histories for end in range(20, 201, 20)])
    rows = cut_rows(prompts, 0, 0, HIDDEN, 2048)
    assert [row.width for row in rows] == [200 + 9] * 3
    for row in rows:
        layout = lay_out([row], prompts, 0, build_tree([[5]]))
        assert sorted(layout.positions[0, layout.places[:, 1]] + 1) == list(range(20, 201, 20))
        for branch, index in enumerate(row.prompts, start=1):
            own = layout.branches[0] == branch
            seen = own | ((layout.branches[0] == 0) & (layout.positions[0] < layout.starts[0, own].min()))
            assert layout.ids[0, seen].tolist() == prompts[index].tolist()
            assert layout.positions[0, seen].tolist() == list(range(len(prompts[index])))


def test_layout_puts_each_prompt_behind_its_stem_and_the_tree_behind_each_prompt():
    prompts = arrays([7, 7, *range(10, 20), 1], [7, 7, *range(10, 20), 2, 3], [7, 7, 8])
    tree = build_tree([[5], [5, 6]])
    rows = sorted(cut_rows(prompts, 2, 1, 1000, 2048), key=lambda row: -row.width)
    assert [(row.prompts, row.stem) for row in rows] == [((0, 1), 10), ((2,), 0)]
    layout = lay_out(rows, prompts, 2, tree)
    assert layout.ids.shape == (2, 16)
    assert layout.branches[0, 15] == layout.branches[1, 2] == -1
    layout = replace(
        layout, **{name: getattr(layout, name)[:, :15] for name in ("ids", "positions", "branches", "nodes")}
    )
    assert layout.ids[0].tolist() == [*range(10, 20), 1, 5, 2, 3, 5]
    assert layout.positions[0].tolist() == [*range(2, 12), 12, 13, 12, 13, 14]
    assert layout.branches[0].tolist() == [0] * 10 + [1, 1, 2, 2, 2]
    assert layout.nodes[0].tolist() == [0] * 11 + [1, 0, 0, 1]
    assert layout.places.tolist() == [[0, 10, 11], [0, 13, 14], [1, 0, 1]]
    assert layout.branches[1].tolist() == [1, 1] + [-1] * 13


@pytest.mark.parametrize("count", [1, 2, 500])
def test_cutting_takes_prompts_in_any_number(count):
    rows = cut_rows(users(count, 1, 5, 5), 0, 0, HIDDEN, 2048)
    assert len(rows) == count
