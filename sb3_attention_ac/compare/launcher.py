"""Runs a job in a process of its own, which may crash or be killed without harm to anything else."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.outcome import Outcome
from sb3_attention_ac.compare.settings import Job
from sb3_attention_ac.compare.storage import RESULT_FILE

LOG_FILE = "log.txt"
FORKS = sys.platform == "linux"  # where a process can safely run every job in a copy of itself; elsewhere it ends after one

# Threads of the local machine, or a Ray worker, take turns with these: importing everything anew for each job would take long
_idle: "queue.SimpleQueue[subprocess.Popen[bytes]]" = queue.SimpleQueue()
_busy: "set[subprocess.Popen[bytes]]" = set()


def launch(job: Job, out: Path, command: str) -> Outcome:
    """
    Run a job in another process and wait for it.

    :param job: What to run
    :param out: Folder of the comparison
    :param command: Command line of the comparison, kept beside the result
    :return: What came of it; never raises for what happens in the run
    """
    folder = out / job.folder
    log = folder / LOG_FILE
    failure = _serve({"job": job.to_dict(), "out": str(out), "command": command}, log)
    if failure is None:
        return Outcome(job, result=(folder / RESULT_FILE).read_text())
    return Outcome(job, failure=f"{failure}; see {log}")


def check_worker(environments: Mapping[str, Mapping[str, Any]], gym_packages: Sequence[str], out: Path) -> None:
    """
    :param environments: Ids of environments, all known to this process, and hyperparameters with which they are made
    :param gym_packages: Modules that register some
    :param out: Folder of the comparison
    :raises CompareError: If the process of a run cannot make one of them
    """
    failure = _serve({"environments": list(environments.items()), "gym_packages": list(gym_packages)}, out / LOG_FILE)
    if failure is not None:
        stop_workers()
        raise CompareError(
            f"Every run is a separate process, and such a process cannot create all of the environments ({failure}). What a "
            "notebook or a script registers exists only there: move it into a module that can be imported, and name that "
            "module with --gym-packages (in Python: `Protocol(gym_packages=(...,))`)."
        )
    (out / LOG_FILE).unlink(missing_ok=True)


def _serve(request: dict[str, Any], log: Path) -> str | None:
    """:return: Why a process that was to do this, and to print to this file, failed; None if it did not"""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")  # what is in there of an earlier try is no reason for this one
    with _worker(log) as worker:
        code = _ask(worker, json.dumps({**request, "log": str(log)}))
    return None if code == 0 else _explain(code, log)


@contextlib.contextmanager
def _worker(log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    worker = _idle_worker() or _start(log)
    _busy.add(worker)
    try:
        yield worker
    except BaseException:
        _stop(worker)
        raise
    finally:
        _busy.discard(worker)
    if FORKS and worker.poll() is None:
        _idle.put(worker)
    else:  # without forks it is about to end: the next job would never be answered
        _stop(worker)


def _idle_worker() -> "subprocess.Popen[bytes] | None":
    with contextlib.suppress(queue.Empty):
        while True:
            worker = _idle.get_nowait()
            if worker.poll() is None:
                return worker
            _stop(worker)  # it was killed meanwhile
    return None


def _start(log: Path) -> "subprocess.Popen[bytes]":
    package_parent = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        # Modules that register environments are found where this process finds them: beside a script, in a notebook's folder
        "PYTHONPATH": os.pathsep.join([package_parent, *filter(None, map(str, sys.path))]),
        "PYTHONHASHSEED": "0",
        # Must be known before the libraries are loaded
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }
    with log.open("ab") as stderr:  # why it could not start is of interest; a job makes the file its own
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_attention_ac.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )


def _ask(worker: "subprocess.Popen[bytes]", request: str) -> int:
    """:return: Exit code of the job, one line of JSON; that of the worker if it ended without an answer"""
    assert worker.stdin is not None and worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(request.encode() + b"\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    return int(answer) if answer else worker.wait() or 1


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    assert worker.stdin is not None and worker.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    worker.stdout.close()
    worker.wait()


def stop_workers() -> None:
    """End the processes that wait for a job, and, after an interruption, those that have one: in a notebook life goes on."""
    for worker in list(_busy):
        assert worker.stdin is not None
        with contextlib.suppress(OSError):
            worker.stdin.close()  # the thread that waits for an answer gets none, and does the rest
        worker.wait()
    with contextlib.suppress(queue.Empty):
        while True:
            _stop(_idle.get_nowait())


def _explain(code: int, log: Path) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    if not lines:
        return f"ended with exit code {code}"
    # Below a traceback, which is indented, stands the error; it may have many lines
    heads = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    below = [line for line in lines[heads[-1] + 1 :] if not line.startswith(" ")] if heads else []
    return re.sub(r"^([A-Za-z_]\w*\.)+(?=\w+: )", "", below[0] if below else lines[-1])
