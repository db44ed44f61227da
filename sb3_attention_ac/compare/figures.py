"""The pictures of a report."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from sb3_attention_ac.compare.texts import with_interval

COLUMNS = 3  # panels side by side
PANEL = (4.2, 3.0)  # inches
Colour = tuple[float, float, float]


def palette(algorithms: Sequence[str]) -> dict[str, Colour]:
    """
    :param algorithms: Names in the order of the report
    :return: A colour for each, for all pictures of a report; distinct for colour-blind readers up to ten
    """
    kind = "colorblind" if len(algorithms) <= 10 else "husl"
    return dict(zip(algorithms, sns.color_palette(kind, len(algorithms)), strict=True))


def _panels(count: int, columns: int = COLUMNS, panel: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(panel[0] * columns, 6.5), panel[1] * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend_above(figure: Figure, colours: Mapping[str, Colour], algorithms: Iterable[str]) -> None:
    handles = [Line2D([], [], color=colours[name], label=name) for name in algorithms]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), frameon=False)


def _draw_curve(axis: Axes, curve: pd.DataFrame, against: str, value: str, label: str, colour: Colour) -> None:
    axis.plot(curve[against], curve[value], label=label, color=colour)
    if curve["low"].notna().any():
        axis.fill_between(curve[against], curve["low"], curve["high"], alpha=0.2, color=colour, lw=0)


def learning_curves(curves: pd.DataFrame, against: str, colours: Mapping[str, Colour]) -> Figure:
    """
    :param curves: See :func:`~sb3_attention_ac.compare.statistics.mean_curves`
    :param against: ``"steps"`` or ``"seconds"`` of training
    :param colours: See :func:`palette`
    :return: One panel per environment: mean over seeds with its interval
    """
    environments = curves["environment"].unique()
    figure, axes = _panels(len(environments))
    for axis, env in zip(axes, environments, strict=True):
        for algorithm, curve in curves[curves["environment"] == env].groupby("algorithm", sort=False):
            _draw_curve(axis, curve, against, "mean", str(algorithm), colours[str(algorithm)])
        axis.set(title=env, xlabel=f"{against} of training", ylabel="mean return")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend_above(figure, colours, curves["algorithm"].unique())
    return figure


def summary_intervals(summaries: pd.DataFrame, scale: str, colours: Mapping[str, Colour]) -> Figure:
    """
    :param summaries: See :func:`~sb3_attention_ac.compare.statistics.summaries`
    :param scale: What 0 and 1 stand for
    :param colours: See :func:`palette`
    :return: One panel per summary of the final score, and one for the IQM of the area under the curve
    """
    wanted = [("final", "IQM", "IQM of the final score →"), ("final", "median", "median of the final score →")]
    wanted += [("final", "optimality gap", "← optimality gap"), ("area", "IQM", "IQM of the whole curve →")]
    algorithms = list(summaries["algorithm"].unique())
    figure = Figure(figsize=(11, 0.36 * len(algorithms) + 1.1), layout="constrained")
    axes = figure.subplots(1, len(wanted), sharey=True)
    for axis, (score, summary, title) in zip(axes, wanted, strict=True):
        part = summaries[(summaries["score"] == score) & (summaries["summary"] == summary)].set_index("algorithm")
        for position, algorithm in enumerate(algorithms):
            _draw_interval(axis, part.loc[algorithm], "value", position, colours[algorithm])
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(algorithms)), algorithms)
    axes[0].set_ylim(len(algorithms) - 0.4, -0.6)
    figure.supxlabel("\n".join(textwrap.wrap(f"common scale: {scale}", 140)), fontsize=9)
    return figure


def _draw_interval(axis: Axes, row: pd.Series, value: str, position: int, colour: Colour) -> None:
    axis.plot([row["low"], row["high"]], [position] * 2, lw=8, alpha=0.35, color=colour, solid_capstyle="butt")
    axis.plot(row[value], position, "o", color=colour)


def task_intervals(scores: pd.DataFrame) -> Figure:
    """
    :param scores: See :func:`~sb3_attention_ac.compare.statistics.per_task`
    :return: One small panel per environment: mean of each algorithm (dot) with its interval (bar)
    """
    environments, algorithms = scores["environment"].unique(), list(scores["algorithm"].unique())
    colours = palette(algorithms)
    figure, axes = _panels(len(environments), columns=4, panel=(2.9, 0.2 * len(algorithms) + 0.7))
    for axis, env in zip(axes, environments, strict=True):
        for _, row in scores[scores["environment"] == env].iterrows():
            _draw_interval(axis, row, "mean", algorithms.index(row["algorithm"]), colours[row["algorithm"]])
        axis.set_title(env, fontsize=8)
        axis.set_yticks([])
        axis.set_ylim(len(algorithms) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        axis.locator_params(axis="x", nbins=4)  # numbers that differ late are long
    _legend_above(figure, colours, algorithms)
    return figure


def improvement_matrix(improvements: pd.DataFrame) -> Figure:
    """
    :param improvements: See :func:`~sb3_attention_ac.compare.statistics.improvements`
    :return: Probability that the algorithm of the row beats that of the column
    """
    algorithms = list(dict.fromkeys(improvements["algorithm"]))
    size = 1.25 * len(algorithms) + 1.6
    figure = Figure(figsize=(max(size, 4.5), 0.65 * size + 0.8), layout="constrained")
    axis = figure.add_subplot()

    texts = [with_interval(row, "probability", digits=2).replace(" ", "\n", 1) for _, row in improvements.iterrows()]
    pairs = improvements.assign(label=texts)
    probability, label = (
        pairs.pivot(index="algorithm", columns="other", values=name).reindex(algorithms, columns=algorithms)
        for name in ("probability", "label")
    )
    sns.heatmap(
        probability, annot=label.to_numpy(), fmt="", vmin=0, vmax=1, cmap="vlag_r", linewidths=1, cbar=False, ax=axis,
        annot_kws={"fontsize": 8},
    )  # fmt: skip
    axis.set(xlabel="", ylabel="", title="probability that the row beats the column")
    axis.tick_params(axis="y", rotation=0)
    return figure


def aggregate_curves(curves: pd.DataFrame, steps: AbstractSet[int], colours: Mapping[str, Colour]) -> Figure:
    """
    :param curves: See :func:`~sb3_attention_ac.compare.statistics.aggregate_curves`
    :param steps: The different numbers of training steps asked for, those of the last point
    :param colours: See :func:`palette`
    :return: IQM over all environments against steps, or where these differ against the share of training that is done
    """
    figure, (axis,) = _panels(1)
    equal = len(steps) == 1
    last = next(iter(steps)) if equal else 100
    for algorithm, curve in curves.groupby("algorithm", sort=False):
        curve = curve.assign(steps=curve["point"] / curves["point"].max() * last)
        _draw_curve(axis, curve, "steps", "value", str(algorithm), colours[str(algorithm)])
    axis.set(xlabel="steps of training" if equal else "% of training", ylabel="IQM on the common scale")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend_above(figure, colours, curves["algorithm"].unique())
    return figure
