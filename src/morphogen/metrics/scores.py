"""Scores of a classifier's probabilities, macro-averaged over labels; by scikit-learn where it has the figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import missing_extra
from morphogen.metrics.records import Record

SCORES = {
    "sensitivity": "Sen",
    "specificity": "Spe",
    "auc": "AUC",
    "f1": "F1",
    "f1_sen_spe": "F1 of Sen and Spe",
    "map": "mAP",
}
"""The scores by their names in files, and in tables."""
PUBLISHED = dict(zip(SCORES, ("sen", "spe", "auc", "f1", "f1_sen_spe", "map"), strict=True))
"""Their names among the published figures, which are percent."""
_THRESHOLD = 0.5

Probabilities = NDArray[np.float64]
Truth = NDArray[np.bool_]


def label_scores(truth: Truth, probabilities: Probabilities, exclusive: bool) -> list[dict[str, float | None]]:
    """The scores of every label, in 0..1: of truth boolean (N, K) and probabilities (N, K).

    A label is predicted where it is the likeliest of exclusive ones, and else from one half on. A score is None where
    it is not defined: without positive images but for specificity, without negative ones for specificity and AUC.
    Raises InputError without scikit-learn.
    """
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError:
        raise missing_extra("metrics", "scikit-learn") from None
    said = probabilities >= _THRESHOLD
    if exclusive:
        said = np.eye(truth.shape[1], dtype=bool)[probabilities.argmax(axis=1)]
    found: list[dict[str, float | None]] = []
    for k in range(truth.shape[1]):
        true, predicted = truth[:, k], said[:, k]
        right, wrong = int((true & predicted).sum()), int((~true & predicted).sum())
        positive, negative = int(true.sum()), int((~true).sum())
        sensitivity = right / positive if positive else None
        specificity = 1 - wrong / negative if negative else None
        both = None if sensitivity is None or specificity is None else sensitivity + specificity
        product = (sensitivity or 0.0) * (specificity or 0.0)
        found.append(
            {
                "sensitivity": sensitivity,
                "specificity": specificity,
                "auc": float(roc_auc_score(true, probabilities[:, k])) if positive and negative else None,
                "f1": 2 * right / (positive + right + wrong) if positive else None,
                "f1_sen_spe": None if both is None else 2 * product / both if both else 0.0,
                "map": float(average_precision_score(true, probabilities[:, k])) if positive else None,
            }
        )
    return found


def macro(scores: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """The mean of every score over the labels for which it is defined."""
    means: dict[str, float | None] = {}
    for name in SCORES:
        values = [v for label in scores if (v := label[name]) is not None]
        means[name] = float(np.mean(values)) if values else None
    return means


def by_eye(
    truth: Truth, probabilities: Probabilities, eyes: Sequence[str], exclusive: bool
) -> tuple[Truth, Probabilities, list[str]]:
    """The scans of each eye as one: the mean of their probabilities; the labels that any of them has or, of exclusive
    ones, the one that most have. Eyes in the order in which they come.
    """
    names = list(dict.fromkeys(eyes))
    place = {name: n for n, name in enumerate(names)}
    rows = [place[eye] for eye in eyes]
    summed, has = np.zeros((len(names), truth.shape[1])), np.zeros((len(names), truth.shape[1]), np.int64)
    np.add.at(summed, rows, probabilities)
    np.add.at(has, rows, truth.astype(np.int64))
    counts = Counter(rows)
    mean = summed / np.array([counts[n] for n in range(len(names))])[:, None]
    any_of = has > 0
    if exclusive:
        any_of = np.eye(truth.shape[1], dtype=bool)[has.argmax(axis=1)]
    return any_of, mean, names


def paired_p(values: Sequence[float], others: Sequence[float], test: str) -> float | None:
    """The two-sided p-value of paired values: `t` (Student's paired t-test) or `wilcoxon` (signed ranks, exact).

    None where it is not defined: with fewer than two pairs, and for t with equal differences that are not zero.
    """
    from scipy import stats

    differences = np.asarray(values) - np.asarray(others)
    if len(differences) < 2:
        return None
    if not differences.any():
        return 1.0
    if test == "wilcoxon":
        return float(stats.wilcoxon(differences).pvalue)
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return None
    return float(stats.ttest_rel(values, others).pvalue)


class Average(Record):
    """Mean and (sample) deviation of a score over folds or seeds, and its values."""

    mean: float
    deviation: float | None
    values: tuple[float | None, ...]


def average(values: Sequence[float | None]) -> Average | None:
    """Mean and deviation of a score over folds or seeds; None where it is nowhere defined."""
    there = [v for v in values if v is not None]
    if not there:
        return None
    deviation = float(np.std(there, ddof=1)) if len(there) > 1 else None
    return Average(mean=float(np.mean(there)), deviation=deviation, values=tuple(values))
