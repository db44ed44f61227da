"""Which runs are needed, which are there already, and doing the rest."""

import contextlib
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import joblib
from tqdm import tqdm

from sb3_attention_ac.compare.backends import Backend
from sb3_attention_ac.compare.errors import CompareError, CorruptResultError
from sb3_attention_ac.compare.experiment import read_hyperparams
from sb3_attention_ac.compare.names import check_known, register_environments
from sb3_attention_ac.compare.outcome import Outcome
from sb3_attention_ac.compare.settings import Job, Protocol, Variant, differences, with_own_steps
from sb3_attention_ac.compare.storage import RESULT_FILE, Result, read_result, write_atomically


def plan(
    variants: Sequence[Variant], envs: Sequence[str], seeds: int, protocol: Protocol, source: str, first_seed: int = 0
) -> list[Job]:
    """
    :param variants: What to compare
    :param envs: Ids of environments, ``"id=steps"`` where one has its own number of steps
    :param seeds: Number of seeds
    :param protocol: What all runs share
    :param source: Where hyperparameters come from, see :func:`~sb3_attention_ac.compare.experiment.read_hyperparams`
    :param first_seed: The first of the seeds, the others follow it
    :return: All runs; first the first seed of everything, so that an unfinished comparison has a bit of everything
    :raises CompareError: If an environment is not known or given with two numbers of steps, or a number is not in its range
    """
    for name, number, least in (("seeds", seeds, 1), ("first_seed", first_seed, 0)):
        if not isinstance(number, int) or number < least:
            raise CompareError(f"{name}={number} was given, but it must be a whole number of at least {least}.")
    if not envs:
        raise CompareError("There is nothing to compare on; name environments (--envs).")
    register_environments(protocol.gym_packages)
    protocols: dict[str, Protocol] = {}
    for env, own in (with_own_steps(env, protocol) for env in envs):
        if protocols.setdefault(env, own) != own:
            raise CompareError(f"{env} was given with {protocols[env].steps} and with {own.steps} steps; give it once.")
    for env in protocols:
        check_known(env)
    hyperparams = {
        (variant.name, env): read_hyperparams(variant, env, own.steps, source)
        for env, own in protocols.items()
        for variant in variants
    }
    n_envs = max(int(entry.get("n_envs", 1)) for entry in hyperparams.values())
    highest = protocol.evaluation_seed - seeds - (n_envs - 1)  # environment i of a run has its seed + i
    if first_seed > highest:
        raise CompareError(
            f"first_seed is {first_seed}; with {seeds} seeds it must be from 0 to {highest}, as evaluations start from "
            f"the seeds after {protocol.evaluation_seed - 1}, and each run from {n_envs} of its own."
        )
    return [
        Job(variant.name, variant.algo, env, seed, hyperparams[variant.name, env], protocols[env])
        for seed in range(first_seed, first_seed + seeds)
        for env in protocols
        for variant in variants
    ]


def read_finished(jobs: Sequence[Job], out: Path, rerun_corrupt: bool = False) -> dict[Path, Result]:
    """
    :param jobs: Runs asked for
    :param out: Folder of the comparison
    :param rerun_corrupt: Whether corrupt results count as not there
    :return: The results which are there, by the folder of their run
    :raises CompareError: If the folder has results of other settings (says which differ) or corrupt ones
    """
    asked = {job.folder: job.identity() for job in jobs}
    protocol = next(iter(asked.values()))["protocol"]
    steps = {job.env: job.protocol.steps for job in jobs}
    finished, corrupt, others = {}, [], []
    for path in sorted(out.glob(f"runs/*/*/*/{RESULT_FILE}")):
        folder = path.parent.relative_to(out)
        try:
            result = read_result(path)
        except CorruptResultError as error:
            corrupt += [str(error)] if folder in asked else []
            continue
        there = result.job.identity()
        # Runs which are not asked for may stay beside, as long as they went by the same protocol, with the environment's steps
        same = {**there, "protocol": {**protocol, "steps": steps.get(there["env"], there["protocol"]["steps"])}}
        others += differences(there, asked.get(folder, same))
        if folder in asked:
            finished[folder] = result
    if others:
        raise CompareError(
            f"{out} has results of other settings: {'; '.join(sorted(set(others)))}. "
            "Give another folder with --out, or use the settings of those results."
        )
    if corrupt and not rerun_corrupt:
        raise CompareError(f"{'; '.join(corrupt)}. Give --rerun-corrupt to run it again, or restore the file.")
    return finished


def execute(
    jobs: Sequence[Job],
    out: Path,
    command: str,
    backend: Backend,
    n_jobs: int,
    done: int = 0,
    after_each: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """
    Do the runs which are not there yet.

    :param jobs: Runs to do
    :param out: Folder of the comparison
    :param command: Command line of the comparison, kept beside each result
    :param backend: Where they take place
    :param n_jobs: Runs at the same time
    :param done: Number of runs done before, for the progress bar
    :param after_each: Called in this process whenever a run has ended and its result is in the folder
    :return: What came of each run
    """
    outcomes: dict[Path, Outcome] = {}
    # Runs are processes of their own: threads that wait for them are enough
    parallel = joblib.Parallel(n_jobs, "threading", batch_size=1, pre_dispatch="all", return_as="generator_unordered")
    with (
        tqdm(total=done + len(jobs), initial=done, unit="run", desc="Training", smoothing=0) as bar,
        contextlib.ExitStack() as at_the_end,
    ):
        at_the_end.callback(backend.stop)
        ended = parallel(joblib.delayed(backend.launch)(job, out, command) for job in jobs)
        at_the_end.callback(_close, ended)  # before the other: no more runs are begun
        for outcome in ended:
            path = out / outcome.job.folder / RESULT_FILE
            # Machines of a cluster need not share their disks
            if outcome.result is not None and not (path.exists() and path.read_text() == outcome.result):
                write_atomically(path, outcome.result)
            outcomes[outcome.job.folder] = outcome
            bar.update()
            after_each()
    return [outcomes[job.folder] for job in jobs]


def _close(ended: Generator[Outcome, None, None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib advises to ask for less
        ended.close()
