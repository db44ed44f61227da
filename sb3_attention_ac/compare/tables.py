"""Tidy tables of results: one row per evaluation, one row per run."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from sb3_attention_ac.compare.scores import Reference, normalize, references_for
from sb3_attention_ac.compare.storage import Evaluation, Result


def evaluation_table(results: Iterable[Result]) -> pd.DataFrame:
    """
    :param results: Finished runs, in the order of the report
    :return: One row per evaluation: algorithm, environment, seed, point, steps, seconds (of training), score (mean return, NaN
        if a return is not finite), score_std, episode_length (mean), training (mean return of the training episodes since the
        evaluation before)
    """
    return pd.DataFrame(
        {
            "algorithm": result.job.variant,
            "environment": result.job.env,
            "seed": result.job.seed,
            "point": evaluation.point,
            "steps": evaluation.steps,
            "seconds": evaluation.seconds,
            "score": evaluation.score,
            "score_std": float("nan") if math.isnan(evaluation.score) else float(np.std(evaluation.returns)),
            "episode_length": float(np.mean(evaluation.lengths)),
            "training": float("nan") if evaluation.training is None else evaluation.training,
        }
        for result in results
        for evaluation in result.evaluations
    )


def run_table(results: Iterable[Result], references: Mapping[str, Reference]) -> pd.DataFrame:
    """
    :param results: Finished runs, in the order of the report
    :param references: Reference scores by environment
    :return: One row per run: algorithm, environment, seed, final (score at the end), area (mean height of the learning curve
        over steps), both also on the common scale, diverged (whether it ended in returns that are not finite), steps,
        train_seconds, evaluation_seconds, steps_per_second, parameters
    """
    runs = pd.DataFrame(
        {
            "algorithm": result.job.variant,
            "environment": result.job.env,
            "seed": result.job.seed,
            "final": result.evaluations[-1].score,
            "area": _mean_height(result.evaluations),
            "diverged": result.diverged,
            "steps": result.steps,
            "train_seconds": result.train_seconds,
            "evaluation_seconds": result.evaluation_seconds,
            "steps_per_second": result.steps / result.train_seconds,
            "parameters": result.n_parameters,
        }
        for result in results
    )
    for column in ("final", "area"):
        runs[f"{column}_normalized"] = normalize(runs[column], runs["environment"], references)
    return runs


def _mean_height(curve: Sequence[Evaluation]) -> float:
    scores, steps = np.array([(point.score, point.steps) for point in curve]).T
    return float(np.average((scores[1:] + scores[:-1]) / 2, weights=np.diff(steps)))  # trapezoids; NaN if it diverged


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.tables.run_table`
    :return: By algorithm: steps_per_second and minutes (medians over runs), parameters (largest), runs (number)
    """
    groups = runs.groupby("algorithm", sort=False)
    return pd.DataFrame(
        {
            "steps_per_second": groups["steps_per_second"].median(),
            "minutes": groups["train_seconds"].median() / 60,
            "parameters": groups["parameters"].max(),
            "runs": groups.size(),
        }
    )


def tables(
    results: Iterable[Result], known: Mapping[str, Reference]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Reference]]:
    """
    :param results: Finished runs, in the order of the report
    :param known: Reference scores
    :return: Evaluations (with a column score_normalized), runs, and the reference scores used
    """
    results = list(results)
    evaluations = evaluation_table(results)
    references = references_for(evaluations, known)
    evaluations["score_normalized"] = normalize(evaluations["score"], evaluations["environment"], references)
    return evaluations, run_table(results, references), references


def without_diverged(evaluations: pd.DataFrame) -> pd.DataFrame:
    """
    :param evaluations: See :func:`evaluation_table`
    :return: Those of the runs whose returns were all finite
    """
    runs = evaluations.groupby(["algorithm", "environment", "seed"], sort=False)
    return runs.filter(lambda run: run["score"].notna().all())


def on_common_seconds(evaluations: pd.DataFrame, points: int = 50) -> pd.DataFrame:
    """
    Learning curves over wall-clock time: every run has its own times of evaluation, so curves are read off at common ones.

    :param evaluations: See :func:`evaluation_table`
    :param points: Number of common times, from 0 to the end of the shortest run of the algorithm on the environment
    :return: One row per run and time: algorithm, environment, seed, point (number of the time), seconds, score
    """
    parts = []
    for (algorithm, env), group in evaluations.groupby(["algorithm", "environment"], sort=False):
        times = np.linspace(0, group.groupby("seed")["seconds"].max().min(), points)
        for seed, curve in group.groupby("seed"):
            scores = np.interp(times, curve["seconds"], curve["score"])
            columns = {"seed": seed, "point": range(points), "seconds": times, "score": scores}
            parts.append(pd.DataFrame({"algorithm": str(algorithm), "environment": str(env), **columns}))
    return pd.concat(parts, ignore_index=True)


def at_equal_seconds(evaluations: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """
    Scores after the same seconds of training.

    :param evaluations: See :func:`evaluation_table`
    :param seconds: Seconds of training; 0, or more than some run took: those of the quickest run on the environment that did
        not diverge
    :return: One row per run: algorithm, environment, seed, seconds, score (NaN if it diverged)
    """
    rows = []
    for env, group in evaluations.groupby("environment", sort=False):
        finite = without_diverged(group)
        shortest = (group if finite.empty else finite).groupby(["algorithm", "seed"])["seconds"].max().min()
        budget = min(seconds or shortest, shortest)
        for (algorithm, seed), curve in group.groupby(["algorithm", "seed"], sort=False):
            diverged = curve["score"].isna().any()
            score = float("nan") if diverged else float(np.interp(budget, curve["seconds"], curve["score"]))
            rows.append({"algorithm": algorithm, "environment": env, "seed": seed, "seconds": budget, "score": score})
    return pd.DataFrame(rows)
