"""Comparison: names and settings against RL Zoo, and real (short) runs."""

import importlib.util
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
from gymnasium import spaces

from sb3_attention_ac.compare.__main__ import main
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.experiment import merge, read_hyperparams
from sb3_attention_ac.compare.jobs import plan, read_finished
from sb3_attention_ac.compare.run import run
from sb3_attention_ac.compare.settings import Job, Protocol, Variant
from sb3_attention_ac.compare.storage import Evaluation, Result, to_text, write_atomically
from sb3_attention_ac.compare.variants import SHIPPED, collect_variants, load_variants

# RL Zoo imports what it finds installed
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pygame"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:popgym"),
]

SHORT = Protocol(steps=256, evaluations=2, episodes=2)


def one_job(
    algo: str = "ppo", env: str = "CartPole-v1", protocol: Protocol = SHORT, source: str = "zoo", **changes: object
) -> Job:
    (job,) = plan([Variant(algo, algo, changes)], [env], 1, protocol, source)
    return job


def numbers(result: Result) -> list[tuple[int, tuple[float, ...]]]:
    return [(evaluation.steps, evaluation.returns) for evaluation in result.evaluations]


# ---- names, hyperparameters, variants


def test_unknown_algorithm(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--algos", "ppo_lstn", "--envs", "CartPole-v1", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: Unknown algorithm 'ppo_lstn'; the closest known names are: ppo_lstm")


def test_unknown_environment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--algos", "ppo", "--envs", "cartpole-v1", "--out", str(tmp_path)]) == 2
    assert "Unknown environment 'cartpole-v1'; the closest known names are: CartPole-v1" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("panda_gym") is not None, reason="panda-gym is installed")
