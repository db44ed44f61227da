"""Scores on a common scale: 0 is a random policy and 1 a good one, where the environment has reference scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.yaml_files import read_entries

SHIPPED = Path(__file__).parent / "references.yml"
OBSERVED = "lowest and highest score in this comparison"


@dataclass(frozen=True)
class Reference:
    """
    :param random: Mean return of uniformly random actions, score 0
    :param good: Return that solves the task, score 1
    :param origin: Where the two come from
    """

    random: float
    good: float
    origin: str


def load_references(path: Path | None = None) -> dict[str, Reference]:
    """
    :param path: YAML file ``env: {random: x, good: y}`` that adds to the shipped ones or replaces them, None for none
    :return: Reference scores by environment
    :raises CompareError: If the file or an entry of it is wrong
    """
    references = {}
    for file in [SHIPPED] if path is None else [SHIPPED, path]:
        purpose = "environments to `random` and `good` returns"
        for env, entry in read_entries(file, purpose).items():
            try:
                reference = Reference(
                    float(entry["random"]), float(entry["good"]), f"{file.name}: {entry.get('origin', 'given')}"
                )
            except (KeyError, TypeError, ValueError) as error:
                raise CompareError(f"{file} must map {purpose}; at {env!r} it has {entry!r}.") from error
            if not reference.random < reference.good < math.inf:  # NaN neither
                raise CompareError(f"{file}: good must be a finite return above random; {env!r} has {entry!r}.")
            references[env] = reference
    return references


def references_for(evaluations: pd.DataFrame, known: Mapping[str, Reference]) -> dict[str, Reference]:
    """
    :param evaluations: All evaluations, with columns ``environment`` and ``score``
    :param known: Reference scores
    :return: Those of the environments at hand; where none are known, the lowest and highest score of any evaluation
    """
    references = {}
    for env, scores in evaluations.groupby("environment", sort=False)["score"]:
        observed = Reference(float(scores.min()), float(scores.max()), OBSERVED)
        references[str(env)] = known.get(str(env), observed)
    return references


def normalize(scores: pd.Series, environments: pd.Series, references: Mapping[str, Reference]) -> pd.Series:
    """
    :param scores: Returns
    :param environments: Environment of each
    :param references: Reference scores by environment
    :return: 0 for random, 1 for good; all 0 where there are no reference scores and all scores observed are equal.
        A run that diverged (NaN) has the lowest score of its environment here, or 0 if that is lower: left out, it would
        leave its algorithm with the runs that went well
    """
    low = environments.map(lambda env: references[env].random).astype(float)
    span = environments.map(lambda env: references[env].good).astype(float) - low
    normalized = ((scores - low) / span).where((span != 0) | scores.isna(), 0.0)
    return normalized.fillna(lowest(normalized, environments).clip(upper=0).fillna(0))


def lowest(scores: pd.Series, environments: pd.Series) -> pd.Series:
    """
    :param scores: Of runs, NaN where one has diverged
    :param environments: Environment of each
    :return: The lowest score of its environment for each, which is what a run that diverged counts as
    """
    return scores.groupby(environments).transform("min")


def observed(references: Mapping[str, Reference]) -> list[str]:
    """
    :param references: See :func:`references_for`
    :return: Environments without reference scores
    """
    return [env for env, reference in references.items() if reference.origin == OBSERVED]


def scale(references: Mapping[str, Reference]) -> str:
    """
    :param references: See :func:`references_for`
    :return: What 0 and 1 stand for on the common scale, in words
    """
    known, unknown = "0 is a random policy, 1 a good one", observed(references)
    if not unknown:
        return known
    seen = "0 is the lowest score of this comparison, 1 the highest"
    if len(unknown) == len(references):
        return f"no environment has reference scores: {seen}"
    where = ", ".join(unknown) if len(unknown) <= 3 else f"{len(unknown)} environments"
    return f"{known}; but on {where}, without reference scores, {seen}"
