"""Suites: a folder that says what to run, and keeps one row per run that has been made."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from filelock import FileLock

from sb3_attention_ac.compare.errors import CompareError, unknown_name
from sb3_attention_ac.compare.settings import Job, named_with_steps
from sb3_attention_ac.compare.storage import Evaluation, Result, write_atomically
from sb3_attention_ac.compare.variants import load_variants
from sb3_attention_ac.compare.yaml_files import read_mapping

SUITE_FILE = "suite.yml"
KEY = ["environment", "algorithm", "seed"]
COLUMNS = [*KEY, "steps", "final", "best_evaluation", "best_training", "diverged", "evaluations", "episodes", "curve"]
COLUMNS += ["train_seconds", "processor", "settings", "versions"]
# Arguments of the command that a suite may set, and what they are
ARGUMENTS: dict[str, type] = {
    "algos": list,
    "variants": list,
    "envs": list,
    "seeds": int,
    "first_seed": int,
    "hyperparams": str,
    "gym_packages": list,
    "steps": int,
    "evaluations": int,
    "episodes": int,
    "stochastic": bool,
}
CHOICES = ("algos", "variants", "envs", "seeds", "first_seed")
Entry = TypeVar("Entry")


def read_suite(folder: Path) -> dict[str, Any]:
    """
    :param folder: Folder with a file ``suite.yml``: arguments of the command line, with underscores; ``envs`` may map
        environments to steps. Files are looked for in the folder first; its files ``<algo>.yml`` are the hyperparameters
        unless it says otherwise
    :return: The arguments
    :raises CompareError: If the folder has no such file, or an entry of it is wrong
    """
    path = folder / SUITE_FILE
    given = read_mapping(path, "arguments of the comparison to their values, see the documentation of --suite")
    if isinstance(given.get("envs"), dict):
        given["envs"] = named_with_steps(given["envs"])
    for name, value in given.items():
        if name not in ARGUMENTS:
            raise unknown_name(f"argument in {path}", name, ARGUMENTS)
        wanted = ARGUMENTS[name]
        texts = value if wanted is list else []
        if type(value) is not wanted or not all(isinstance(text, str) for text in texts):
            kind = "a list of strings" if wanted is list else wanted.__name__
            raise CompareError(f"{path}: {name} must be {kind}, not {value!r}.")

    def in_folder(name: str) -> str:
        file = name if (folder / name).exists() else name.rpartition(":")[0] or name  # file:variant
        return str(folder / name) if (folder / file).exists() else name

    given["variants"] = [in_folder(name) for name in given.get("variants", [])]
    given["hyperparams"] = in_folder(given.get("hyperparams", "."))
    return given


def choose(suite: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param suite: See :func:`read_suite`
    :param chosen: Arguments given beside it, which choose a part: ``envs``, ``algos`` or ``variants`` (algorithms, single
        variants, or files of variants of the suite), or seeds
    :return: The arguments of that part
    :raises CompareError: If something else is given, or what is not in the suite
    """
    if fixed := sorted(chosen.keys() & (ARGUMENTS.keys() - set(CHOICES))):
        raise CompareError(f"{_flags(fixed)} must be set in suite.yml. Only {_flags(CHOICES)} choose a part of a suite.")
    part = {**suite, **chosen}
    if wanted := [*chosen.get("algos", []), *chosen.get("variants", [])]:
        entries = {algo: ("algos", algo) for algo in suite.get("algos", [])}
        for path in suite.get("variants", []):
            entries |= {variant.name: ("variants", f"{path}:{variant.name}") for variant in load_variants(path)}
            entries[_name(path)] = ("variants", path)
        found = [_known(name, entries, "algorithm or variant of the suite") for name in wanted]
        part |= {kind: [entry for other, entry in found if other == kind] for kind in ("algos", "variants")}
    if "envs" in chosen:
        envs = {_name(entry): entry for entry in suite.get("envs", [])}
        part["envs"] = [_known(env, envs, "environment of the suite") for env in chosen["envs"]]
        if other := [entry for entry, own in zip(chosen["envs"], part["envs"], strict=True) if "=" in entry and entry != own]:
            raise CompareError(f"--envs has {other[0]}, and the suite {envs[_name(other[0])]}: set steps in suite.yml.")
    return part


def _known(name: str, entries: Mapping[str, Entry], what: str) -> Entry:
    name = name if name in entries else _name(name)
    if name not in entries:
        raise unknown_name(what, name, entries)
    return entries[name]


