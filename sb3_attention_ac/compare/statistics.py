"""Summaries over tasks and seeds with uncertainty, by rliable (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264)."""

from collections.abc import Callable
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rliable import library, metrics

from sb3_attention_ac.compare.randomness import own_randomness

Scores = npt.NDArray[np.float64]

REPETITIONS = 2000
FEW_SEEDS = 5  # with fewer, intervals exclude equality too often: of two equal algorithms with two seeds one in three times


def iqm(scores: Scores) -> Scores:
    """
    The same as rliable's ``aggregate_iqm``, ten times as fast, which matters for the bootstrap.

    :param scores: Seeds x environments x anything
    :return: Mean of the middle half over seeds and environments, of the shape of anything
    """
    ordered = np.sort(scores.reshape(-1, *scores.shape[2:]), axis=0)
    cut = len(ordered) // 4
    middle: Scores = ordered[cut : len(ordered) - cut].mean(axis=0)
    return middle


SUMMARIES: dict[str, Callable[[Scores], Scores]] = {
    "IQM": iqm,
    "median": metrics.aggregate_median,
    "optimality gap": metrics.aggregate_optimality_gap,
}


def score_matrices(runs: pd.DataFrame, column: str) -> dict[str, Scores]:
    """
    :param runs: One row per run: algorithm, environment, seed, and ``column``
    :param column: Name of the score
    :return: Scores of each algorithm, seeds x environments. A seed counts if it finished on every environment; algorithms
        without such a seed are left out
    """
    n_envs = runs["environment"].nunique()
    matrices = {}
    for algorithm, group in runs.groupby("algorithm", sort=False):
        wide = group.pivot(index="seed", columns="environment", values=column).dropna()
        if wide.shape[1] == n_envs and len(wide):
            matrices[str(algorithm)] = wide.to_numpy(dtype=np.float64)
    return matrices


def interval(scores: Scores | list[Scores], function: Callable[..., Any]) -> tuple[Scores, Scores, Scores]:
    """
    :param scores: Seeds x environments (x anything) of one algorithm, or a list of such arrays
    :param function: Summary of the scores: numbers, as a one-dimensional array
    :return: The summary and the ends of its 95 % interval by bootstrap over seeds within environments; the ends are NaN where
        there is one seed, which says nothing about others
    """
    with own_randomness(0):  # rliable draws from NumPy's global generator; the same results shall have the same intervals
        points, intervals = library.get_interval_estimates({"": scores}, function, reps=REPETITIONS)
    point, (low, high) = np.asarray(points[""]), np.asarray(intervals[""])
    if min(len(array) for array in ([scores] if isinstance(scores, np.ndarray) else scores)) < 2:
        low, high = np.full_like(point, np.nan), np.full_like(point, np.nan)
    return point, low, high


