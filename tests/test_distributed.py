"""Several processes are one training run: under torchrun, with gloo."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch as th
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_attention_ac import AAC, distributed
from sb3_attention_ac.train import _command, _silent

pytestmark = pytest.mark.slow


def torchrun(folder: Path, what: str, argument: str = "", n: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", ranks.__file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(ranks.__file__).parent.parent)}
    return subprocess.run(
        [*command, what, argument, str(folder)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def results(folder: Path, what: str, argument: str = "", n: int = 2) -> list[Any]:
    done = torchrun(folder, what, argument, n)
    assert done.returncode == 0, done.stderr[-3000:]
    return [th.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]


def test_the_functions_by_themselves(tmp_path):
    both = results(tmp_path, "helpers")
    values = th.cat([th.arange(6.0) ** 2, th.arange(6.0) ** 2 + 10])
    for found in both:
        th.testing.assert_close(found["std_mean"], th.std_mean(values))
        first, second, third = found["gradients"]
        assert first.tolist() == [1.5, 3.0] and second.tolist() == [2.0, 2.0] and third is None
        assert found["mean"] == 0.5 and found["agree"] == [True, False]
        assert found["envs"].tolist() == [[0, 1], [0, 1]]
        assert found["seed"] == both[0]["seed"] >= 0  # RL Zoo's script would draw one in each


def test_a_process_alone_is_left_alone():
    values = th.rand(5, 2)
    distributed.start(th.device("cpu"))
    assert (distributed.is_active(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    th.testing.assert_close(distributed.std_mean(values), th.std_mean(values))
    assert distributed.mean(0.25) == 0.25 and not distributed.all_agree(False)
    assert distributed.of_all_envs(array := np.zeros((2, 3))) is array


def test_rank_0_alone_saves_however_deep_it_stands(monkeypatch, tmp_path):
    saves = CheckpointCallback(8, str(tmp_path))
    stops = StopTrainingOnMaxEpisodes(3)
    deep = EveryNTimesteps(8, CallbackList([saves, stops]))
    assert distributed.callbacks_of([deep])[0].callback.callbacks == [saves, stops]
    monkeypatch.setattr(distributed, "is_active", lambda: True)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    (first,) = distributed.callbacks_of(deep)
    assert first.callback.callbacks == [saves, stops]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    (kept,) = distributed.callbacks_of([deep, saves])
    assert kept is deep and kept.callback.callbacks == [stops]
    (empty,) = distributed.callbacks_of([EveryNTimesteps(8, saves)])
    assert empty.callback is None


@pytest.mark.parametrize("kind", ["mlp", "memory"])
def test_after_fifty_updates_all_have_the_same_parameters(tmp_path, kind):
    first, second = results(tmp_path, "train", kind)
    assert first["steps"] == second["steps"] == 50 * 2 * 2 * 16
    for name, parameter in first["parameters"].items():
        assert th.equal(parameter, second["parameters"][name]), name
    assert not np.array_equal(first["observations"], second["observations"]), "the same environments twice"
    for name in ("mean", "count", "return"):
        np.testing.assert_array_equal(first[name], second[name])
    assert first["count"] == pytest.approx(first["steps"] + 4, abs=5)
    assert second["outputs"] == []  # rank 0 logs


@pytest.mark.parametrize("kind", list(ranks.NETWORKS))
def test_two_processes_take_the_step_of_one(tmp_path, kind):
    """One epoch, one minibatch: that of one process with all environments"""
    model = ranks.make_model(kind, 8, n_epochs=1, batch_size=128)
    model.learn(2 * 128)
    taken = {name: value.clone() for name, value in model.policy.state_dict().items()}
    buffer = model.rollout_buffer
    storage = {name: array.copy() for name, array in buffer.storage.arrays.items()}
    targets = {name: getattr(buffer, name) for name in ("values", "mlp_values", "log_probs", "advantages", "returns")}
    th.save({"parameters": taken, "storage": storage, "targets": targets}, tmp_path / "given.pt")
    model.policy.optimizer.state.clear()
    model.train()
    for found in results(tmp_path, "step", kind):
        for name, parameter in model.policy.state_dict().items():
            th.testing.assert_close(found["parameters"][name], parameter, rtol=0, atol=1e-6)
    assert any(not th.equal(taken[name], parameter) for name, parameter in model.policy.state_dict().items())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux alone")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that drops its last tensor while the interpreter ends would abort the process."""
    for found in results(tmp_path, "leave"):
        assert any("gloo" in name for name in found["during"])
        assert not any("gloo" in name for name in found["after"])


def test_one_that_is_killed_ends_the_run(tmp_path):
    """torchrun says which and why; the last checkpoint can be loaded"""
    start = time.monotonic()
    done = torchrun(tmp_path, "stop", "kill")
    assert done.returncode != 0 and time.monotonic() - start < 90
    assert "rank      : 1 (local_rank: 1)" in done.stderr and "SIGKILL" in done.stderr
    checkpoint = max(tmp_path.glob("checkpoint_*.zip"), key=lambda path: int(path.stem.split("_")[1]))
    assert AAC.load(checkpoint, device="cpu").num_timesteps >= 2 * 2 * 150


def test_one_that_fails_ends_the_run(tmp_path):
    done = torchrun(tmp_path, "stop", "fail")
    assert done.returncode != 0 and "the simulator is gone" in done.stderr


def test_a_callback_of_one_stops_all(tmp_path):
    first, second = results(tmp_path, "stop", "stop")
    assert 0 < first["steps"] < 2000 and abs(first["steps"] - second["steps"]) <= 2 * 2 * 16


