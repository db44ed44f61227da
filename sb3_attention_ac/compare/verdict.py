"""Who won, by how much, how sure, at what cost: in words."""

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sb3_attention_ac.argument_names import default_arguments
from sb3_attention_ac.compare.names import known_algorithms
from sb3_attention_ac.compare.scores import Reference, observed, scale
from sb3_attention_ac.compare.settings import Job
from sb3_attention_ac.compare.statistics import FEW_SEEDS
from sb3_attention_ac.compare.tables import cost_table
from sb3_attention_ac.compare.texts import with_interval

FAR_FROM_GOOD = 0.5  # on the common scale
NAMED = 4  # settings in the headline
# What RL Zoo does where a file says nothing
ZOO: dict[str, Any] = {"n_envs": 1, "normalize": False, "frame_stack": None, "env_wrapper": None, "vec_env_wrapper": None}
ZOO |= {"env_kwargs": None, "callback": None, "monitor_kwargs": None, "vec_env": "gymnasium"}
# The algorithms' own business, the same for all runs, or without an effect on the numbers
LEFT_OUT = {"policy", "env", "n_timesteps", "seed", "device", "verbose", "tensorboard_log", "stats_window_size"}
LEFT_OUT |= {"rollout_buffer_class", "replay_buffer_class", "_init_setup_model"}


