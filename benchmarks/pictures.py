"""
Draw the README's picture, docs/images/memory.png, from the last returns of single runs (benchmarks/popgym/last_returns.csv).

    python benchmarks/pictures.py
"""

from pathlib import Path

import pandas as pd
import seaborn as sns
from last_returns import DOCS, LABELS
from matplotlib.figure import Figure

from sb3_attention_ac.compare.statistics import mean_interval

RUNS = Path(__file__).parent / "popgym" / "last_returns.csv"
PICTURE = DOCS / "images" / "memory.png"
# Task to how many steps before the card was shown
STEPS_BACK = {"RepeatPreviousEasy": 3, "RepeatPreviousMedium": 31, "RepeatPreviousHard": 63}
VARIANTS = ("aac", "ppo_lstm", "ppo-stack4")
GUESSING = -0.5  # one of four suits is right: 1/4 - 3/4
WIDTH = 0.22  # between the algorithms of a task


def drawn_runs() -> pd.DataFrame:
    """:return: The runs in the picture: task, variant, seed, steps, last_return"""
    runs = pd.read_csv(RUNS)
    return runs[(runs["suite"] == "recall") & runs["task"].isin(list(STEPS_BACK)) & runs["variant"].isin(list(VARIANTS))]


def draw(runs: pd.DataFrame) -> Figure:
    """
    :param runs: As of :func:`drawn_runs`
    :return: Every run as a dot, and the mean over seeds with its 95 % interval
    """
    figure = Figure(figsize=(7.2, 3.4), layout="constrained", dpi=150)
    axis = figure.add_subplot()
    axis.axhline(GUESSING, color="grey", linestyle=":", linewidth=1)
    axis.text(-0.4, GUESSING + 0.03, "guessing", color="grey", ha="left", va="bottom", fontsize=8)
    for i, (variant, colour) in enumerate(zip(VARIANTS, sns.color_palette("colorblind", len(VARIANTS)), strict=True)):
        for x, task in enumerate(STEPS_BACK):
            returns = runs[(runs["task"] == task) & (runs["variant"] == variant)]["last_return"].to_numpy()
            place = x + (i - 1) * WIDTH
            mean, low, high = mean_interval(returns)
            axis.plot([place, place], [low, high], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt")
            axis.plot([place] * len(returns), returns, "o", color=colour, markersize=3.5, alpha=0.5, gid="runs")
            label = LABELS[variant] if x == 0 else None
            axis.plot([place - 0.08, place + 0.08], [mean, mean], color=colour, linewidth=2.5, label=label, gid="mean")
    axis.set_xticks(range(len(STEPS_BACK)), [f"{back} steps\n({task})" for task, back in STEPS_BACK.items()])
    axis.set_xlabel("how far back the answer lies")
    axis.set_ylabel("return after training")
    axis.set_ylim(-0.75, 1.1)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=len(VARIANTS), frameon=False)
    return figure


def described(runs: pd.DataFrame) -> str:
    """:return: What a picture of these runs says about itself, to tell whether it is that of the file"""
    return runs.to_csv(index=False)


def main() -> None:
    """Draw it."""
    runs = drawn_runs()
    draw(runs).savefig(PICTURE, metadata={"Description": described(runs), "Software": None})


if __name__ == "__main__":
    main()
