"""
Write the tables of README.md, docs/results, docs/zoo.md and docs/scale.md from single runs (benchmarks/*/*.csv).

    python benchmarks/last_returns.py

In a page, a table stands between two comments. ``suite`` selects rows of the file, ``rows`` says what a row of the table is
(task or variant); tasks=A,B (optional) selects some of the tasks. The first table of docs/results/index.md is
made of what benchmarks/highlights.csv names:

    <!-- table: popgym/last_returns.csv suite=recall rows=task -->
    <!-- end of table -->

    <!-- highlights -->
    <!-- end of table -->

The table of what each part adds, of docs/results/parts.md, is made of benchmarks/effects.csv, after ``<!-- effects -->``.

Mean over seeds with its 95 % interval (percentile bootstrap). Bold: as in the tables of a comparison.
"""

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from sb3_attention_ac.compare.texts import MISSING, number, task_table

BENCHMARKS = Path(__file__).parent
DOCS = BENCHMARKS.parent / "docs"
PAGES = [DOCS.parent / "README.md", *sorted((DOCS / "results").glob("*.md")), DOCS / "zoo.md", DOCS / "scale.md"]
TABLE = re.compile(
    r"(<!-- table: (\S+) suite=(\S+) rows=(task|variant)(?: tasks=(\S+))? -->\n).*?(<!-- end of table -->)", flags=re.DOTALL
)
EFFECTS = re.compile(r"(<!-- effects -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
HIGHLIGHTS = re.compile(r"(<!-- highlights -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)

LABELS = {
    "aac": "AAC",
    "aac-zoo": "AAC, zoo entry",
    "aac-two-ranks": "AAC, two processes",
    "aac-reward": "AAC with `PreviousActionReward`",
    "ppo": "PPO",
    "ppo-same": "PPO, AAC's setting",
    "ppo-stack4": "PPO, 4 frames",
    "ppo-stack8": "PPO, 8 frames",
    "ppo-stack12": "PPO, 12 frames",
    "ppo_lstm": "RecurrentPPO",
    "a2c": "A2C",
    "rl-zoo": "RL Zoo's figure (one run)",
    "aac-mlp": "AAC, MLP critic",
    "aac-attention": "+ attention in the critic (the default)",
    "aac-aux-value": '+ `aux_loss="value"`',
    "aac-aux-prediction": '+ `aux_loss="prediction"`',
    "aac-aux-contrastive": '+ `aux_loss="contrastive"`',
    "aac-attention-q": "+ Q_att",
    "aac-memory": "+ memory actor",
    "aac-memory-next-step": "+ next-step prediction",
}


def read_runs(path: Path) -> pd.DataFrame:
    """
    :param path: A file of last returns, or of the results of a suite
    :return: suite, task, variant, seed, steps, last_return
    """
    runs = pd.read_csv(path)
    if "suite" in runs:
        return runs
    runs = runs.rename(columns={"environment": "task", "algorithm": "variant", "final": "last_return"})
    tasks = runs["task"].str.replace("popgym-", "").str.replace(r"(Easy|Medium|Hard)-v0$", r"\1", regex=True)
    return runs.assign(suite=path.parent.name, task=tasks)


def cells(runs: pd.DataFrame) -> dict[tuple[str, str], str]:
    """
    :param runs: Runs of one suite: task, variant, seed, steps, last_return
    :return: Task and variant to mean and interval; bold as in :func:`~sb3_attention_ac.compare.texts.task_table`
    """
    made = task_table(runs.rename(columns={"task": "environment", "variant": "algorithm"}), "last_return", "", "")
    return {
        (row[0], variant): f"**{cell}**" if (i, k) in made.best else cell
        for i, row in enumerate(made.rows)
        for k, (variant, cell) in enumerate(zip(made.header[1:], row[1:], strict=True), start=1)
        if cell != MISSING
    }


def markdown(header: list[str], rows: list[list[str]], texts: Collection[int] = (0,)) -> str:
    """:return: A table; which of its columns are ``texts``, the others are numbers"""
    rule = ["---" if column in texts else "---:" for column in range(len(header))]
    return "".join("| " + " | ".join(row) + " |\n" for row in [header, rule, *rows])


def table(runs: pd.DataFrame, rows: str) -> str:
    """
    :param runs: Runs of one suite
    :param rows: "task" or "variant"
    :return: A table with one cell for each task and variant
    """
    columns = "variant" if rows == "task" else "task"
    steps = runs.drop_duplicates("task").set_index("task")["steps"]
    labels = {name: f"{name}, {steps[name]:,} steps" for name in runs["task"].unique()} | LABELS
    names = list(runs[columns].unique())
    texts = cells(runs)
    body = [
        [labels.get(row, row), *(texts.get((row, name) if rows == "task" else (name, row), "") for name in names)]
        for row in runs[rows].unique()
    ]
    return markdown([rows if rows == "task" else "", *(labels.get(name, name) for name in names)], body)


def highlights() -> str:
    """:return: AAC beside the best of the other algorithms, on a dozen tasks"""
    body = []
    for wanted in pd.read_csv(BENCHMARKS / "highlights.csv").itertuples():
        runs = read_runs(BENCHMARKS / str(wanted.file))
        runs = runs[(runs["suite"] == wanted.suite) & (runs["task"] == wanted.task)]
        runs = runs[(runs["variant"] == "aac") | ~runs["variant"].str.startswith("aac")]
        texts = cells(runs)
        best = str(runs[runs["variant"] != "aac"].groupby("variant")["last_return"].mean().idxmax())
        steps, task = f"{runs['steps'].iloc[0]:,}", str(wanted.task)
        body.append([f"{task}: {wanted.question}", texts[task, "aac"], f"{texts[task, best]} ({LABELS[best]})", steps])
    return markdown(["task", "AAC", "best of the others", "steps"], body)


def difference(runs: pd.DataFrame, variant: str, other: str) -> str:
    """
    :param runs: Runs on one task
    :param variant: With a part
    :param other: Without it
    :return: How much higher the mean return is with it, and the 95 % interval; bold if zero is not in it
    """
    returns = [runs[runs["variant"] == name]["last_return"].to_numpy() for name in (variant, other)]
    rng = np.random.default_rng(0)
    means = [x[rng.integers(len(x), size=(10_000, len(x)))].mean(axis=1) for x in returns]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    text = f"{number(returns[0].mean() - returns[1].mean())} [{number(low)}, {number(high)}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def effects() -> str:
    """:return: What each part adds, on which kind of task"""
    body = []
    for row in pd.read_csv(BENCHMARKS / "effects.csv").to_dict("records"):
        runs = read_runs(BENCHMARKS / row["file"])
        runs = runs[(runs["suite"] == row["suite"]) & (runs["task"] == row["task"])]
        without = number(float(runs[runs["variant"] == row["without"]]["last_return"].mean()))
        page = f"[{Path(row['page']).stem}]({row['page']})"
        body.append([row["part"], row["kind"], row["task"], without, difference(runs, row["with"], row["without"]), page])
    header = ["part", "kind of task", "task", "return without it", "gain with it", "command"]
    return markdown(header, body, texts=(0, 1, 2, 5))


def with_tables(page: str) -> str:
    """
    :param page: Text of a page
    :return: The page with its tables as the files say now
    """

    def replace(match: re.Match[str]) -> str:
        start, path, suite, rows, tasks, end = match.groups()
        runs = read_runs(BENCHMARKS / path)
        selected = runs[runs["suite"] == suite]
        if selected.empty:
            raise ValueError(f"{path} has no suite {suite!r}: it has {sorted(runs['suite'].unique())}.")
        if tasks is not None:
            unknown = set(tasks.split(",")) - set(selected["task"])
            if unknown:
                raise ValueError(f"Suite {suite!r} of {path} has no {sorted(unknown)}: {sorted(selected['task'].unique())}.")
            selected = selected[selected["task"].isin(tasks.split(","))]
        return start + table(selected, rows) + end

    page = HIGHLIGHTS.sub(lambda match: match[1] + highlights() + match[2], page)
    page = EFFECTS.sub(lambda match: match[1] + effects() + match[2], page)
    return TABLE.sub(replace, page)


def main() -> None:
    """Rewrite the pages."""
    for path in PAGES:
        path.write_text(with_tables(path.read_text()))


if __name__ == "__main__":
    main()
