"""The comparison as a whole: plan, run, summarize, report."""

import contextlib
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sb3_attention_ac.compare.backends import Backend, make_backend
from sb3_attention_ac.compare.devices import check_device
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.jobs import execute, plan, read_finished
from sb3_attention_ac.compare.launcher import check_worker
from sb3_attention_ac.compare.outcome import Comparison, Outcome
from sb3_attention_ac.compare.provenance import provenance
from sb3_attention_ac.compare.scores import load_references
from sb3_attention_ac.compare.settings import Job, Protocol, named_with_steps
from sb3_attention_ac.compare.storage import Result, write_atomically
from sb3_attention_ac.compare.variants import collect_variants


def compare(
    algos: Sequence[str] = (),
    envs: Sequence[str] | Mapping[str, int | None] = (),
    seeds: int = 5,
    out: str | Path = "comparison",
    *,
    protocol: Protocol | None = None,
    variants: Sequence[str] = (),
    hyperparams: str = "zoo",
    first_seed: int = 0,
    n_jobs: int | None = None,
    backend: str = "local",
    address: str | None = None,
    rerun_corrupt: bool = False,
    references: str | Path | None = None,
    seconds: float | None = None,
    results: str | Path | None = None,
) -> Comparison:
    """
    Train algorithms on environments over seeds, and report. Runs found in ``out`` are not repeated.

    :param algos: Names of algorithms in RL Zoo
    :param envs: Ids of environments, ``"id=steps"`` where one has its own number of training steps, or a mapping of ids to
        steps
    :param seeds: Number of seeds
    :param out: Folder for results and report
    :param protocol: Steps, evaluations and whatever else all runs share, None for the defaults
    :param variants: Names of shipped files of variants (``"ladder"``) or paths of YAML files
    :param hyperparams: ``"zoo"``, ``"sb3"``, a folder with files ``<algo>.yml``, or a file, in the format of RL Zoo
    :param first_seed: The first of the seeds: settings chosen by their results should be reported with other seeds
    :param n_jobs: Runs at the same time, -1 for one per processor, None for one per physical core (Ray: per processor)
    :param backend: ``"local"`` or ``"ray"``
    :param address: Address of the Ray cluster, None for RAY_ADDRESS or a cluster on this machine
    :param rerun_corrupt: Whether to run again what has a corrupt result file, instead of refusing
    :param references: YAML file with own reference scores ``env: {random: x, good: y}``
    :param seconds: Also compare scores after this many seconds of training (0: as many as the quickest run took)
    :param results: CSV file to keep one row per run in, beside the rows of other calls, see
        :func:`~sb3_attention_ac.compare.suites.update_results`; it is brought up to date whenever a run has ended
    :return: Tables, failures, and the path of the report
    :raises CompareError: If something asked for is impossible, or no run has finished
    """
    protocol = protocol or Protocol()
    for name, given in (("algos", algos), ("envs", envs), ("variants", variants)):
        if isinstance(given, str):
            raise CompareError(f"{name}={given!r} was given, but it must be a list: {name}=[{given!r}].")
    if n_jobs == 0:
        raise CompareError("n_jobs=0 was given: use at least 1, -1 for one per processor, or leave it out.")
    if seconds is not None and not 0 <= seconds < math.inf:
        raise CompareError(f"seconds={seconds} was given: use a number of seconds of at least 0 (0: the quickest run's).")
    known = load_references(None if references is None else Path(references))
    jobs = plan(collect_variants(algos, variants), named_with_steps(envs), seeds, protocol, hyperparams, first_seed)
    out = Path(out).resolve()
    if out.exists() and not out.is_dir():
        raise CompareError(f"out={out} is a file: give a folder for results and report.")
    finished, outcomes = _complete(jobs, out, rerun_corrupt, results, n_jobs, backend, address)
    failures = tuple(f"{outcome.job}: {outcome.failure}" for outcome in outcomes if outcome.failure is not None)
    there = [finished[job.folder] for job in jobs if job.folder in finished]
    if not there:
        raise CompareError("No run has finished, so there is nothing to report:\n" + "\n".join(failures))
    missing = list(dict.fromkeys(job.env for job in jobs if job.env not in {result.job.env for result in there}))
    # Not above: the processes of the runs import this package too, and are spared the libraries for statistics and pictures
    from sb3_attention_ac.compare.report import write_report

    return write_report(there, failures, known, out, seconds, missing)


def _complete(
    jobs: Sequence[Job],
    out: Path,
    rerun_corrupt: bool,
    results: str | Path | None,
    n_jobs: int | None,
    backend: str,
    address: str | None,
) -> tuple[dict[Path, Result], list[Outcome]]:
    """
    Do the runs which are not there yet. The parameters are those of :func:`compare`, but for

    :param jobs: All runs
    :return: The results there are then, by the folder of their run, and what came of the runs that were done now
    """

    def read() -> dict[Path, Result]:
        found = read_finished(jobs, out, rerun_corrupt)
        if results is not None:
            from sb3_attention_ac.compare.suites import update_results

            update_results(Path(results), list(found.values()))
        return found

    def try_to_read() -> None:
        with contextlib.suppress(CompareError, OSError):  # said at the end, not in the midst of other runs
            read()

    finished = read()
    pending = [job for job in jobs if job.folder not in finished]
    command = shlex.join(sys.orig_argv)
    place = _prepare(pending, out, backend, address) if pending else None
    _write_settings(jobs, out, command)
    if place is None:
        return finished, []
    outcomes = execute(pending, out, command, place, place.n_jobs(n_jobs), len(finished), try_to_read)
    return read(), outcomes


def _prepare(pending: Sequence[Job], out: Path, backend: str, address: str | None) -> Backend:
    """:return: The backend, if the runs can be made there; what the machines of a cluster can is not known here"""
    place = make_backend(backend, address)
    if backend == "local":
        check_device(pending[0].protocol.device)
        environments = {job.env: job.hyperparams for job in pending}
        check_worker(environments, pending[0].protocol.gym_packages, out)
    return place


def _write_settings(jobs: Sequence[Job], out: Path, command: str) -> None:
    settings = {
        "protocol": {**asdict(jobs[0].protocol), "steps": {job.env: job.protocol.steps for job in jobs}},
        "hyperparams": {f"{job.variant} on {job.env}": job.hyperparams for job in jobs},
        "seeds": sorted({job.seed for job in jobs}),
        "provenance": provenance(command),
    }
    write_atomically(out / "settings.json", json.dumps(settings, indent=1))