def _name(entry: str) -> str:
    """
    :param entry: Environment, perhaps with steps, path of a file of variants, or name of an algorithm or variant
    :return: How it is called on the command line: without steps, or without folders
    """
    return Path(entry).name if entry.endswith((".yml", ".yaml")) else entry.partition("=")[0]


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def result_rows(results: Sequence[Result]) -> pd.DataFrame:
    """
    :param results: Finished runs
    :return: One row per run: environment, algorithm, seed, steps; final (mean return of the last evaluation), best_evaluation
        and best_training (highest mean return of an evaluation, and of the training episodes between two of them), diverged,
        evaluations (those after training has begun), episodes (of each); curve (steps:score of each evaluation, with spaces);
        train_seconds and the processor it took them on; settings (equal for equal hyperparameters and protocol) and versions
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        scores = pd.Series([evaluation.score for evaluation in result.evaluations])
        training = pd.Series([evaluation.training for evaluation in result.evaluations], dtype=float)
        rows.append(
            {
                "environment": result.job.env,
                "algorithm": result.job.variant,
                "seed": result.job.seed,
                "steps": result.steps,
                "final": scores.iloc[-1],
                "best_evaluation": scores.max(),
                "best_training": training.max(),
                "diverged": result.diverged,
                "evaluations": result.job.protocol.evaluations,
                "episodes": result.job.protocol.episodes,
                "curve": curve_text(result.evaluations),
                "train_seconds": result.train_seconds,
                "processor": result.provenance.get("hardware", {}).get("processor", ""),
                "settings": fingerprint(result.job),
                "versions": _versions(result),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def read_results(path: Path) -> pd.DataFrame:
    """
    :param path: File with results
    :return: Its rows, see :func:`result_rows`, and other columns it has; what it does not say is NaN
    :raises CompareError: If it cannot be read, or lacks the columns that identify a run and its final score
    """
    try:
        names = ["environment", "algorithm"]  # stay as they are: a variant may be called 16, or nan
        others = {name: ["", "nan"] for name in pd.read_csv(path, nrows=0).columns if name not in names}
        there = pd.read_csv(path, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=others)
    except (OSError, ValueError) as error:
        raise CompareError(f"{path} cannot be read as CSV ({error}); correct it, or move it away.") from error
    if missing := {*KEY, "final"} - set(there.columns):
        raise CompareError(f"{path} has no column {', '.join(sorted(missing))}; correct it, or move it away.")
    if there.duplicated(KEY).any():
        raise CompareError(f"{path} has two rows of one environment, algorithm and seed; correct it, or move it away.")
    return there.reindex(columns=[*COLUMNS, *there.columns.difference(COLUMNS, sort=False)])


def curve_text(evaluations: Iterable[Evaluation]) -> str:
    """
    :param evaluations: The evaluations of a run
    :return: Their steps and mean returns, as :func:`read_curve` reads them
    """
    return " ".join(f"{evaluation.steps}:{evaluation.score:.6g}" for evaluation in evaluations)


def read_curve(text: str) -> list[tuple[int, float]]:
    """
    :param text: A curve in a file with results
    :return: Steps and mean return of each evaluation
    """
    points = (point.partition(":") for point in text.split())
    return [(int(steps), float(score)) for steps, _, score in points]


def fingerprint(job: Job) -> str:
    """
    :param job: A run
    :return: Equal for runs that differ in nothing but name, environment, seed and device
    """
    identity = job.identity()
    protocol = {name: value for name, value in identity["protocol"].items() if name != "device"}
    text = json.dumps([identity["algo"], identity["hyperparams"], protocol], sort_keys=True)
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:11]  # never mistaken for a number


def _versions(result: Result) -> str:
    versions = " ".join(f"{name}={version}" for name, version in result.provenance.get("versions", {}).items())
    revision = result.provenance.get("git_revision")
    return f"{versions} git={revision}" if revision else versions


def update_results(path: Path, results: Sequence[Result]) -> None:
    """
    Write the rows of runs into a CSV file. Those of other runs stay, unless an algorithm got them on the same environment with
    other settings: no table shows a mixture.

    :param path: File to make or to bring up to date
    :param results: Finished runs
    :raises CompareError: If there is a file that is none of results
    """
    if not results:
        if path.is_file():
            read_results(path)
        return
    rows = result_rows(results)
    with _lock(path):  # two commands may do parts of one suite
        if path.is_file():
            rows = pd.DataFrame(_others(path, rows) + rows.to_dict("records"))
        rows = rows.convert_dtypes().sort_values(KEY, kind="stable")
        text = rows.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text)


def _lock(path: Path) -> FileLock:
    user = getattr(os, "getuid", int)()  # nobody can open the locks of others
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"sb3_attention_ac-{user}-{name}.lock")


def _others(path: Path, rows: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """:return: Rows of the file that stay beside the new ones"""
    there = read_results(path)
    new = rows.set_index(KEY).index
    settings = {(row["environment"], row["algorithm"]): row["settings"] for row in rows.to_dict("records")}
    stay, others = [], set()
    for row in there.to_dict("records"):
        key = row["environment"], row["algorithm"]
        if key in settings and settings[key] != row["settings"]:
            others.add(f"{key[1]} on {key[0]}")
        elif (*key, row["seed"]) not in new:
            stay.append(row)
    if others:
        warnings.warn(f"{path}: rows with other settings are replaced: {', '.join(sorted(others))}.", stacklevel=2)
    return stay
