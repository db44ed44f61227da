"""One run: train, evaluate, and say everything about it."""

import inspect
import time
import traceback
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import set_random_seed

from sb3_attention_ac.compare.devices import check_device
from sb3_attention_ac.compare.experiment import build
from sb3_attention_ac.compare.names import register_environments
from sb3_attention_ac.compare.provenance import git_revision, provenance
from sb3_attention_ac.compare.settings import Job
from sb3_attention_ac.compare.storage import RESULT_FILE, Result, to_text, write_atomically


def warm_up() -> None:
    """What is needed once for all runs instead of once in each: late imports, and which code this is."""
    git_revision()
    register_environments()
    th.optim.Adam([th.zeros(1, requires_grad=True)])  # PyTorch imports its compiler for the first optimizer


def run(job: Job, out: Path, command: str) -> Result:
    """
    Train and evaluate, and write the result into the folder of the run.

    :param job: What to run
    :param out: Folder of the comparison
    :param command: Command line of the comparison, kept beside the result
    :return: The result
    """
    git_revision()  # of the code that runs, whatever is committed meanwhile
    th.set_num_threads(1)  # sums in another order are other numbers, and runs share the machine
    check_device(job.protocol.device)
    set_random_seed(job.seed)
    register_environments(job.protocol.gym_packages)
    folder = out / job.folder
    manager, model, callback = build(job, folder / "zoo")
    start = time.perf_counter()
    try:
        manager.learn(model)
        if not _is_finite(model):  # it may still act: argmax over NaN gives an index
            raise FloatingPointError("The network's parameters are not finite.")
        callback.finish()
    except Exception as error:
        if not _has_diverged(model, error):
            raise
        # It is what came of the settings, not an accident, and would come again
        traceback.print_exc()
        print(f"The network is no longer usable after {model.num_timesteps:,} steps: recorded as a run that diverged.")
        callback.give_up()
    result = Result(
        job=job,
        evaluations=tuple(callback.evaluations),
        steps=model.num_timesteps,
        train_seconds=callback.train_seconds,
        evaluation_seconds=callback.evaluation_seconds,
        n_parameters=sum(parameter.numel() for parameter in model.policy.parameters() if parameter.requires_grad),
        arguments=_arguments(model),
        provenance={**provenance(command), "total_seconds": time.perf_counter() - start},
    )
    write_atomically(folder / RESULT_FILE, to_text(result))
    return result


def _has_diverged(model: BaseAlgorithm, error: Exception) -> bool:
    """
    :return: Whether training has spoilt the network: the algorithm has noticed a number that is not finite, the parameters are
        not finite, or they are so large that no distribution comes of them. An observation that is not finite is an accident
    """
    no_distribution = isinstance(error, ValueError) and "to satisfy the constraint" in str(error)  # PyTorch's words
    observed = getattr(model, "_last_obs", None)
    observations = observed.values() if isinstance(observed, dict) else [] if observed is None else [observed]
    noticed = (isinstance(error, FloatingPointError) or no_distribution) and all(np.isfinite(o).all() for o in observations)
    return model.num_timesteps > 0 and (noticed or not _is_finite(model))


def _is_finite(model: BaseAlgorithm) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


def _arguments(model: BaseAlgorithm) -> dict[str, str]:
    """:return: The value of every argument of the model's constructor, defaults included, as text"""
    parameters = inspect.signature(type(model)).parameters
    return {name: str(getattr(model, name, parameter.default)) for name, parameter in parameters.items() if name != "env"}
