"""The tables of a report as text, the same in Markdown and HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sb3_attention_ac.compare.scores import Reference, scale
from sb3_attention_ac.compare.statistics import FEW_SEEDS, per_task
from sb3_attention_ac.compare.tables import at_equal_seconds, cost_table

MISSING = "-"
BOLD = f"Bold: its interval is better than every other algorithm's, with {FEW_SEEDS} seeds or more."


@dataclass(frozen=True)
class Table:
    """
    :param title: Heading
    :param note: How to read it
    :param header: Names of the columns
    :param rows: Cells
    :param best: Row and column of the cells to be emphasised
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """
        :return: The table in Markdown, best values in bold
        """
        lines = [
            f"### {self.title}",
            "",
            self.note,
            "",
            _line(self.header),
            _line(["---"] + ["---:"] * (len(self.header) - 1)),
        ]
        for number, row in enumerate(self.rows):
            lines.append(_line([f"**{cell}**" if (number, column) in self.best else cell for column, cell in enumerate(row)]))
        return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def number(value: float) -> str:
    """
    :param value: Any number
    :return: Three significant digits; from 100 upwards a whole number, with separators of thousands
    """
    if pd.isna(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(row: pd.Series, column: str, digits: int | None = None) -> str:
    """
    :param row: Has ``column``, ``low`` and ``high``
    :param column: Name of the value
    :param digits: Digits after the point, None for as many as are significant
    :return: "value [low, high]", or the value alone where there is no interval
    """

    def text(value: float) -> str:
        return number(value) if digits is None else f"{value:.{digits}f}"

    return text(row[column]) if pd.isna(row["low"]) else f"{text(row[column])} [{text(row['low'])}, {text(row['high'])}]"


def summary_table(summaries: pd.DataFrame, runs: pd.DataFrame, references: Mapping[str, Reference]) -> Table:
    """
    :param summaries: See :func:`~sb3_attention_ac.compare.statistics.summaries`
    :param runs: See :func:`~sb3_attention_ac.compare.tables.run_table`
    :param references: Reference scores used
    :return: One row per algorithm: scores over all environments, and cost
    """
    wanted = [
        ("final", "IQM", "final IQM ↑"),
        ("final", "median", "final median ↑"),
        ("final", "optimality gap", "optimality gap ↓"),
        ("area", "IQM", "whole-curve IQM ↑"),
    ]
    cells = {(row["algorithm"], row["score"], row["summary"]): row for _, row in summaries.iterrows()}
    rows: list[list[str]] = []
    intervals: list[list[tuple[float, float] | None]] = [[] for _ in wanted]
    for algorithm, cost in cost_table(runs).iterrows():
        keys = [(str(algorithm), score, summary) for score, summary, _ in wanted]
        known = [cells.get(key) for key in keys]
        texts = [MISSING if row is None else with_interval(row, "value", digits=2) for row in known]
        for column, row in zip(intervals, known, strict=True):
            column.append(None if row is None else (round(row["low"], 2), round(row["high"], 2)))
        costs = [
            f"{cost['steps_per_second']:,.0f}",
            f"{cost['minutes']:.2g}",
            f"{int(cost['parameters']):,}",
            f"{int(cost['runs'])}",
        ]
        rows.append([str(algorithm), *texts, *costs])
    intervals[2] = [None if ends is None else (-ends[1], -ends[0]) for ends in intervals[2]]  # the gap: less is better
    few = summaries["seeds"].lt(FEW_SEEDS).any()
    best = [None if few else _best(column) for column in intervals]
    header = ["algorithm", *(title for *_, title in wanted), "steps/s", "minutes per run", "parameters", "runs"]
    return Table(
        "Over all environments",
        f"On the common scale: {scale(references)}. IQM: mean of the middle half of all runs. Median: over "
        "environments, of the means over seeds. Optimality gap: how far runs stay below 1. Whole curve: mean height of the "
        "learning curve, so early learning counts. In brackets: 95 % bootstrap interval over seeds. "
        f"{BOLD} Time is that of training alone, in the median run.",
        header,
        rows,
        frozenset((row, column + 1) for column, row in enumerate(best) if row is not None),
    )


def _best(intervals: Sequence[tuple[float, float] | None]) -> int | None:
    """
    :param intervals: Ends of each algorithm's interval, None where it was not run; more is better
    :return: Number of the one whose interval is above that of every other, None if there is none
    """
    known = [(*ends, which) for which, ends in enumerate(intervals) if ends is not None]
    if len(known) < 2:
        return None
    low, _, best = max(known)
    return best if all(high < low for _, high, other in known if other != best) else None


def task_table(runs: pd.DataFrame, column: str, title: str, note: str) -> Table:
    """
    :param runs: One row per run: algorithm, environment, seed, and ``column``
    :param column: Name of a score
    :param title: Heading
    :param note: How to read it
    :return: One row per environment, one column per algorithm
    """
    cells = {(row["environment"], row["algorithm"]): row for _, row in per_task(runs, column).iterrows()}
    algorithms = list(runs["algorithm"].unique())
    rows, best = [], set()
    for number_of_row, env in enumerate(runs["environment"].unique()):
        known = [cells.get((env, algorithm)) for algorithm in algorithms]
        rows.append([str(env), *(MISSING if row is None else _task_cell(row) for row in known)])
        there = {i: row for i, row in enumerate(known) if row is not None and not pd.isna(row["mean"])}
        if any(row["seeds"] < FEW_SEEDS or pd.isna(row["low"]) for row in there.values()):
            continue
        shown = {i: (_shown(row["low"]), _shown(row["high"])) for i, row in there.items()}
        winner = _best([shown.get(i) for i in range(len(known))])
        if winner is not None and not there[winner]["diverged"]:  # what is left of an algorithm that diverges is not the best
            best.add((number_of_row, winner + 1))
    return Table(title, note, ["environment", *algorithms], rows, frozenset(best))


def _task_cell(row: pd.Series) -> str:
    if row["diverged"] == row["seeds"]:
        return "diverged"
    return with_interval(row, "mean") + (f" ({row['diverged']} of {row['seeds']} diverged)" if row["diverged"] else "")


def _shown(value: float) -> float:
    """:return: The number that is read in a table: numbers that look equal are"""
    return float(number(value).replace(",", ""))


def equal_seconds_table(evaluations: pd.DataFrame, seconds: float) -> Table:
    """
    :param evaluations: See :func:`~sb3_attention_ac.compare.tables.evaluation_table`
    :param seconds: See :func:`~sb3_attention_ac.compare.tables.at_equal_seconds`
    :return: Scores after the same seconds of training
    """
    at = at_equal_seconds(evaluations, seconds)
    at = at.assign(environment=at["environment"] + " after " + at["seconds"].map(number) + " s")
    note = "Mean return after the same seconds of training (at most those of the quickest run), read off the learning curves."
    return task_table(at, "score", "At equal wall-clock time", note)


def reference_table(references: Mapping[str, Reference]) -> Table:
    """
    :param references: Reference scores used
    :return: One row per environment
    """
    rows = [[env, number(entry.random), number(entry.good), entry.origin] for env, entry in references.items()]
    note = "What counts as 0 and as 1 on the common scale."
    return Table("Reference scores", note, ["environment", "0", "1", "origin"], rows)
