"""Scores on a common scale: 0 is a random policy, 1 is a good one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from sb3_attention_ac.compare.errors import CompareError

SHIPPED = Path(__file__).parent / "references.yml"


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
        try:
            entries = yaml.safe_load(file.read_text())
            for env, entry in entries.items():
                reference = Reference(
                    float(entry["random"]), float(entry["good"]), f"{file.name}: {entry.get('origin', 'given')}"
                )
                if not reference.random < reference.good < math.inf:  # NaN neither
                    raise ValueError(f"good must be a finite return above random for {env}")
                references[env] = reference
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CompareError(f"{file} must map environments to `random` and `good` returns ({error!r}).") from error
    return references


def references_for(evaluations: pd.DataFrame, known: Mapping[str, Reference]) -> dict[str, Reference]:
    """
    :param evaluations: All evaluations, with columns ``environment`` and ``score``
    :param known: Reference scores
    :return: Those of the environments at hand; where none are known, the lowest and highest score of any evaluation
    """
    references = {}
    for env, scores in evaluations.groupby("environment", sort=False)["score"]:
        observed = Reference(float(scores.min()), float(scores.max()), "lowest and highest score in this comparison")
        references[str(env)] = known.get(str(env), observed)
    return references


def normalise(scores: pd.Series, environments: pd.Series, references: Mapping[str, Reference]) -> pd.Series:
    """
    :param scores: Returns
    :param environments: Environment of each
    :param references: Reference scores by environment
    :return: 0 for random, 1 for good; all 1 where a fallback has seen one score only
    """
    low = environments.map(lambda env: references[env].random).astype(float)
    span = environments.map(lambda env: references[env].good).astype(float) - low
    return ((scores - low) / span).where(span != 0, 1.0)