def test_environment_of_a_missing_package(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--algos", "ppo", "--envs", "PandaReach-v3", "--out", str(tmp_path)]) == 2
    assert "package 'panda-gym', which is not installed; run `pip install panda-gym`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--envs", "CartPole-v1"], "There is nothing to compare; name algorithms"),
        (["--algos", "ppo"], "There is nothing to compare on; name environments"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--seeds", "0"], "seeds is 0"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--first-seed", "9998"], "with 5 seeds it must be from 0 to 9995"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--steps", "-5"], "steps is -5"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--hyperparams", "zooo"], "--hyperparams is 'zooo'; give 'zoo'"),
        (["--variants", "lader", "--envs", "CartPole-v1"], "variant file 'lader'; the closest known names are: ladder"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--gym-packages", "no_such"], "module 'no_such' of --gym-packages"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--references", "no_such.yml"], "no_such.yml must map"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--backend", "slurm"], "Unknown backend 'slurm'; known are: local, ray"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--address", "1.2.3.4"], "goes only with --backend ray"),
    ],
)
def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str) -> None:
    assert main([*arguments, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_hyperparams_are_those_of_the_zoo() -> None:
    job = one_job()
    assert job.hyperparams["n_envs"] == 8 and job.hyperparams["learning_rate"] == "lin_0.001"
    assert job.hyperparams["n_timesteps"] == 256


def test_hyperparams_of_another_version() -> None:
    with pytest.warns(UserWarning, match="no hyperparameters for Hopper-v5: those of Hopper-v4 are used"):
        job = one_job(env="Hopper-v5")
    assert job.env == "Hopper-v5" and job.hyperparams["learning_rate"] == 9.80828e-05


def test_hyperparams_of_sb3_of_a_folder_and_of_a_file(tmp_path: Path) -> None:
    assert one_job(source="sb3").hyperparams == {"policy": "MlpPolicy", "n_timesteps": 256}
    assert one_job("ppo_lstm", source="sb3").hyperparams["policy"] == "MlpLstmPolicy"
    (tmp_path / "ppo.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 5, gamma: 0.5}")
    assert one_job(source=str(tmp_path)).hyperparams == {"policy": "MlpPolicy", "n_timesteps": 256, "gamma": 0.5}
    assert "gamma" in one_job("a2c", "Pendulum-v1", source=str(tmp_path)).hyperparams
    assert one_job("a2c", source=str(tmp_path / "ppo.yml")).hyperparams["gamma"] == 0.5


@pytest.mark.parametrize("text", ["CartPole-v1: 5", "- CartPole-v1", "", "CartPole-v1: {gamma: 1, gamma: 2}"])
def test_wrong_file_of_hyperparams_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ppo.yml").write_text(text)
    for source in (tmp_path, tmp_path / "ppo.yml"):
        with pytest.raises(CompareError, match=r"ppo\.yml must map environments to hyperparameters"):
            one_job(source=str(source))
    (tmp_path / "notes.txt").write_text("CartPole-v1: {policy: MlpPolicy}")
    with pytest.raises(CompareError, match=r"notes\.txt'; give 'zoo', 'sb3', a folder .* or one YAML file"):
        one_job(source=str(tmp_path / "notes.txt"))


def test_policy_of_a_variant_must_exist() -> None:
    with pytest.raises(
        CompareError, match="policy of ppo in the variant 'ppo' 'MlpPolicyy'; the closest known names are: MlpP"
    ):
        one_job(policy="MlpPolicyy")
    with pytest.raises(CompareError, match="policy of ppo in the variant 'ppo' '3'"):
        one_job(policy=3)


def test_observations_without_a_policy_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    space = spaces.Dict({"image": spaces.Box(0, 1, (3,)), "mission": spaces.Text(5)})
    variant = Variant("ppo", "ppo")
    with pytest.raises(CompareError, match=r"no policy for the observations of Any-v0.*env_wrapper"):
        read_hyperparams(variant, "Any-v0", space, 100, "sb3")
    wrapped = replace(variant, changes={"env_wrapper": "minigrid.wrappers.FlatObsWrapper"})
    assert "env_wrapper" in read_hyperparams(wrapped, "Any-v0", space, 100, "sb3")


def test_changes_are_merged_into_python_source() -> None:
    merged = merge({"policy_kwargs": "dict(a=1, b=2)", "gamma": 0.9}, {"policy_kwargs": {"b": 3}, "gamma": 0.8})
    assert eval(merged["policy_kwargs"]) == {"a": 1, "b": 3}
    assert merged["gamma"] == 0.8
    assert merge({"policy_kwargs": {"a": 1}}, {"policy_kwargs": {"b": 3}}) == {"policy_kwargs": {"a": 1, "b": 3}}


def test_variant_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("ppo-stack4: {algo: ppo, hyperparams: {frame_stack: 4}}\n")
    assert load_variants(str(path)) == [Variant("ppo-stack4", "ppo", {"frame_stack": 4})]
    for text, message in {
        "a: {algo: ppo, hyperparam: {}}": "the closest known names are: hyperparams",
        "a: {}": "must have an `algo`",
        "a: {algo: 5}": "its 'algo' is 5",
        "a: {algo: [ppo]}": r"its 'algo' is \['ppo'\]",
        "a: {algo: ppo, source: 5}": "its 'source' is 5",
        "a: {algo: ppo, hyperparams: []}": r"its 'hyperparams' is \[\]",
        "a: ppo": "at 'a' it has 'ppo', not a mapping",
        "a: {algo: ppo}\na: {algo: a2c}": "the key 'a' stands twice",
        "a: {algo: ppo, hyperparams: {gamma: 0.9, gamma: 0.8}}": "the key 'gamma' stands twice",
        "- a": "must map names of variants",
        "": "it holds nothing",
        "a: [": "cannot be read",
        "ä: {algo: ppo}": "cannot be read",  # written as Latin-1
    }.items():
        path.write_text(text, encoding="latin-1")
        with pytest.raises(CompareError, match=message):
            load_variants(str(path))
    path.write_text("a: {algo: ppo, hyperparams: &one {gamma: 0.9}}\nb: {algo: ppo, hyperparams: {<<: *one, gamma: 0.8}}")
    assert [variant.changes for variant in load_variants(str(path))] == [{"gamma": 0.9}, {"gamma": 0.8}]
    path.write_text("ppo: {algo: a2c}")
    with pytest.raises(CompareError, match="Two different variants are called 'ppo'"):
        collect_variants(["ppo"], [str(path)])
    path.write_text("a/b: {algo: a2c}")
    with pytest.raises(CompareError, match="cannot name a folder"):
        collect_variants([], [str(path)])


def test_shipped_variants() -> None:
    assert SHIPPED.joinpath("ladder.yml").is_file()
    assert [variant.name for variant in collect_variants(["aac"], ["memory"])] == ["aac", "ppo", "ppo-stack8", "ppo_lstm"]
    names = [variant.name for variant in collect_variants([], ["ladder"])]
    assert names[:3] == ["ppo", "aac-mlp", "aac-attention"]


# ---- results that are there already


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    job = one_job()
    result = Result(job, (), 256, 1.0, 1.0, 1, {}, {})
    write_atomically(tmp_path / job.folder / "result.json", to_text(result))
    assert list(read_finished([job], tmp_path)) == [job.folder]
    with pytest.raises(CompareError, match=r"other settings: hyperparams\.gamma is 0\.98 there, 0\.5 asked"):
        read_finished([one_job(gamma=0.5)], tmp_path)
    longer = Protocol(steps=512, evaluations=2, episodes=2)
    with pytest.raises(CompareError, match=r"protocol\.steps is 256 there, 512 asked"):
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
    job = one_job("a2c", "Pendulum-v1")  # its statistics of normalisation must reach the evaluation
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
