"""Who won, by how much, how sure, at what cost: in words."""

import pandas as pd

FEW_SEEDS = 5
FAR_FROM_GOOD = 0.5  # on the common scale


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


def verdict(summaries: pd.DataFrame, improvements: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    """
    :param summaries: See :func:`~sb3_attention_ac.compare.statistics.summaries`
    :param improvements: See :func:`~sb3_attention_ac.compare.statistics.improvements`
    :param costs: See :func:`cost_table`
    :return: Sentences, the most important one first
    """
    final = summaries[(summaries["score"] == "final") & (summaries["summary"] == "IQM")].set_index("algorithm")
    if final.empty:
        return ["No algorithm has a seed that finished on every environment, so there is no summary over environments yet."]
    ranking = final.sort_values("value", ascending=False, kind="stable")
    best, row = str(ranking.index[0]), ranking.iloc[0]
    if len(ranking) == 1:
        return [
            f"{best} reaches {_number(row)} (IQM of the final score); there is nothing to compare it with.",
            *_caution(final),
        ]
    pairs = improvements[improvements["algorithm"] == best].set_index("other")
    sure = [str(other) for other in ranking.index[1:] if pairs.loc[other, "low"] > 0.5]
    unsure = [str(other) for other in ranking.index[1:] if str(other) not in sure]
    if not unsure:
        # More often the better one, but perhaps by less than anybody would care about
        close = [str(name) for name, other in list(ranking.iterrows())[1:] if row["low"] <= other["high"]]
        margin = f", but not by much: the intervals of its score and of {_possessive(close)} overlap" if close else ""
        head = f"{best} wins{margin}."
    elif not sure:
        head = f"No clear winner: these runs do not separate {_names([best, *unsure])}."
    else:
        head = (
            f"{best} has the highest score; it beats {_names(sure)}, but these runs do not separate it from {_names(unsure)}."
        )
    sentences = [
        head,
        f"Final score: {best} {_number(row)}, " + ", ".join(f"{n} {_number(r)}" for n, r in list(ranking.iterrows())[1:]),
    ]
    seeds = "1 seed" if row["seeds"] == 1 else f"{row['seeds']:.0f} seeds"
    sentences[-1] += f" (IQM over runs with {seeds}; 0 is a random policy, 1 a good one)."
    if row["value"] < FAR_FROM_GOOD:
        sentences.append("None comes near a good policy: with more steps the order may be another one.")
    chances = [f"{other} with probability {_interval(pairs.loc[other], 'probability')}" for other in ranking.index[1:]]
    sentences.append(f"A run of {best} beats one of {', '.join(chances)} (one half is a coin toss).")
    sentences.append(_cost(costs.loc[list(ranking.index)]))
    return sentences + _caution(final)


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _possessive(names: list[str]) -> str:
    return _names([f"{name}'s" for name in names])


def _interval(row: pd.Series, column: str) -> str:
    text = f"{row[column]:.2f}"
    return text if pd.isna(row["low"]) else f"{text} [{row['low']:.2f}, {row['high']:.2f}]"


def _number(row: pd.Series) -> str:
    return _interval(row, "value")


def _cost(costs: pd.DataFrame) -> str:
    parts = [
        f"{name} {row['minutes']:.2g} minutes at {row['steps_per_second']:,.0f} steps/s" for name, row in costs.iterrows()
    ]
    return f"Cost: the median run of {', of '.join(parts)}."


def _caution(final: pd.DataFrame) -> list[str]:
    fewest = int(final["seeds"].min())
    if fewest == 1:
        return ["Caution: one seed says nothing about how another would end; there are no intervals."]
    if fewest < FEW_SEEDS:
        return [f"Caution: with {fewest} seeds intervals come out too narrow; take at least {FEW_SEEDS}."]
    return []
