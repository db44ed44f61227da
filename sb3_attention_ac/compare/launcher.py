"""Runs a job in a process of its own, which may crash or be killed without harm to anything else."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sb3_attention_ac.compare.settings import Job
from sb3_attention_ac.compare.storage import RESULT_FILE

LOG_FILE = "log.txt"

# Threads of the local machine, or a Ray worker, take turns with these: importing everything anew for each job would take long
_idle: "queue.SimpleQueue[subprocess.Popen[bytes]]" = queue.SimpleQueue()


@dataclass(frozen=True)
class Outcome:
    """
    :param job: What was run
    :param result: Content of the result file, None if the run failed
    :param failure: Why the run failed, None if it did not
    """

    job: Job
    result: str | None = None
    failure: str | None = None


def launch(job: Job, out: Path, command: str) -> Outcome:
    """
    Run a job in another process and wait for it.

    :param job: What to run
    :param out: Folder of the comparison
    :param command: Command line of the comparison, kept beside the result
    :return: What came of it; never raises for what happens in the run
    """
    folder = out / job.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG_FILE
    request = {"job": job.to_dict(), "out": str(out), "log": str(log), "command": command}
    with _worker(log) as worker:
        code = _ask(worker, json.dumps(request))
    if code == 0:
        return Outcome(job, result=(folder / RESULT_FILE).read_text())
    return Outcome(job, failure=f"{_explain(code, log)}; see {log}")


@contextlib.contextmanager
def _worker(log: Path) -> "Iterator[subprocess.Popen[bytes]]":
    try:
        worker = _idle.get_nowait()
    except queue.Empty:
        worker = _start(log)
    try:
        yield worker
    except BaseException:
        _stop(worker)
        raise
    if worker.poll() is None:
        _idle.put(worker)
    else:
        _stop(worker)


def _start(log: Path) -> "subprocess.Popen[bytes]":
    package_parent = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        # Must be known before the libraries are loaded
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    }
    with log.open("wb") as stderr:  # why it could not start is of interest; a job makes the file its own
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_attention_ac.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )


def _ask(worker: "subprocess.Popen[bytes]", request: str) -> int:
    """
    :param worker: Process to run the job
    :param request: The job, one line of JSON
    :return: Exit code of the job; that of the worker if it ended without an answer
    """
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


def stop_idle() -> None:
    """End the processes that wait for a job."""
    with contextlib.suppress(queue.Empty):
        while True:
            _stop(_idle.get_nowait())


def _explain(code: int, log: Path) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else f"ended with exit code {code}"
