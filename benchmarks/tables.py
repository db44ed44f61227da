"""
Tables and pictures for the docs, made of the results of the suites (``benchmarks/<suite>/results.csv``).

    python benchmarks/tables.py docs/results/suites

writes ``<suite>.md`` and ``<suite>.png`` for each suite into that folder. Where a suite has a file ``published.csv``
(``environment`` and columns of one's own), its columns stand beside the best of training; where it has a file ``pairs.csv``
(``algorithm`` and ``other``), the page has their probabilities of improvement too; where it has a file ``differences.csv``
(likewise, or ``suite/algorithm``), how much higher the one ends than the other, paired by seed, and how much higher the mean
of its curve is; where it has a file ``thresholds.csv`` (``environment`` and ``threshold``), the page says after how many steps
they are reached. Curves are not recorded for all runs.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sb3_attention_ac.compare.figures import task_intervals
from sb3_attention_ac.compare.scores import lowest
from sb3_attention_ac.compare.statistics import improvements, per_task, score_matrices
from sb3_attention_ac.compare.suites import read_curve, read_results
from sb3_attention_ac.compare.texts import BOLD, Table, task_table

SUITES = Path(__file__).parent
MADE = "<!-- Made by benchmarks/tables.py"
MEAN = f"Mean over seeds; in brackets its 95 % bootstrap interval. {BOLD}"
SCORES = {
    "final": ("Last return", f"Mean return of the evaluation at the end of training. {MEAN}"),
    "best_training": (
        "Best of training",
        f"Highest mean return of the training episodes between two evaluations, as POPGym's MMER. {MEAN}",
    ),
}

INTERVAL = "Mean over seeds; in brackets its 95 % bootstrap interval. Bold: zero is not in it."
DIFFERENCES = {
    "final": ("Paired by seed", f"How much higher the one ends than the other with the same seed. {INTERVAL}"),
    "mean_of_curve": (
        "Paired by seed, over training",
        f"The same of the mean of all evaluations after the first, where curves are recorded: who learns sooner. {INTERVAL}",
    ),
}


def main() -> None:
    """Write all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the pages")
    parser.add_argument("--suites", type=Path, default=SUITES, help="folder of the suites (default: %(default)s)")
    given = parser.parse_args()
    files = sorted(given.suites.glob("*/results.csv"))
    if not files:
        parser.error(f"{given.suites} has no suite with a results.csv")
    for file in files:
        print(write_page(file, given.folder))


def write_page(file: Path, folder: Path) -> Path:
    """
    :param file: Results of a suite
    :param folder: Folder for page and picture, made if it is missing
    :return: The page
    :raises ValueError: If there is a page of this name that was written by hand
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (there := folder / f"{file.parent.name}.md").exists() and not there.read_text(encoding="utf-8").startswith(MADE):
        raise ValueError(f"{there} was not made by this script: give another folder, as docs/results/suites.")
    figure = task_intervals(per_task(read_results(file), "final"))
    picture, page = (folder / f"{file.parent.name}{suffix}" for suffix in (".png", ".md"))
    figure.savefig(picture, dpi=110, metadata={"Software": None})  # the same picture, whatever Matplotlib's version
    page.write_text(page_text(file), encoding="utf-8")
    return page


def page_text(file: Path) -> str:
    """
    :param file: Results of a suite
    :return: The page
    """
    runs, suite = read_results(file), file.parent.name
    lines = [
        f"{MADE} of benchmarks/{suite}/results.csv. Do not edit. -->",
        f"![Last return of each algorithm on each task: mean over seeds and 95 % bootstrap interval]({suite}.png)",
        *(table.markdown() for table in suite_tables(runs, file.with_name("published.csv"))),
    ]
    if (pairs := file.with_name("pairs.csv")).exists():
        lines.append(improvement_table(runs, pairs).markdown())
    if (differences := file.with_name("differences.csv")).exists():
        lines += [table.markdown() for table in difference_tables(runs, differences)]
    if (thresholds := file.with_name("thresholds.csv")).exists():
        lines.append(threshold_table(runs, thresholds).markdown())
    return "\n\n".join(lines)


def suite_tables(runs: pd.DataFrame, published: Path) -> list[Table]:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.suites.result_rows`
    :param published: File of what others have published, which need not exist
    :return: A table for each score that was recorded, and where there are several algorithms one for the seconds of training
    """
    tables = [
        task_table(runs.dropna(subset=column) if column != "final" else runs, column, *texts)
        for column, texts in SCORES.items()
        if runs[column].notna().any()
    ]
    if runs["train_seconds"].notna().any() and runs["algorithm"].nunique() > 1:  # seconds compare within a table alone
        where = ", ".join(sorted(runs["processor"].dropna().unique()))
        excluded = f"evaluations excluded ({where})" if where else "evaluations excluded"
        note = f"Seconds of training, {excluded}; mean over seeds and 95 % bootstrap interval."
        tables.append(
            replace(task_table(runs.dropna(subset="train_seconds"), "train_seconds", "Time", note), best=frozenset())
        )
    tables = [_with_extent(table, runs) for table in tables]
    if not published.exists():
        return tables
    return [_with_published(table, published) if table.title == SCORES["best_training"][0] else table for table in tables]