@pytest.mark.parametrize("what", ["reset", "continue"])
def test_all_go_on_after_a_callback_of_one_has_stopped(tmp_path, what):
    """They have counted differently; statistics are those of all, and what was counted most goes on"""
    first, second = results(tmp_path, "go_on", what)
    assert first["stopped_at"] == 128 and second["stopped_at"] == 80
    assert first["steps"] == second["steps"] == (128 if what == "reset" else 128 + 128)
    np.testing.assert_array_equal(first["means"][0], second["means"][0])
    assert first["means"][1] == second["means"][1]
    for name, parameter in first["parameters"].items():
        assert th.equal(parameter, second["parameters"][name]), name


def test_statistics_go_on_from_those_of_rank_0(tmp_path):
    """Whatever each process has done with its environments before learn()"""
    first, second = results(tmp_path, "statistics")
    for name in ("first", "second"):
        for own, other in zip(first[name], second[name], strict=True):
            np.testing.assert_array_equal(own, other)


def test_statistics_of_something_else_are_refused(tmp_path):
    done = torchrun(tmp_path, "statistics", "other")
    assert done.returncode != 0 and "VecNormalize has statistics of shapes [[(3,), ()], [()]]" in done.stderr


def test_the_progress_bar_counts_the_steps_of_all(tmp_path):
    first, second = results(tmp_path, "progress")
    assert first["bars"] == [(128, 128)] * 4 and second["bars"] == []


def test_the_script_keeps_its_progress_bar(monkeypatch):
    """RL Zoo ends the one it has made"""
    bar = ProgressBarCallback()
    monkeypatch.setattr(distributed, "is_active", lambda: True)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    (kept,) = distributed.callbacks_of([bar])
    assert kept is bar and isinstance(bar, distributed.ProgressOfAll)


def test_rank_0_alone_writes_what_the_script_writes_in_all(tmp_path):
    first, second = results(tmp_path, "records")
    assert (first["formats"], second["formats"]) == (1, 0)
    assert len((tmp_path / "log" / "progress.csv").read_text().splitlines()) == 4
    assert AAC.load(tmp_path / "of_0").num_timesteps == 192 and not (tmp_path / "of_1.zip").exists()


def test_rank_0_alone_prints(tmp_path):
    done = torchrun(tmp_path, "quiet")
    assert done.stdout.count("Using cpu device") == 2, done.stdout
    first, second = (th.load(tmp_path / f"{rank}.pt")["verbose"] for rank in range(2))
    assert (first, second) == ([1, 1], [0, 0])


def test_parameters_that_differ_are_noticed(tmp_path):
    done = torchrun(tmp_path, "stop", "change")
    assert done.returncode != 0 and "The parameters of ranks 0 to 1 are no longer the same" in done.stderr


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("n_envs", "n_envs is [1, 2] on ranks 0 to 1"),
        ("gamma", "gamma is [0.9, 0.99] on ranks 0 to 1"),
        ("masks", "use_masking is [False, True] on ranks 0 to 1"),
        ("network", "The networks differ: "),
    ],
)
def test_processes_have_to_have_the_same_settings(tmp_path, what, message):
    done = torchrun(tmp_path, "unequal", what)
    assert done.returncode != 0 and message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--algo", "ppo"], "--algo ppo cannot train"), ([], "--algo ppo cannot"), (["--algo", "aac", "-optimize"], "-optimize")],
)
def test_what_several_processes_cannot_do_is_refused(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["train", "--env", "CartPole-v1", *arguments])
    with pytest.raises(SystemExit, match=message):
        _command()


def test_only_rank_0_keeps_records():
    given = ["train", "--env", "CartPole-v1", "-P", "--track", "--tensorboard-log", "runs", "-f", "logs"]
    parser = argparse.ArgumentParser()
    for name in ("--env", "--tensorboard-log", "--eval-freq", "--save-freq"):
        parser.add_argument(name)
    parser.add_argument("-f", "--log-folder")
    read = vars(parser.parse_args(_silent(given, "nowhere")[1:]))  # would not know the others
    assert read == dict(env="CartPole-v1", tensorboard_log="", eval_freq="-1", save_freq="-1", log_folder="nowhere")


def test_merged_statistics_are_those_of_everything_seen(monkeypatch):
    """What two have seen since the same start, put together as if one had seen all of it"""
    rng = np.random.default_rng(0)
    start, seen = rng.normal(3, 2, (50, 2)), [rng.normal(0, 1, (30, 2)), rng.normal(9, 4, (10, 2))]
    whole, own = RunningMeanStd(shape=(2,)), RunningMeanStd(shape=(2,))
    for array in (start, *seen):
        whole.update(array)
    own.update(start)
    merged = distributed.MergedStatistics(None)
    merged.statistics, merged._before = [own], [own.copy()]
    other = own.copy()
    own.update(seen[0])
    other.update(seen[1])
    theirs = distributed.MergedStatistics(None)
    theirs.statistics, theirs._before = [other], merged._before
    sent: list[Any] = []
    monkeypatch.setattr(distributed, "_gathered", lambda value: sent.append(value) or [])
    theirs.merge()
    monkeypatch.setattr(distributed, "_gathered", lambda value: [value, sent[0]])
    merged.merge()
    np.testing.assert_allclose(own.mean, whole.mean, rtol=1e-10)
    np.testing.assert_allclose(own.var, whole.var, rtol=1e-8)
    assert own.count == pytest.approx(whole.count)
