"""Comparison: results that are there already, and real (short) runs."""

import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_compare_settings import SHORT, one_job

from sb3_attention_ac.compare.__main__ import main
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.jobs import plan, read_finished
from sb3_attention_ac.compare.run import run
from sb3_attention_ac.compare.settings import Protocol, Variant
from sb3_attention_ac.compare.storage import Evaluation, Result, to_text, write_atomically
from sb3_attention_ac.compare.variants import load_variants

# RL Zoo imports what it finds installed
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pygame"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:popgym"),
]


def numbers(result: Result) -> list[tuple[int, tuple[float, ...]]]:
    return [(evaluation.steps, evaluation.returns) for evaluation in result.evaluations]


# ---- results that are there already


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    job = one_job()
    result = Result(job, (), 256, 1.0, 1.0, 1, {}, {})
    write_atomically(tmp_path / job.folder / "result.json", to_text(result))
    assert list(read_finished([job], tmp_path)) == [job.folder]
    with pytest.raises(CompareError, match=r"other settings: hyperparams\.gamma: 0\.98 there, 0\.5 requested"):
        read_finished([one_job(gamma=0.5)], tmp_path)
    longer = Protocol(steps=512, evaluations=2, episodes=2)
    with pytest.raises(CompareError, match=r"protocol\.steps: 256 there, 512 requested"):
        read_finished([one_job("a2c", protocol=longer)], tmp_path)
    assert read_finished([one_job("a2c")], tmp_path) == {}


