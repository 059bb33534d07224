"""Groups of users, and heads."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, silhouette_score

from personalization.data.demo.world import make_world
from personalization.data.known import learned_histories
from personalization.methods.adapters.heads import fit_head
from personalization.methods.history.clusters import Clusters, cluster


def embed(texts):
    return np.random.default_rng(0).normal(size=(len(texts), 6)).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    return make_world(0, users=120, questions_per_user=1)


def test_words_find_the_planted_groups(world):
    histories = learned_histories(world.dataset)
    found = cluster("words", list(histories.values()), world.dataset.labels, embed, 4)
    features = found.features(list(histories.values()), embed)
    groups = found.assign(features)
    assert adjusted_rand_score([world.users[user].group for user in histories], groups) > 0.9
    assert found.silhouette == pytest.approx(silhouette_score(features, groups), abs=1e-6)


@pytest.mark.parametrize("kind", ["words", "labels", "embedding"])
def test_new_users_go_to_the_nearest_centre_after_a_round_trip(world, kind, tmp_path):
    histories = list(learned_histories(world.dataset).values())
    found = cluster(kind, histories[:80], world.dataset.labels, embed, 3)
    assert found.save(tmp_path / "groups.safetensors") == "groups.safetensors"
    again = Clusters.load(tmp_path / "groups.safetensors")
    assert (again.kind, again.terms, again.silhouette) == (found.kind, found.terms, found.silhouette)
    features = again.features(histories[80:], embed)
    distances = np.linalg.norm(features[:, None] - found.centres[None], axis=2)
    assert again.assign(features).tolist() == distances.argmin(axis=1).tolist()
    nobody = again.features([()], embed)
    assert nobody.shape == (1, features.shape[1])
    assert not nobody.any()


def test_there_are_no_more_groups_than_different_users(world):
    histories = list(learned_histories(world.dataset).values())[:1] * 5
    assert len(cluster("words", histories, world.dataset.labels, embed, 4).centres) == 1


@pytest.mark.parametrize("k", [2, 4])
def test_a_head_is_scikit_learns(k):
    rng = np.random.default_rng(k)
    features, labels = rng.normal(size=(60, 5)) * 3 + 1, rng.integers(0, k, 60)
    texts = rng.normal(size=(k, 5))
    head = fit_head(features, labels, texts, 0.3)
    examples, known = np.concatenate([features, texts]), np.concatenate([labels, np.arange(k)])
    normal = (examples - examples.mean(0)) / examples.std(0)
    peer = LogisticRegression(C=0.3, max_iter=1000).fit(normal, known)
    expected = peer.predict_log_proba((features - examples.mean(0)) / examples.std(0))
    assert np.abs(head.log_probs(features) - expected).max() <= 1e-4


def test_a_label_that_nobody_gave_is_known_by_its_text():
    rng = np.random.default_rng(0)
    head = fit_head(rng.normal(size=(30, 4)), rng.integers(0, 2, 30), np.eye(4)[:3] * 9, 100.0)
    assert np.isfinite(head.log_probs(rng.normal(size=(5, 4)))).all()
    assert head.log_probs(np.eye(4)[2:3] * 9).argmax() == 2
