"""The files a comparison ends in: CSV, pictures, Markdown, and one HTML page that holds everything."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from matplotlib.figure import Figure

from sb3_attention_ac.compare import figures
from sb3_attention_ac.compare.outcome import Comparison
from sb3_attention_ac.compare.scores import Reference, scale
from sb3_attention_ac.compare.statistics import aggregate_curves, improvements, mean_curves, score_matrices, summaries
from sb3_attention_ac.compare.storage import Result, write_atomically
from sb3_attention_ac.compare.tables import on_common_seconds, tables, without_diverged
from sb3_attention_ac.compare.texts import BOLD, Table, equal_seconds_table, reference_table, summary_table, task_table
from sb3_attention_ac.compare.verdict import verdict

TEMPLATE = Path(__file__).parent / "report.html.j2"
CAPTIONS = {
    "curves_steps": "Learning curves: mean return of the evaluation episodes against steps of training; mean over the seeds "
    "that did not diverge, shaded the 95 % bootstrap interval.",
    "intervals": "Summaries over all environments (dot) with their 95 % bootstrap intervals (bar); arrows point to the better "
    "side.",
    "improvement": "Probability that a run of the algorithm in the row ends higher than one of the algorithm in the column on "
    "the same environment, with its 95 % bootstrap interval. If the interval is wholly above 0.5, the row is better.",
    "curves_all": "Interquartile mean over all environments and seeds against steps of training, with 95 % bootstrap "
    "intervals.",
    "curves_seconds": "Learning curves against seconds of training, evaluations excluded; each ends with the quickest seed, "
    "so that slower ones are not finished there. Between evaluations, straight lines.",
}


def write_report(
    results: Sequence[Result],
    failures: tuple[str, ...],
    known: Mapping[str, Reference],
    out: Path,
    seconds: float | None,
    missing: Sequence[str] = (),
) -> Comparison:
    """
    :param results: Finished runs, in the order of the report
    :param failures: Runs that failed and why
    :param known: Reference scores
    :param out: Folder for the files
    :param seconds: Also compare scores after these seconds of training, 0 for those of the quickest run, None for not
    :param missing: Environments that were asked for, and on which no run has finished
    :return: Tables and the path of the report
    """
    evaluations, runs, references = tables(results, known)
    asked = {result.job.env: result.job.protocol.steps for result in results}
    overall, pairs = summaries(runs), improvements(runs)
    for name, table in {"evaluations": evaluations, "runs": runs, "summaries": overall, "improvement": pairs}.items():
        write_atomically(out / f"{name}.csv", table.to_csv(index=False))
    texts = [
        summary_table(overall, runs, references),
        task_table(runs, "final", "Final score", f"Mean return at the end of training, mean over seeds. {BOLD}"),
        task_table(
            runs, "area", "Whole curve", "Mean height of the learning curve over the steps of training, mean over seeds."
        ),
    ]
    texts += [] if seconds is None else [equal_seconds_table(evaluations, seconds)]
    texts.append(reference_table(references))
    sentences = verdict(overall, pairs, runs, references, [result.job for result in results])
    sentences += _diverged(runs) + _gaps(runs, missing) + _excess(runs, asked)
    drawn = _draw(evaluations, overall, pairs, asked, references)
    pictures = {name: _save(figure, out / "figures" / name) for name, figure in drawn.items()}
    write_atomically(out / "table.md", _markdown(sentences, failures, texts))
    report = out / "report.html"
    write_atomically(report, _html(results, asked, failures, sentences, texts, pictures))
    return Comparison(runs, evaluations, overall, pairs, failures, report)


def _diverged(runs: pd.DataFrame) -> list[str]:
    """:return: Which runs had returns that are not finite, at the end or before it, and what they count as"""
    sentences = []
    if ended := _names_of(runs, runs["diverged"]):
        sentences.append(
            f"Diverged: {ended} ended in returns that are not finite. On the common scale they count as the lowest score of "
            "their environment, or as a random policy where that is lower; means of returns are those of the other runs."
        )
    if came_back := _names_of(runs, runs["area"].isna() & ~runs["diverged"]):
        sentences.append(
            f"Diverged for a while: {came_back} had returns that are not finite before the end. The final score counts; in "
            "learning curves, whole curve and scores at equal time these runs count as diverged."
        )
    return sentences


def _names_of(runs: pd.DataFrame, chosen: pd.Series) -> str:
    """:return: Some of the runs in words"""
    parts = [
        f"{len(seeds)} of {len(group)} runs of {algorithm} on {env} (seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)})"
        for (algorithm, env), group in runs.groupby(["algorithm", "environment"], sort=False)
        if (seeds := [str(seed) for seed in sorted(group.loc[chosen, "seed"])])
    ]
    return "; ".join(parts)


def _gaps(runs: pd.DataFrame, missing: Sequence[str]) -> list[str]:
    """:return: What the summaries had to leave out"""
    matrices = score_matrices(runs, "final_normalized")
    sentences = [f"Missing: no run has finished on {', '.join(missing)}. The numbers here do not cover it."] if missing else []
    for algorithm, group in runs.groupby("algorithm", sort=False):
        used, seeds = len(matrices.get(str(algorithm), ())), group["seed"].nunique()
        if used * runs["environment"].nunique() < len(group):
            sentences.append(f"Incomplete: summaries use the {used} of {seeds} seeds of {algorithm} that finished everywhere.")
    return sentences


def _excess(runs: pd.DataFrame, asked: Mapping[str, int]) -> list[str]:
    """:return: Where whole rollouts made training notably longer than asked for, or a callback of the entry shorter"""
    steps_asked = runs["environment"].map(asked)
    longer = runs["steps"] > 1.05 * steps_asked
    shorter = (runs["steps"] < steps_asked) & ~runs["diverged"]
    why = longer.map({True: "it collects whole rollouts. Take more steps, or smaller rollouts.", False: "it was stopped."})
    unequal = runs.assign(asked=steps_asked, why=why)[longer | shorter].drop_duplicates(["algorithm", "environment"])
    return [
        f"Unequal: {row.algorithm} trained for {row.steps:,} steps on {row.environment}, not the requested {row.asked:,}; "
        f"{row.why}"
        for row in unequal.itertuples()
    ]


def _draw(
    evaluations: pd.DataFrame,
    overall: pd.DataFrame,
    pairs: pd.DataFrame,
    asked: Mapping[str, int],
    references: Mapping[str, Reference],
) -> dict[str, Figure]:
    colours = figures.palette([str(name) for name in evaluations["algorithm"].unique()])
    finite = without_diverged(evaluations)
    curves = evaluations if finite.empty else finite
    drawn = {"curves_steps": figures.learning_curves(mean_curves(curves, "steps"), "steps", colours)}
    if len(overall):
        drawn["intervals"] = figures.summary_intervals(overall, scale(references), colours)
    if len(pairs):
        drawn["improvement"] = figures.improvement_matrix(pairs)
    if evaluations["environment"].nunique() > 1 and len(overall):
        drawn["curves_all"] = figures.aggregate_curves(aggregate_curves(evaluations), set(asked.values()), colours)
    drawn["curves_seconds"] = figures.learning_curves(mean_curves(on_common_seconds(curves), "seconds"), "seconds", colours)
    return drawn


def _save(figure: Figure, path: Path) -> str:
    """
    :param figure: Picture, written as PNG (150 dpi) and PDF
    :param path: File without its ending
    :return: The PNG in base64
    """
    for kind in ("pdf", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150)
        write_atomically(path.with_suffix(f".{kind}"), buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode()


def _markdown(sentences: Sequence[str], failures: Sequence[str], texts: Sequence[Table]) -> str:
    lines = [*sentences, *(f"Failed: {failure}" for failure in failures)]
    return "\n\n".join(["## Comparison", *lines, *(table.markdown() for table in texts)])


def _html(
    results: Sequence[Result],
    asked: Mapping[str, int],
    failures: Sequence[str],
    sentences: Sequence[str],
    texts: Sequence[Table],
    pictures: Mapping[str, str],
) -> str:
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text())
    hyperparams = {}
    for job, arguments in ((result.job, result.arguments) for result in results):
        same = {name: value for name, value in arguments.items() if name != "seed"}  # of all seeds
        hyperparams[f"{job.variant} on {job.env}"] = yaml.safe_dump(job.hyperparams), yaml.safe_dump(same)
    return template.render(
        verdict=sentences,
        failures=failures,
        tables=texts,
        pictures=[(CAPTIONS[name], picture) for name, picture in pictures.items()],
        protocol=results[0].job.protocol,
        devices=sorted({result.arguments.get("device", result.job.protocol.device) for result in results}),
        budgets={steps: [env for env in asked if asked[env] == steps] for steps in asked.values()},
        seeds=len({result.job.seed for result in results}),
        provenance=_provenance(results),
        hyperparams=hyperparams,
    )


def _provenance(results: Sequence[Result]) -> dict[str, list[str]]:
    """:return: All values of each fact; more than one where runs were made under different conditions"""
    facts: dict[str, dict[str, None]] = {}

    def collect(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, Mapping):
                collect(value)
            elif value is not None and name not in ("time", "total_seconds"):
                facts.setdefault(name, {})[str(value)] = None

    for result in results:
        collect(result.provenance)
    times = sorted(str(result.provenance["time"]) for result in results)
    return {**{name: list(values) for name, values in facts.items()}, "finished (UTC)": [f"{times[0]} to {times[-1]}"]}
