"""Scores against their definitions and scikit-learn; eyes against means by hand; p-values against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from morphogen.metrics.scores import SCORES, Average, average, by_eye, label_scores, macro, paired_p


def test_a_table_worked_out_by_hand() -> None:
    truth = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], bool)
    said = np.array([[0.9, 0.6], [0.4, 0.1], [0.7, 0.8], [0.2, 0.5], [0.1, 0.2]])
    first, second = label_scores(truth, said, exclusive=False)
    assert first == {
        "sensitivity": 1 / 2,
        "specificity": pytest.approx(2 / 3),
        "auc": pytest.approx(5 / 6),
        "f1": pytest.approx(1 / 2),  # one right, one missed, one wrong
        "f1_sen_spe": pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3)),
        "map": pytest.approx((1 / 1 + 2 / 3) / 2),
    }
    assert second["sensitivity"] == 1 and second["specificity"] == pytest.approx(2 / 3)
    assert macro([first, second])["sensitivity"] == pytest.approx(0.75)
    # of exclusive labels the likeliest is predicted, however unlikely
    classes = label_scores(truth[:4], said[:4], exclusive=True)
    assert [label["sensitivity"] for label in classes] == [1.0, 1.0]


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.booleans())
def test_scores_are_scikit_learns(seed: int, labels: int, exclusive: bool) -> None:
    draw = np.random.default_rng(seed)
    count = 40
    truth = np.eye(labels, dtype=bool)[draw.permutation(np.arange(count) % labels)]
    if not exclusive:
        truth = draw.random((count, labels)) < 0.3
        truth[0], truth[1] = True, False
    said = draw.random((count, labels))
    found = macro(label_scores(truth, said, exclusive))
    predicted = np.eye(labels, dtype=bool)[said.argmax(1)] if exclusive else said >= 0.5
    assert found["sensitivity"] == pytest.approx(recall_score(truth, predicted, average="macro", zero_division=0))
    assert found["specificity"] == pytest.approx(recall_score(~truth, ~predicted, average="macro", zero_division=0))
    assert found["f1"] == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert found["auc"] == pytest.approx(roc_auc_score(truth, said, average="macro"))


def test_labels_without_test_images_are_left_out() -> None:
    truth = np.array([[1, 0], [0, 0], [1, 0]], bool)
    scores = label_scores(truth, np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.1]]), exclusive=False)
    assert {name for name in SCORES if scores[1][name] is None} == {"sensitivity", "auc", "f1", "f1_sen_spe", "map"}
    assert scores[1]["specificity"] == pytest.approx(2 / 3)
    assert macro(scores)["sensitivity"] == 1.0 and macro([scores[1]])["auc"] is None


def test_scans_of_an_eye_are_averaged() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    said = np.array([[0.2, 0.4], [0.6, 0.6], [1.0, 0.2], [0.3, 0.1]])
    eyes = ["p1 left", "p2 left", "p1 left", "p1 right"]
    has, mean, names = by_eye(truth, said, eyes, exclusive=False)
    assert names == ["p1 left", "p2 left", "p1 right"]
    np.testing.assert_allclose(mean, [[0.6, 0.3], [0.6, 0.6], [0.3, 0.1]])
    assert has.tolist() == [[True, False], [False, True], [False, False]]
    one_hot = np.array([[1, 0], [1, 0], [0, 1]], bool)
    assert by_eye(one_hot, said[:3], ["e"] * 3, exclusive=True)[0].tolist() == [[True, False]]


def test_p_values_are_scipys_where_they_are_defined() -> None:
    ours, theirs = [0.7, 0.8, 0.75, 0.9, 0.6], [0.65, 0.7, 0.76, 0.8, 0.55]
    assert paired_p(ours, theirs, "t") == pytest.approx(float(stats.ttest_rel(ours, theirs).pvalue))
    assert paired_p(ours, theirs, "wilcoxon") == pytest.approx(float(stats.wilcoxon(ours, theirs).pvalue))
    assert paired_p(ours, theirs, "t") != pytest.approx(float(stats.ttest_ind(ours, theirs).pvalue))
    assert paired_p(ours, ours, "t") == paired_p(ours, ours, "wilcoxon") == 1.0
    assert paired_p([0.5], [0.4], "t") is None
    assert paired_p([0.5, 0.75], [0.25, 0.5], "t") is None  # equal differences: no spread to test by


def test_summaries_leave_out_what_is_not_defined() -> None:
    assert average([None, None]) is None
    assert average([0.5]) == Average(mean=0.5, deviation=None, values=(0.5,))
    found = average([0.4, None, 0.8])
    assert found is not None and found.mean == pytest.approx(0.6)
    assert found.deviation == pytest.approx(np.std([0.4, 0.8], ddof=1))
