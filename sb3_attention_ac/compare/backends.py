"""Where runs take place: this machine, or a Ray cluster."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from sb3_attention_ac.compare.errors import CompareError, unknown_name
from sb3_attention_ac.compare.launcher import launch, stop_workers
from sb3_attention_ac.compare.outcome import Outcome
from sb3_attention_ac.compare.settings import Job

NAMES = ("local", "ray")


@dataclass(frozen=True)
class Backend:
    """
    :param launch: Does a job, given the folder of the comparison and its command, and waits for it
    :param stop: Ends what is still running
    :param processors: Number of processors
    :param default: Number of jobs at the same time, unless told otherwise
    """

    launch: Callable[[Job, Path, str], Outcome]
    stop: Callable[[], None]
    processors: int
    default: int

    def n_jobs(self, asked: int | None) -> int:
        """
        :param asked: Number of jobs asked for, -1 for one per processor, -2 for one less, None for the default
        :return: Number of jobs at the same time
        """
        if asked is None:
            return self.default
        return asked if asked > 0 else max(self.processors + 1 + asked, 1)


def make_backend(name: str, address: str | None = None) -> Backend:
    """
    :param name: ``"local"`` or ``"ray"``
    :param address: Address of a Ray cluster, None for the one of the environment (``RAY_ADDRESS``), else one on this machine
    :return: The backend, ready for use
    :raises CompareError: If the name is not known, Ray is not installed, or there is no cluster at the address
    """
    if name not in NAMES:
        raise unknown_name("backend", name, NAMES)
    if name == "ray":
        return _ray(_connect(address))
    if address is not None:
        raise CompareError(f"--address is {address!r}, which goes only with --backend ray.")
    return Backend(launch, stop_workers, joblib.cpu_count(), joblib.cpu_count(only_physical_cores=True))


def _connect(address: str | None) -> Any:
    """:return: The module ``ray``, connected to a cluster"""
    try:
        import ray
    except ImportError as error:
        raise CompareError(
            "The backend 'ray' needs the package 'ray', which is not installed; run `pip install ray`."
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except Exception as error:  # Ray raises this very class when a machine starts too slowly
            where = "on this machine" if address is None else f"at the address {address!r}"
            raise CompareError(
                f"No Ray cluster could be reached {where}; check --address and `ray status` ({error})."
            ) from error
    return ray


def _ray(ray: Any) -> Backend:
    # A machine that leaves the cluster takes its runs along; they start again on another
    remote = ray.remote(max_retries=3)(launch)
    tasks: dict[str, Any] = {}

    def launch_there(job: Job, out: Path, command: str) -> Outcome:
        task = tasks[str(job)] = remote.remote(job, out, command)
        try:
            outcome: Outcome = ray.get(task)
        except ray.exceptions.RayError as error:
            outcome = Outcome(job, failure=f"{type(error).__name__} of Ray: {str(error).splitlines()[0]}")
        finally:
            del tasks[str(job)]
        return outcome

    def stop() -> None:
        for task in list(tasks.values()):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.cancel(task, force=True)

    processors = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    return Backend(launch_there, stop, processors, processors)