def verdict(
    summaries: pd.DataFrame,
    improvements: pd.DataFrame,
    runs: pd.DataFrame,
    references: Mapping[str, Reference],
    jobs: Sequence[Job],
) -> list[str]:
    """
    :param summaries: See :func:`~sb3_attention_ac.compare.statistics.summaries`
    :param improvements: See :func:`~sb3_attention_ac.compare.statistics.improvements`
    :param runs: See :func:`~sb3_attention_ac.compare.tables.run_table`
    :param references: Reference scores used
    :param jobs: What was run
    :return: Sentences, the most important ones first
    """
    final = summaries[(summaries["score"] == "final") & (summaries["summary"] == "IQM")].set_index("algorithm")
    if final.empty:
        return ["No algorithm has a seed that finished on every environment, so there is no summary over environments yet."]
    ranking = final.sort_values("value", ascending=False, kind="stable")
    best, row = str(ranking.index[0]), ranking.iloc[0]
    if len(ranking) == 1:
        return [
            f"{best} reaches {with_interval(row, 'value', digits=2)} with {_seeds(final)}; "
            "there is nothing to compare it with.",
            f"This is the IQM of the final score; {scale(references)}.",
            *_caution(final),
        ]
    pairs = improvements[improvements["algorithm"] == best].set_index("other")
    others = [str(name) for name in ranking.index[1:]]
    scores = ", ".join(f"{name} {with_interval(other, 'value', digits=2)}" for name, other in ranking.iterrows())
    sentences = [
        f"{_head(ranking, pairs)} {_settings(jobs, best, others)}",
        f"Final score: {scores} (IQM over runs with {_seeds(final)}; {scale(references)}).",
    ]
    if row["value"] < FAR_FROM_GOOD and not observed(references):
        sentences.append("None comes near a good policy: with more steps the order may change.")
    chances = [
        f"{other} with probability {with_interval(pair, 'probability', digits=2)}"
        for other, pair in pairs.loc[others].iterrows()
    ]
    sentences.append(f"A run of {best} beats one of {', '.join(chances)} (one half is a coin toss).")
    if len(intervals := ranking["low"].dropna()):
        sentences.append(_reach(runs["environment"].nunique(), len(intervals) * (len(intervals) - 1) // 2))
    sentences.append(_cost(cost_table(runs).loc[list(ranking.index)]))
    return sentences + _caution(final)


def _head(ranking: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """
    :param ranking: Summaries of the final score by algorithm, the highest first
    :param pairs: How probably a run of the first beats one of each other
    :return: Who won, or why nobody did
    """
    best, row, others = str(ranking.index[0]), ranking.iloc[0], [str(name) for name in ranking.index[1:]]
    few = [other for other in others if min(row["seeds"], ranking.loc[other, "seeds"]) < FEW_SEEDS]
    enough = [other for other in others if other not in few]
    values = dict(zip(others, ranking["value"].iloc[1:].astype(float), strict=True))
    equal = [other for other in others if math.isclose(values[other], float(row["value"]), abs_tol=1e-9)]
    claim = f"{_names([best, *equal])} share the highest score" if equal else f"{best} has the highest score"
    if not enough:
        return f"No winner: {_seeds(ranking)} cannot tell, take at least {FEW_SEEDS}. So far {claim}."
    if equal:
        return f"No winner: {claim}."
    better, worse = pairs["low"].gt(0.5), pairs["high"].lt(0.5)
    sure = [other for other in enough if better[other]]
    against = [other for other in enough if worse[other]]
    unsure = [other for other in enough if other not in sure + against]
    if against:
        # It is ahead by a lot on few environments, and behind by a little on many
        return (
            f"No clear winner: {claim}, yet a run of {' or '.join(against)} beats one of it on the same environment more "
            "often than not."
        )
    if sure == others:
        # More often the better one, but perhaps by less than anybody would care about
        close = [f"{other}'s" for other in others if row["low"] <= ranking.loc[other, "high"]]
        margin = f", but not by much: the intervals of its score and of {_names(close)} overlap" if close else ""
        return f"{best} wins{margin}."
    doubts = [f"these runs do not distinguish it from {_names(unsure)}"] if unsure else []
    doubts += [f"{_seeds(ranking.loc[few])} of {_names(few)} cannot tell (take at least {FEW_SEEDS})"] if few else []
    head = f"{claim}; it beats {_names(sure)}" if sure else f"No clear winner: {claim}"
    return f"{head}, but {', and '.join(doubts)}."


def differing_settings(jobs: Iterable[Job], first: str, others: Iterable[str]) -> list[str]:
    """
    Who wins under other settings wins perhaps because of them.

    :param jobs: Runs
    :param first: Name of a variant
    :param others: Names of variants
    :return: Names of the settings that the first and one of the others both have, and not the same, on some environment
    """
    by_name = {(job.variant, job.env): job for job in jobs}
    pairs = [(by_name[first, env], by_name.get((other, env))) for name, env in by_name if name == first for other in others]
    found = set()
    for mine, other in pairs:
        if other is not None:
            here, there = _all_settings(mine), _all_settings(other)
            found |= {name for name in here.keys() & there.keys() if here[name] != there[name]}
    return sorted(found)


def _all_settings(job: Job) -> dict[str, Any]:
    """:return: Settings in the format of RL Zoo, with the defaults of algorithm and RL Zoo where the job says nothing"""
    defaults = default_arguments(known_algorithms()[job.algo])
    settings = {**ZOO, **defaults, **job.hyperparams}
    return {name: _plain(value) for name, value in settings.items() if name not in LEFT_OUT}


def _plain(value: Any) -> Any:
    """:return: What a text like ``dict(net_arch=[64])`` stands for, if its values are plain; else the value itself"""
    if not isinstance(value, str):
        return value
    try:
        source = ast.parse(value, mode="eval").body
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id == "dict" and not source.args:
            return {keyword.arg: ast.literal_eval(keyword.value) for keyword in source.keywords}
        return ast.literal_eval(source)
    except (SyntaxError, ValueError):
        return value


def _settings(jobs: Sequence[Job], best: str, others: list[str]) -> str:
    names = differing_settings(jobs, best, others)
    who = f"{best} and {others[0] if len(others) == 1 else 'the others'}"
    if not names:
        return f"The settings that {who} have in common are equal."
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"The settings of {who} differ: {', '.join(names[:NAMED])}{more}."


def _reach(environments: int, pairs: int) -> str:
    """:return: What the intervals do not cover, those of that many environments and pairs of algorithms"""
    where = f"these {environments} environments" if environments > 1 else "this environment"
    several = [f"{pairs} pairs of algorithms"] if pairs > 1 else []
    several += [f"{environments} environments one by one"] if environments > 1 else []
    many = f" Across {' and '.join(several)}, expect about one interval in 20 to miss." if several else ""
    return f"Each interval stands on its own: it says what other seeds would give on {where}, not what others would.{many}"


def _seeds(final: pd.DataFrame) -> str:
    fewest, most = int(final["seeds"].min()), int(final["seeds"].max())
    numbers = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{numbers} seed{'s' if most > 1 else ''}"


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _cost(costs: pd.DataFrame) -> str:
    parts = [
        f"{name} {row['minutes']:.2g} minutes at {row['steps_per_second']:,.0f} steps/s" for name, row in costs.iterrows()
    ]
    return f"Cost: the median run of {', of '.join(parts)}."


def _caution(final: pd.DataFrame) -> list[str]:
    one = [str(name) for name, seeds in final["seeds"].items() if seeds == 1]
    few = [str(name) for name, seeds in final["seeds"].items() if 1 < seeds < FEW_SEEDS]
    cautions = []
    if one:
        whose = "" if len(one) == len(final) else f" for {_names(one)}"
        cautions.append(f"Caution: one seed says nothing about how another would end; there are no intervals{whose}.")
    if few:
        whose = "" if len(few) == len(final) else f" of {_names(few)}"
        seeds = _seeds(final.loc[few])
        cautions.append(f"Caution: with {seeds} the intervals{whose} come out too narrow; take at least {FEW_SEEDS}.")
    return cautions