def test_all_finished_runs_are_reported_on_any_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to run: settings.json is still that of the call, and a Latin-1 terminal has no arrow."""
    protocol = Protocol(steps=256, evaluations=1, episodes=2)
    evaluations = (Evaluation(0, 0, 0.0, (20.0, 30.0), (20, 30)), Evaluation(1, 256, 1.0, (90.0, 80.0), (90, 80)))
    for seed in range(2):
        job = replace(one_job(protocol=protocol), seed=seed)
        result = Result(job, evaluations, 256, 1.0, 1.0, 1, {}, {"time": "2026"})
        write_atomically(tmp_path / job.folder / "result.json", to_text(result))
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="latin-1")
    monkeypatch.setattr("sys.stdout", terminal)
    arguments = ["--algos", "ppo", "--envs", "CartPole-v1", "--steps", "256", "--evaluations", "1", "--episodes", "2"]
    assert main([*arguments, "--seeds", "2", "--out", str(tmp_path)]) == 0
    terminal.flush()
    assert b"final IQM ?" in written.getvalue()
    assert json.loads((tmp_path / "settings.json").read_text())["seeds"] == [0, 1]


def test_corrupt_result_is_named_and_rerun_on_request(tmp_path: Path) -> None:
    job = one_job()
    write_atomically(tmp_path / job.folder / "result.json", "{")
    with pytest.raises(CompareError, match=r"seed-0/result\.json is corrupt .* Give --rerun-corrupt"):
        read_finished([job], tmp_path)
    assert read_finished([job], tmp_path, rerun_corrupt=True) == {}


# ---- runs


def test_run_evaluates_evenly_and_repeats_exactly(tmp_path: Path) -> None:
    job = one_job("a2c", "Pendulum-v1")  # its statistics of normalization must reach the evaluation
    first, again = run(job, tmp_path / "1", "test"), run(job, tmp_path / "2", "test")
    assert job.hyperparams["normalize"]
    assert [evaluation.point for evaluation in first.evaluations] == [0, 1, 2]
    assert [evaluation.steps for evaluation in first.evaluations] == [0, 128, 256]
    assert all(len(evaluation.returns) == 2 for evaluation in first.evaluations)
    assert numbers(first) == numbers(again)
    assert first.train_seconds > 0 and first.evaluations[-1].seconds == first.train_seconds
    assert first.arguments["gamma"] == "0.9" and first.arguments["vf_coef"] == "0.4"
    assert first.provenance["versions"]["stable_baselines3"]


def test_evaluations_do_not_change_training(tmp_path: Path) -> None:
    few = run(one_job(protocol=Protocol(steps=512, evaluations=1, episodes=2, deterministic=False)), tmp_path / "1", "test")
    many = run(one_job(protocol=Protocol(steps=512, evaluations=4, episodes=2, deterministic=False)), tmp_path / "2", "test")
    assert few.evaluations[-1].returns == many.evaluations[-1].returns
    assert few.evaluations[0].returns == many.evaluations[0].returns


def test_every_agent_starts_the_same_episodes(tmp_path: Path) -> None:
    # Same seed and same network: untrained, both algorithms act alike, so their episodes differ only if the starts do
    protocol = Protocol(steps=8, evaluations=1, episodes=12)
    ppo, a2c = (run(one_job(algo, protocol=protocol), tmp_path, "test").evaluations[0] for algo in ("ppo", "a2c"))
    assert ppo.returns == a2c.returns
    assert len(set(ppo.returns)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ars", "dqn", "ppo_lstm", "qrdqn", "trpo", "aac"])
def test_algorithms_of_the_zoo_take_part(tmp_path: Path, algo: str) -> None:
    assert len(run(one_job(algo), tmp_path, "test").evaluations) == 3


@pytest.mark.slow
@pytest.mark.parametrize("variant", load_variants("ladder"), ids=str)
def test_ladder_runs(tmp_path: Path, variant: Variant) -> None:
    (job,) = plan([variant], ["CartPole-v1"], 1, SHORT, "zoo")
    assert len(run(job, tmp_path, "test").evaluations) == 3


# ---- whole comparisons, in processes of their own

COMPARISON = ["--algos", "ppo", "a2c", "--envs", "CartPole-v1", "MountainCar-v0", "--seeds", "3", "--n-jobs", "2"]
COMPARISON += ["--steps", "256", "--evaluations", "2", "--episodes", "2"]
TIMINGS = ["train_seconds", "evaluation_seconds", "steps_per_second"]


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "sb3_attention_ac.compare", *COMPARISON, "--out", str(out), *more]


def scores(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "runs.csv").drop(columns=TIMINGS)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(out), check=True)
    return out


def wait_for(out: Path, count: int, process: "subprocess.Popen[bytes]") -> list[Path]:
    while True:
        found = list(out.glob("runs/*/*/*/result.json"))
        if len(found) >= count:
            return found
        assert process.poll() is None, "the comparison ended too early"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_comparison_resumes(tmp_path: Path, uninterrupted: Path) -> None:
    with subprocess.Popen(command(tmp_path)) as process:
        wait_for(tmp_path, 4, process)
        process.send_signal(signal.SIGKILL)
    time.sleep(1)  # no run may live on
    finished = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("runs/*/*/*/result.json")}
    time.sleep(5)
    assert 4 <= len(finished) < 12
    assert set(tmp_path.glob("runs/*/*/*/result.json")) == set(finished)
    subprocess.run(command(tmp_path), check=True)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished} == finished
    pd.testing.assert_frame_equal(scores(tmp_path), scores(uninterrupted))
    assert (tmp_path / "summaries.csv").read_bytes() == (uninterrupted / "summaries.csv").read_bytes()
    assert (tmp_path / "improvement.csv").read_bytes() == (uninterrupted / "improvement.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process of a run in /proc")
def test_killed_run_is_named_and_the_rest_goes_on(tmp_path: Path, uninterrupted: Path) -> None:
    with subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE) as process:
        wait_for(tmp_path, 1, process)
        os.kill(a_new_run_of(process.pid), signal.SIGKILL)
        assert process.stderr is not None
        message = process.stderr.read().decode()
    assert process.returncode == 1
    (failure,) = [line for line in message.splitlines() if line.startswith("failed: ")]
    assert "killed by SIGKILL" in failure
    assert len(list(tmp_path.glob("runs/*/*/*/result.json"))) == 11
    assert "Failed runs" in (tmp_path / "report.html").read_text()
    subprocess.run(command(tmp_path), check=True)
    pd.testing.assert_frame_equal(scores(tmp_path), scores(uninterrupted))


def a_new_run_of(comparison: int) -> int:
    """
    :param comparison: Process of a comparison
    :return: Process of a run that has just started: another one may have written its result, and not yet ended
    """
    known = runs_of(comparison)
    while True:
        if new := runs_of(comparison) - known:
            return new.pop()


def runs_of(comparison: int) -> set[int]:
    """
    :param comparison: Process of a comparison
    :return: Processes of its runs: the children of its children
    """
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # has just ended
            continue
    return {process for process, parent in parents.items() if parents.get(parent) == comparison}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ray_gives_the_same_numbers(tmp_path: Path, uninterrupted: Path) -> None:
    pytest.importorskip("ray")
    subprocess.run(command(tmp_path, "--backend", "ray"), check=True)
    pd.testing.assert_frame_equal(scores(tmp_path), scores(uninterrupted))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_machine_of_a_cluster_is_lost_in_the_middle(tmp_path: Path, uninterrupted: Path) -> None:
    """Three nodes on this machine, one of them killed: its runs are done by the others, and nothing is lost."""
    pytest.importorskip("ray")
    cluster = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        with subprocess.Popen(command(tmp_path, "--n-jobs", "3", "--backend", "ray", "--address", cluster.address)) as process:
            wait_for(tmp_path, 2, process)
            cluster.remove_node(nodes[0], allow_graceful=False)
            assert len(list(tmp_path.glob("runs/*/*/*/result.json"))) < 12
        assert process.returncode == 0
    finally:
        cluster.shutdown()
    pd.testing.assert_frame_equal(scores(tmp_path), scores(uninterrupted))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_other_order_gives_the_same_numbers(tmp_path: Path, uninterrupted: Path) -> None:
    for path in uninterrupted.glob("runs/a2c/*/seed-[01]"):
        shutil.copytree(path, tmp_path / path.relative_to(uninterrupted))
    subprocess.run(command(tmp_path, "--n-jobs", "1"), check=True)
    pd.testing.assert_frame_equal(scores(tmp_path), scores(uninterrupted))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_finished_run_is_an_error(tmp_path: Path) -> None:
    variants = tmp_path / "broken.yml"
    variants.write_text("broken: {algo: ppo, hyperparams: {no_such_argument: 1}}")
    arguments = ["--variants", str(variants), "--envs", "CartPole-v1", "--seeds", "1", "--steps", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "sb3_attention_ac.compare", *arguments, "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "No run has finished" in done.stderr
    assert "broken on CartPole-v1, seed 0: TypeError" in done.stderr and "no_such_argument" in done.stderr
    assert not (tmp_path / "table.md").exists()
    assert np.size(list(tmp_path.glob("*.csv"))) == 0