def improvement_table(runs: pd.DataFrame, pairs: Path) -> Table:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.suites.result_rows`
    :param pairs: File of pairs of algorithms, which were run on all environments
    :return: One row per pair: how probable it is that a run of the one ends above one of the other, for each score
    """
    names = list(pd.read_csv(pairs).itertuples(index=False, name=None))
    columns = [column for column in SCORES if runs[column].notna().any()]
    filled = runs.assign(**{column: runs[column].fillna(lowest(runs[column], runs["environment"])) for column in columns})
    found = [
        {(one, other): numbers for one, other, *numbers in improvements(filled, column).itertuples(index=False)}
        for column in columns
    ]
    names = [pair for pair in names if all(pair in scores for scores in found)]
    cells = [[scores[pair] for scores in found] for pair in names]
    forms = [["{:.2f}" if pd.isna(low) else "{:.2f} [{:.2f}, {:.2f}]" for _, low, _ in row] for row in cells]
    rows = [
        [f"{one} above {other}", *(form.format(*cell) for form, cell in zip(*both, strict=True))]
        for (one, other), *both in zip(names, forms, cells, strict=True)
    ]
    best = {(i, k) for i, row in enumerate(cells) for k, (_, low, _) in enumerate(row, start=1) if low > 0.5}
    n_seeds = min(len(scores) for scores in score_matrices(filled, "final").values())
    note = (
        "How probable it is that a run of the one algorithm ends above a run of the other on the same environment, mean over "
        f"environments, {n_seeds} seeds each; in brackets its 95 % bootstrap interval over seeds. Bold: it is above one half."
    )
    return Table("Probability of improvement", note, ["", *(SCORES[column][0] for column in columns)], rows, frozenset(best))


def difference_tables(runs: pd.DataFrame, differences: Path) -> list[Table]:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.suites.result_rows`
    :param differences: File of pairs of algorithms, of this suite or, as ``suite/algorithm``, of another one
    :return: For the last return and, where curves are recorded, for all of training: one row per environment, one column
        per pair, how much higher the one is than the other with the same seed
    """

    def scores_of(entry: str) -> pd.DataFrame:
        suite, _, name = entry.rpartition("/")
        of_suite = read_results(differences.parents[1] / suite / "results.csv") if suite else runs
        chosen = of_suite[of_suite["algorithm"] == name]
        return chosen.assign(mean_of_curve=chosen["curve"].map(_mean_of_curve))[["environment", "seed", "curve", *DIFFERENCES]]

    parts = []
    for one, other in pd.read_csv(differences)[["algorithm", "other"]].itertuples(index=False, name=None):
        both = scores_of(one).merge(scores_of(other), on=["environment", "seed"])
        name = " minus ".join(entry.rpartition("/")[2] for entry in (one, other))
        gains = {score: both[f"{score}_x"] - both[f"{score}_y"] for score in DIFFERENCES}
        recorded = both[["curve_x", "curve_y"]].notna().all(axis=1)
        parts.append(both[["environment", "seed"]].assign(algorithm=name, recorded=recorded, **gains))
    paired = pd.concat([part for part in parts if len(part)])  # a pair may not have been run yet
    known = {"final": paired, "mean_of_curve": paired[paired["recorded"]]}
    return [_differences_apart(known[score], score) for score in DIFFERENCES if len(known[score])]


def _mean_of_curve(curve: object) -> float:
    scores = [score for _, score in read_curve(curve)] if isinstance(curve, str) else []
    return sum(scores[1:]) / len(scores[1:]) if len(scores) > 1 else float("nan")


def _differences_apart(paired: pd.DataFrame, score: str) -> Table:
    """:return: The table of a score's differences, those bold that are not zero"""
    table = task_table(paired, score, *DIFFERENCES[score])
    found = per_task(paired, score).set_index(["environment", "algorithm"])[["low", "high"]]
    apart = found[(found["low"] > 0) | (found["high"] < 0)].index
    best = {(i, k) for i, row in enumerate(table.rows) for k, name in enumerate(table.header) if (row[0], name) in apart}
    return replace(table, best=frozenset(best))