def summaries(runs: pd.DataFrame) -> pd.DataFrame:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.tables.run_table`
    :return: One row per algorithm, score (``final`` or ``area``, on the common scale) and summary: value, low, high, seeds
    """

    def all_summaries(scores: Scores) -> Scores:
        return np.array([function(scores) for function in SUMMARIES.values()])

    rows = []
    for column in ("final", "area"):
        for algorithm, scores in score_matrices(runs, f"{column}_normalized").items():
            for name, *numbers in zip(SUMMARIES, *interval(scores, all_summaries), strict=True):
                row = dict(zip(("value", "low", "high"), map(float, numbers), strict=True))
                rows.append({"algorithm": algorithm, "score": column, "summary": name, **row, "seeds": len(scores)})
    return pd.DataFrame(rows, columns=["algorithm", "score", "summary", "value", "low", "high", "seeds"])


def probability_of_improvement(x: Scores, y: Scores) -> float:
    """
    The same as rliable's function of this name, a hundred times as fast, which matters for many pairs.

    :param x: Scores, seeds x environments
    :param y: Scores of another algorithm on the same environments
    :return: Probability that a run of x beats a run of y, ties count one half; mean over environments
    """
    higher = x[:, None] > y[None, :]
    equal = x[:, None] == y[None, :]
    return float(np.mean(higher + 0.5 * equal))


def improvements(runs: pd.DataFrame, column: str = "final_normalized") -> pd.DataFrame:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.tables.run_table`
    :param column: Name of the score
    :return: One row per ordered pair of algorithms: probability that a run of ``algorithm`` ends higher than one of ``other``
        on the same environment, with low and high
    """

    def function(x: Scores, y: Scores) -> Scores:
        return np.array([probability_of_improvement(x, y)])

    rows = []
    for (name, x), (other, y) in combinations(score_matrices(runs, column).items(), 2):
        probability, low, high = (float(number[0]) for number in interval([x, y], function))
        rows.append({"algorithm": name, "other": other, "probability": probability, "low": low, "high": high})
        rows.append({"algorithm": other, "other": name, "probability": 1 - probability, "low": 1 - high, "high": 1 - low})
    return pd.DataFrame(rows, columns=["algorithm", "other", "probability", "low", "high"])


def mean_interval(scores: Scores) -> tuple[Scores, Scores, Scores]:
    """
    :param scores: Seeds x anything
    :return: Mean over seeds and the ends of its 95 % bootstrap interval, each of the shape of anything; the ends are NaN where
        there is one seed
    """
    mean = scores.mean(axis=0)
    if len(scores) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    means = scores[_resamples(len(scores), 5 * REPETITIONS)].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5], axis=0, method="inverted_cdf")  # few seeds have few means
    return mean, low, high


@cache
def _resamples(n: int, repetitions: int) -> npt.NDArray[np.int64]:
    """:return: Which of n seeds each resample holds, [n_resamples, n]; every resample there is where there are few seeds"""
    if n <= 5:
        return np.array(list(product(range(n), repeat=n)))
    return np.random.default_rng(0).integers(n, size=(repetitions, n))


def per_task(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """
    :param runs: One row per run: algorithm, environment, seed, and ``column``
    :param column: Name of a score
    :return: One row per algorithm and environment: mean over the seeds that did not diverge (NaN) with low and high, number of
        seeds, number of those that diverged
    """
    rows = []
    for (algorithm, env), group in runs.groupby(["algorithm", "environment"], sort=False):
        finite = group[column].dropna().to_numpy(dtype=np.float64)
        mean, low, high = mean_interval(finite) if len(finite) else np.full(3, np.nan)
        row = {"algorithm": algorithm, "environment": env, "mean": float(mean), "low": float(low), "high": float(high)}
        rows.append({**row, "seeds": len(group), "diverged": len(group) - len(finite)})
    return pd.DataFrame(rows)


def mean_curves(evaluations: pd.DataFrame, against: str) -> pd.DataFrame:
    """
    :param evaluations: One row per run and point: algorithm, environment, seed, point, score, and ``against``
    :param against: ``"steps"`` or ``"seconds"`` of training
    :return: One row per algorithm, environment and point: ``against`` (mean over seeds), mean, low, high
    """
    parts = []
    for (algorithm, env), group in evaluations.groupby(["algorithm", "environment"], sort=False):
        mean, low, high = mean_interval(group.pivot(index="seed", columns="point", values="score").to_numpy(dtype=np.float64))
        columns = {against: group.groupby("point")[against].mean(), "mean": mean, "low": low, "high": high}
        parts.append(pd.DataFrame({"algorithm": str(algorithm), "environment": str(env), **columns}))
    return pd.concat(parts, ignore_index=True)


def aggregate_curves(evaluations: pd.DataFrame) -> pd.DataFrame:
    """
    :param evaluations: See :func:`~sb3_attention_ac.compare.tables.tables`
    :return: One row per algorithm and point of evaluation: IQM over seeds and environments on the common scale, low, high
    """
    matrices = [score_matrices(group, "score_normalized") for _, group in evaluations.groupby("point")]
    parts = [pd.DataFrame(columns=["algorithm", "point", "value", "low", "high"])]
    for algorithm in matrices[0]:
        value, low, high = interval(np.stack([matrix[algorithm] for matrix in matrices], axis=-1), iqm)
        columns = {"algorithm": algorithm, "point": range(len(value)), "value": value, "low": low, "high": high}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts[1:] or parts, ignore_index=True)
