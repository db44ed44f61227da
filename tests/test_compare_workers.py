"""Comparison: the processes of the runs, and what is refused before any of them is started."""

import functools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from test_compare import make_result
from test_compare_settings import SHORT, one_job

from sb3_attention_ac.compare import backends, comparison, jobs, launcher
from sb3_attention_ac.compare.__main__ import main
from sb3_attention_ac.compare.backends import make_backend
from sb3_attention_ac.compare.comparison import compare
from sb3_attention_ac.compare.devices import check_device
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.launcher import check_worker, launch
from sb3_attention_ac.compare.outcome import Outcome
from sb3_attention_ac.compare.report import write_report
from sb3_attention_ac.compare.run import run
from sb3_attention_ac.compare.settings import Job
from sb3_attention_ac.compare.storage import to_text

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pygame"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:popgym"),
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> "list[subprocess.Popen[bytes]]":
    """Processes that answer a job as ANSWER says, in place of those that train; those started so far."""
    processes = []

    def start(log: Path) -> "subprocess.Popen[bytes]":
        script = "import sys, time\nfor line in sys.stdin:\n    " + os.environ["ANSWER"]
        command = [sys.executable, "-u", "-c", script]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        processes.append(process)
        return process

    monkeypatch.setattr(launcher, "_start", start)
    monkeypatch.setattr(launcher, "_idle", queue.SimpleQueue())
    return processes


def finished_folders(out: Path, count: int) -> list[Job]:
    """Runs that have a result already, so that a process that says it is done is believed."""
    made = [make_result("good", "A", seed, (0.0, 1.0, 2.0)) for seed in range(count)]
    for result in made:
        (out / result.job.folder).mkdir(parents=True)
        (out / result.job.folder / "result.json").write_text(to_text(result))
    return [result.job for result in made]


# ---- processes


def test_a_process_that_ends_after_a_job_gets_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: "list[subprocess.Popen[bytes]]"
) -> None:
    """Where processes cannot fork: such a one still lives for a moment after its answer."""
    monkeypatch.setenv("ANSWER", "print(0); time.sleep(0.3); sys.exit()")
    monkeypatch.setattr(launcher, "FORKS", False)
    outcomes = [launch(job, tmp_path, "") for job in finished_folders(tmp_path, 3)]
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert [process.poll() for process in started] == [0] * 3


def test_a_process_that_was_killed_while_it_waited_gets_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: "list[subprocess.Popen[bytes]]"
) -> None:
    monkeypatch.setenv("ANSWER", "print(0)")
    monkeypatch.setattr(launcher, "FORKS", True)
    first, second, third = finished_folders(tmp_path, 3)
    assert launch(first, tmp_path, "").failure is None
    started[0].kill()
    started[0].wait()
    assert [launch(job, tmp_path, "").failure for job in (second, third)] == [None, None]
    assert len(started) == 2
    launcher.stop_workers()
    assert started[1].poll() == 0


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interruption_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: "list[subprocess.Popen[bytes]]", n_jobs: int
) -> None:
    """In a notebook the process that compares lives on: runs must not, or the same command would do them twice at once."""
    # As the process of a run does, it ends when its input closes
    monkeypatch.setenv("ANSWER", "sys.stdin.read(); sys.exit()")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupt() -> None:
        while len(started) < n_jobs:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        jobs.execute(finished_folders(tmp_path, 4), tmp_path, "", make_backend("local"), n_jobs)
    signal.signal(signal.SIGINT, before)
    assert len(started) == n_jobs
    assert all(process.poll() is not None for process in started)


def test_an_error_begins_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: "list[subprocess.Popen[bytes]]"
) -> None:
    monkeypatch.setenv("ANSWER", "time.sleep(0.2); print(0)")
    served: list[Path] = []
    serve = launcher._serve
    monkeypatch.setattr(launcher, "_serve", lambda request, log: (served.append(log), serve(request, log))[1])

    def full_disk() -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        jobs.execute(finished_folders(tmp_path, 30), tmp_path, "", make_backend("local"), 2, after_each=full_disk)
    begun = len(served)
    time.sleep(1)
    assert begun == len(served) < 10
    assert all(process.poll() is not None for process in started)


def test_results_of_other_machines_are_kept_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster brings them home; what was there must still be there if the rest is interrupted."""
    made = [make_result("good", "A", seed, (0.0, 1.0, 2.0)) for seed in range(3)]

    def elsewhere(job: Job, out: Path, command: str) -> Outcome:
        if job.seed == 2:
            raise KeyboardInterrupt
        return Outcome(job, result=to_text(made[job.seed]))

    monkeypatch.setattr(backends, "launch", elsewhere)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        jobs.execute(
            [result.job for result in made], tmp_path, "", make_backend("local"), 1,
            after_each=lambda: seen.append(len(list(tmp_path.glob("runs/*/*/*/result.json")))),
        )  # fmt: skip
    assert seen == [1, 2]


def test_error_of_a_run_is_the_line_that_names_it(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        "start\nTraceback (most recent call last):\n  File\nKeyError: 1\n\nTraceback (most recent call last):\n  File\n"
        "some.package.BadError: loc is\ntensor([[nan],\n        [nan]])\n"
    )
    assert launcher._explain(1, log) == "BadError: loc is"
    log.write_text("a library said\nSegmentation fault\n")
    assert launcher._explain(1, log) == "Segmentation fault"
    assert launcher._explain(-9, log) == "killed by SIGKILL"
    assert launcher._explain(3, tmp_path / "none") == "ended with exit code 3"


# ---- environments that only this process knows

MODULE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("Beside-v0", CartPoleEnv, max_episode_steps=20)
"""


