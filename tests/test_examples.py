"""Every example runs, with few steps."""

import functools
import importlib
import importlib.util
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_attention_ac import AAC
from sb3_attention_ac.inspection import collect_trajectory

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run_example(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run_example


@pytest.mark.slow
def test_train_evaluate_inspect(run, tmp_path, capsys):
    run("train.py", "--steps", "256")
    assert (tmp_path / "aac_cartpole.zip").is_file()
    run("evaluate.py", "--episodes", "2", "--steps", "5")
    printed = capsys.readouterr().out
    assert "Mean reward: " in printed and "Mean reward per step: 1.00" in printed
    run("inspect_attention.py", "--model", "aac_cartpole", "--env", "CartPole-v1", "--network", "critic", "--length", "20")
    assert {path.name for path in tmp_path.glob("*.png")} == {"attention.png", "values.png"}


@pytest.mark.slow
def test_predict_next(run, tmp_path):
    run("predict_next.py", "--steps", "1024", "--length", "20")
    assert (tmp_path / "prediction.png").is_file()


def test_predictions_stop_where_the_episode_ends(monkeypatch, tmp_path):
    """The next episode's first observation was led to by no action."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("predict_next_example", EXAMPLES / "predict_next.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = AAC("MlpPolicy", "CartPole-v1", n_steps=64, aux_loss="next_step", seed=0)
    with th.no_grad():  # always to the right, so that the pole falls
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([0.0, 1.0]))
    model.save("model")
    drawn = {}

    def draw(expected, real, names):
        drawn.update(expected=expected, real=real)
        return Figure()

    monkeypatch.setattr(example, "plot_predictions", draw)
    monkeypatch.setattr(sys, "argv", ["predict_next.py", "--model", "model", "--env", "CartPole-v1", "--length", "100"])
    example.main()
    trajectory = collect_trajectory(model, make_vec_env("CartPole-v1", seed=1), 101)
    length = 1 + int(trajectory.episode_starts[0, 1:].float().argmax())  # steps of the first episode
    assert 1 < length < 100
    assert drawn["real"].shape == drawn["expected"].shape == (length - 1, 5)
    assert np.all(np.diff(drawn["real"][:, 1]) >= 0)  # the cart never jumps back


def test_an_episode_of_one_step_has_nothing_to_predict(run, tmp_path):
    AAC("MlpPolicy", "CartPole-v1", n_steps=64, aux_loss="next_step", seed=0).save(tmp_path / "model")
    gym.register("Short-v0", lambda: gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 1))
    with pytest.raises(SystemExit, match="one step"):
        run("predict_next.py", "--model", "model", "--env", "Short-v0", "--length", "5")
    del gym.registry["Short-v0"]


@pytest.mark.slow
def test_a_normalized_model_is_shown_with_its_statistics(run, tmp_path):
    venv = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    model = AAC("MlpPolicy", venv, n_steps=64, aux_loss="live").learn(128)
    model.save("model")
    venv.save("vecnormalize.pkl")
    given = ["--model", "model", "--env", "CartPole-v1", "--stats", "vecnormalize.pkl", "--length", "20"]
    run("inspect_attention.py", *given, "--network", "critic")
    run("predict_next.py", *given)
    assert {path.name for path in tmp_path.glob("*.png")} == {"attention.png", "values.png", "prediction.png"}


@pytest.mark.slow
def test_compare_ppo_a2c(run, capsys):
    run("compare_ppo_a2c.py", "--steps", "256", "--episodes", "2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["PPO", "A2C", "AttentionActorCritic"]


def results(printed: str) -> list[str]:
    """The lines beside the progress bars, of which there has to be one for each training"""
    lines = [line for line in printed.splitlines() if line.strip()]
    assert sum("100%" in line for line in lines) == 2
    return [line for line in lines if "%" not in line]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rich is experimental")  # of tqdm, about its bar
def test_bandit(run, capsys):
    run("bandit.py", "--steps", "2560", "--episodes", "10")
    lines = results(capsys.readouterr().out)
    assert [line.split(":")[0] for line in lines[1:]] == ["without PreviousActionReward", "with PreviousActionReward"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rich is experimental")  # of tqdm, about its bar
def test_tmaze(run, capsys):
    run("tmaze.py", "--steps", "20000", "--length", "8")
    guesses, remembers = (float(line.split(": ")[1]) for line in results(capsys.readouterr().out)[1:])
    assert guesses < 3 and remembers == 4


@pytest.mark.slow
def test_masks_and_memory(run, capsys):
    run("masks_and_memory.py", "--steps", "2048", "--episodes", "10", "--no-progress")
    shots = {line.split(":")[0]: float(line.split(": ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()}
    assert list(shots) == ["masks alone (MaskablePPO)", "memory alone (AAC)", "masks and memory (AAC)"]
    without = shots.pop("memory alone (AAC)")
    assert max(shots.values()) <= 16 < without  # masks forbid to shoot at a cell twice


@pytest.mark.slow
def test_privileged_critic(run, capsys):
    run("privileged_critic.py", "--steps", "1024", "--episodes", "2", "--no-progress")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].startswith("and the constants: ") and "without the constants: " in lines[2]


@pytest.mark.slow
def test_inspect_attention_with_memory(run, tmp_path):
    run("inspect_attention.py", "--steps", "1024", "--length", "12", "--out", "memory.png")
    assert (tmp_path / "memory.png").is_file()


@pytest.fixture
def throughput(monkeypatch):
    """The benchmark, in threads of this process: starting others and importing everything there takes long"""
    monkeypatch.syspath_prepend(EXAMPLES.parent / "benchmarks")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    module = importlib.import_module("throughput")
    monkeypatch.setattr(module, "own_process", functools.partial(ThreadPoolExecutor, max_workers=1))
    return module


SMALL = "--envs CartPole-v1 --n-envs 2 --steps 16 --repeats 2 --n-steps 8 --n-epochs 1 --batch-size 8".split()


@pytest.mark.slow
def test_throughput(throughput, tmp_path):
    throughput.main([*SMALL, "--algos", *throughput.ALGORITHMS, "--out", str(tmp_path / "speed.md")])
    text = (tmp_path / "speed.md").read_text()
    assert "## CartPole-v1, 2 environment(s)" in text and "torch" in text
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")][1:]
    rows = [row for row in rows if row[1] in throughput.ALGORITHMS]
    assert [row[1] for row in rows] == list(throughput.ALGORITHMS)
    ppo = rows[list(throughput.ALGORITHMS).index("ppo")]
    assert ppo[4] == ppo[6] == ppo[8] == "1.00"  # beside itself
    assert all(float(row[column]) > 0 for row in rows for column in (2, 5, 7, 10))
    assert all(0 < float(row[9].strip("%")) <= 100 for row in rows)


@pytest.mark.slow
def test_throughput_of_images_in_bfloat16(throughput, capsys):
    """As on a GPU, but for the compiler"""
    images = [*SMALL, "--envs", "CarRacing-v3", "--n-envs", "1", "--network", "d_model=32", "--bf16"]
    throughput.main([*images, "--algos", "ppo", "aac", "aac-memory", "ppo_lstm"])
    assert "bf16 True" in (printed := capsys.readouterr().out)
    assert all(f"| {algo}" in printed for algo in ("ppo", "aac", "aac-memory", "ppo_lstm"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["context_length", "n_envs", "n_steps"])
def test_throughput_sweep(throughput, name, capsys):
    throughput.main([*SMALL, "--algos", "aac", "--sweep", name, "--sizes", "4", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["4", "8", "exponent"]


@pytest.mark.slow
def test_throughput_with_environments_in_processes_of_their_own(throughput, capsys):
    throughput.main([*SMALL, "--algos", "aac", "random", "--subproc"])
    header, _, aac, random = ([cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()[-4:])
    assert header[5] == "training steps/s" and header[10] == "peak MiB"
    assert float(aac[5]) > float(aac[2]) and float(aac[7]) > float(aac[2])  # each is a part of the whole
    assert random[5] == "-"


def test_growth_exponent(throughput):
    tables = importlib.import_module("throughput_tables")
    assert tables.growth_exponent([2, 4, 8], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_medians_of_repetitions(throughput):
    setup = throughput.Setup("ppo", "CartPole-v1", 1, 8, 8, 1, "cpu", 1)
    seconds = [(4.0, 2.0, 1.0, 0.5), (2.0, 1.9, 0.9, 0.6), (100.0, 2.1, 1.1, 0.4)]  # the last one waited for the processor
    result = throughput.summarize(setup, [throughput.Measurement(8, *times, 300.0) for times in seconds])
    assert (result.whole, result.spread, result.cpu) == (2.0, (0.08, 4.0), 4.0)
    assert (result.collecting, result.training, result.env_share) == pytest.approx((8.0, 8.0, 0.5))


def test_waiting_is_not_processor_time(throughput):
    """But where the processor waits for a GPU or for other processes, it counts"""
    setup = throughput.Setup("ppo", "CartPole-v1", 1, 8, 8, 1, "cpu", 1)
    stopwatches = [throughput.Stopwatch(setup), throughput.Stopwatch(setup._replace(subproc=True))]
    for stopwatch in stopwatches:
        stopwatch.timed("training", functools.partial(time.sleep, 0.2))()
    own, by_clock = (stopwatch.read(8) for stopwatch in stopwatches)
    assert own.seconds > 0.2 > 10 * own.training_cpu_seconds
    assert by_clock.training_cpu_seconds >= 0.2