def threshold_table(runs: pd.DataFrame, thresholds: Path) -> Table:
    """
    :param runs: See :func:`~sb3_attention_ac.compare.suites.result_rows`
    :param thresholds: File with the threshold of each environment
    :return: One row per environment: after how many steps each algorithm is at its threshold
    """
    wanted = pd.read_csv(thresholds, index_col="environment")["threshold"]
    known = runs.dropna(subset="curve")
    known = known[known["environment"].isin(wanted.index)]
    steps = [
        next((point for point, score in read_curve(run["curve"]) if score >= wanted[run["environment"]]), run["steps"])
        for run in known.to_dict("records")
    ]
    labels = {name: f"{name}: {threshold:g}" for name, threshold in wanted.items()}
    named = known.assign(steps_to_threshold=steps, environment=known["environment"].map(labels))
    note = (
        "Steps until the first evaluation at the threshold or above; runs that never are there count with all their steps. "
        "Mean over seeds and 95 % bootstrap interval; fewer are better."
    )
    table = task_table(named, "steps_to_threshold", "Steps to a threshold", note)
    return _with_extent(replace(table, best=frozenset()), named)


def _with_published(table: Table, file: Path) -> Table:
    """
    :param table: One row per environment
    :param file: A CSV file with one row per environment
    :return: The table with the file's columns
    """
    published = pd.read_csv(file, dtype=str, index_col="environment")
    cells = published.reindex([row[0] for row in table.rows]).fillna("-").to_numpy()
    rows = [[*row, *more] for row, more in zip(table.rows, cells, strict=True)]
    return replace(table, header=[*table.header, *published.columns], rows=rows)


def _with_extent(table: Table, runs: pd.DataFrame) -> Table:
    """
    :param table: One row per environment
    :param runs: What it was made of
    :return: The table with columns for steps and seeds: one number, or the lowest and highest of all algorithms
    """
    groups = dict(iter(runs.groupby("environment", sort=False)))
    rows = [[*row, _range(groups[row[0]]["steps"]), _range(groups[row[0]].groupby("algorithm").size())] for row in table.rows]
    return replace(table, header=[*table.header, "steps", "seeds"], rows=rows)


def _range(numbers: pd.Series) -> str:
    low, high = numbers.min(), numbers.max()
    if pd.isna(low):
        return "-"
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


if __name__ == "__main__":
    main()