@pytest.mark.slow
def test_an_environment_of_a_notebook_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Notebook-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=20)
    try:
        arguments = ["--algos", "ppo", "--envs", "CartPole-v1", "Notebook-v0", "--hyperparams", "sb3", "--seeds", "1"]
        assert main([*arguments, "--out", str(tmp_path)]) == 2
    finally:
        del gym.registry["Notebook-v0"]
    message = capsys.readouterr().err
    assert "cannot create all of the environments (CompareError: Unknown environment 'Notebook-v0'" in message
    assert "module that can be imported, and name that module with --gym-packages" in message
    assert not list(tmp_path.glob("runs/*"))
    assert launcher._idle.empty()


@pytest.mark.slow
def test_modules_are_found_where_this_process_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a script that is run from elsewhere, or in a folder that a notebook has added."""
    (tmp_path / "beside_the_script.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        check_worker({"Beside-v0": {}}, ["beside_the_script"], tmp_path)
    finally:
        launcher.stop_workers()
    assert not (tmp_path / "log.txt").exists()


# ---- devices


@pytest.mark.parametrize(
    ("name", "cards", "message"),
    [
        ("cuda", 0, "'cuda' was given, but PyTorch finds no GPU on this machine"),
        ("cuda:0", 0, "finds no GPU"),
        ("cuda:1", 1, "finds 1 GPU on"),
        ("cuda:4", 2, "finds 2 GPUs, counted from 0, on"),
        ("mps", 0, "PyTorch cannot use it"),
        ("gpu", 0, "'gpu' is unknown to PyTorch"),
        ("", 0, "'' is unknown to PyTorch"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, cards: int, message: str
) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(th.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(comparison, "check_worker", lambda *_: pytest.fail("refused too late"))
    arguments = ["--algos", "ppo", "--envs", "CartPole-v1", "--seeds", "1", "--device", name, "--out", str(tmp_path)]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(CompareError, match="Give --device cpu, or auto"):
        check_device(name)


def test_devices_that_are_there_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    for name in ("auto", "cpu", "cuda", "cuda:1"):
        check_device(name)


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_report_states_the_device_that_was_used(tmp_path: Path) -> None:

    auto = replace(SHORT, device="auto")
    result = run(one_job(protocol=auto), tmp_path, "test")
    page = write_report([result], (), {}, tmp_path, None).report.read_text()
    assert "(device: cpu, one thread" in page
    with pytest.raises(CompareError, match="no GPU"):  # a machine of a cluster says so itself
        run(one_job(protocol=replace(SHORT, device="cuda")), tmp_path, "test")


def test_a_finished_comparison_needs_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done(job: Job, out: Path, command: str) -> Outcome:

        return Outcome(job, result=to_text(replace(make_result("ppo", job.env, job.seed, (0.0, 1.0, 2.0)), job=job)))

    monkeypatch.setattr(backends, "launch", done)
    monkeypatch.setattr(comparison, "check_worker", lambda *_: None)
    monkeypatch.setattr(comparison, "check_device", lambda *_: None)
    arguments: dict[str, Any] = {"hyperparams": "sb3", "n_jobs": 1}
    compare(["ppo"], ["CartPole-v1"], 1, tmp_path, **arguments)
    monkeypatch.setattr(comparison, "check_device", lambda *_: pytest.fail("nothing is to be run"))
    compare(["ppo"], ["CartPole-v1"], 1, tmp_path, **arguments)


# ---- Ray


def test_runs_on_a_cluster_are_brought_home_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RayError(Exception):
        pass

    def get(task: Callable[[], Outcome]) -> Outcome:
        outcome = task()
        if outcome.job.seed == 1:
            raise RayError("the machine left\nat noon")
        if outcome.job.seed == 2:
            cluster.stop()  # as the interruption of another thread does
            raise KeyboardInterrupt
        return outcome

    cancelled: list[bool] = []
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        remote=lambda max_retries: lambda launch: SimpleNamespace(remote=lambda *job: functools.partial(launch, *job)),
        get=get,
        cancel=lambda task, force: cancelled.append(force),
        exceptions=SimpleNamespace(RayError=RayError),
        cluster_resources=lambda: {"CPU": 6.0},
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    made = [make_result("good", "A", seed, (0.0, 1.0, 2.0)) for seed in range(3)]
    monkeypatch.setattr(backends, "launch", lambda job, out, command: Outcome(job, to_text(made[job.seed])))
    cluster = make_backend("ray")
    assert [cluster.n_jobs(asked) for asked in (None, 2, -1, -2, -9)] == [6, 2, 6, 5, 1]
    first, second, third = (result.job for result in made)
    outcomes = jobs.execute([first, second], tmp_path, "", cluster, 2)
    assert outcomes[0].result == (tmp_path / first.folder / "result.json").read_text() == to_text(made[0])
    assert outcomes[1].failure == "RayError of Ray: the machine left"
    with pytest.raises(KeyboardInterrupt):
        jobs.execute([third], tmp_path, "", cluster, 1)
    assert cancelled == [True]
    cluster.stop()
    assert cancelled == [True]  # nothing is left that runs
