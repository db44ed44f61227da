"""Integration with the installed RL Zoo."""

import argparse
import csv
import functools
import importlib
import inspect
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from rl_zoo3 import enjoy, exp_manager, hyperparams_opt, utils
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.plots import plot_train
from rl_zoo3.train import train
from sb3_contrib.common.maskable.evaluation import evaluate_policy as masked_evaluation

import sb3_attention_ac.train
from sb3_attention_ac import AttentionActorCritic, zoo

ROOT = Path(__file__).parents[1]
RL_ZOO = Path(exp_manager.__file__).parent
HYPERPARAMS: dict[str, dict[str, Any]] = yaml.safe_load(zoo.hyperparams_path().read_text())
# Packages that listed environments need but which not everybody has
PACKAGES = {"CarRacing": "cv2", "Bullet": "pybullet_envs_gymnasium", "MiniGrid": "minigrid", "popgym": "popgym"}
MISSING_SENSORS = ["FailingSensors", "PositionOnly-v5", "VelocityOnly-v5"]
PACKAGES |= dict.fromkeys(["TMaze", *MISSING_SENSORS], "sb3_attention_ac.envs")
# Fully observable, with a memory actor because that was found to be better there
MEMORY_WITHOUT_NEED = ("MountainCarContinuous-v0",)
NEEDS_NUMPY_2 = pytest.mark.skipif(np.__version__ < "2", reason="the agents were saved with NumPy 2")
SHORT = ["--env", "CartPole-v1", "--seed", "1", "-n", "64"]
SHORT += ["-params", "n_envs:2", "n_steps:16", "batch_size:16", "n_epochs:1"]


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """Works without the start-up hook too, writes logs into a temporary folder."""
    zoo.register()
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, script: Callable[[], Any], *arguments: str) -> None:
    """Call a script of RL Zoo in this process: starting an interpreter takes longer than what it does here."""
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    script()


def main_of(path: Path) -> Callable[[], Any]:
    """The main part of a script."""
    return functools.partial(runpy.run_path, str(path), run_name="__main__")


def manager(*args: Any, **kwargs: Any) -> ExperimentManager:
    return ExperimentManager(argparse.Namespace(), *args, **kwargs)


def package_of(env_id: str) -> str | None:
    return next((package for part, package in PACKAGES.items() if part in env_id), None)


def import_environments(env_id: str) -> None:
    """Import the package of an environment, skip the test where it is not installed."""
    package = package_of(env_id)
    if package is not None:
        pytest.importorskip(package)


# --- registration -----------------------------------------------------------------------------------------------------


def test_register():
    assert utils.ALGOS["aac"] is exp_manager.ALGOS["aac"] is AttentionActorCritic
    assert hyperparams_opt.HYPERPARAMS_SAMPLER["aac"] is zoo.sample_aac_params
    assert hyperparams_opt.HYPERPARAMS_CONVERTER["aac"] is zoo.convert_aac_params


def test_register_is_idempotent():
    init = ExperimentManager.__init__
    zoo.register()
    assert ExperimentManager.__init__ is init


def test_entries_of_rl_zoo_have_precedence():
    module: Any = ModuleType("rl_zoo3.any")
    module.ALGOS, module.HYPERPARAMS_SAMPLER, module.HYPERPARAMS_CONVERTER = ({"aac": "theirs"} for _ in range(3))
    zoo.on_import("rl_zoo3.utils", module)
    zoo.on_import("rl_zoo3.hyperparams_opt", module)
    assert {*module.ALGOS.values(), *module.HYPERPARAMS_SAMPLER.values(), *module.HYPERPARAMS_CONVERTER.values()} == {"theirs"}


# --- hyperparameter file ----------------------------------------------------------------------------------------------


def test_default_file():
    assert manager("aac", "CartPole-v1", "logs").config == str(zoo.hyperparams_path())
    assert manager(algo="aac", env_id="CartPole-v1", log_folder="logs", config=None).config == str(zoo.hyperparams_path())


def test_explicit_file_has_precedence():
    assert manager("aac", "CartPole-v1", "logs", config="my.yml").config == "my.yml"
    # The same, positionally
    parameters = list(inspect.signature(ExperimentManager).parameters.values())[4:]
    defaults = {parameter.name: parameter.default for parameter in parameters}
    assert manager("aac", "CartPole-v1", "logs", *(defaults | {"config": "my.yml"}).values()).config == "my.yml"
    assert manager("ppo", "CartPole-v1", "logs").config.endswith("ppo.yml")


def test_subclass_of_the_manager():
    class Subclass(ExperimentManager):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.extended = True

    subclass = Subclass(argparse.Namespace(), "aac", "CartPole-v1", "logs")
    assert subclass.extended and subclass.config == str(zoo.hyperparams_path())


@pytest.mark.parametrize("folder", ["rl_zoo3/hyperparams", "hyperparams"], ids=["package", "checkout"])
@pytest.mark.parametrize("exists", [True, False])
def test_file_in_rl_zoo_has_precedence(tmp_path, folder, exists):
    theirs = tmp_path / folder / "aac.yml"

    class Manager:
        def __init__(self, algo: str, config: str | None = None):
            self.algo = algo
            self.config = config or str(theirs)

    if exists:
        theirs.parent.mkdir(parents=True)
        theirs.touch()
    module: Any = ModuleType("rl_zoo3.exp_manager")
    module.ExperimentManager, module.__file__ = Manager, str(tmp_path / "rl_zoo3" / "exp_manager.py")
    zoo.on_import("rl_zoo3.exp_manager", module)
    assert Manager("aac").config == str(theirs if exists else zoo.hyperparams_path())
    assert Manager("aac", "my.yml").config == Manager("ppo", "my.yml").config == "my.yml"
    assert Manager("ppo").config == str(theirs)


def test_every_listed_environment_exists():
    for package in filter(find_spec, PACKAGES.values()):
        __import__(package)
    unknown = [env_id for env_id in HYPERPARAMS if env_id not in gym.registry and env_id not in ("default", "atari")]
    assert [env_id for env_id in unknown if find_spec(package_of(env_id) or "gymnasium")] == []


def test_every_zoo_environment_without_velocities_is_listed():
    assert {env_id for env_id in gym.registry if "NoVel-" in env_id} == {
        env_id for env_id in HYPERPARAMS if "NoVel-" in env_id
    }


@pytest.mark.parametrize("env_id", HYPERPARAMS)
def test_section_parses(env_id):
    # The identifier only has to be one that gymnasium knows
    experiment = manager("aac", "CartPole-v1", "logs", verbose=0)
    hyperparams = experiment._preprocess_hyperparams(dict(HYPERPARAMS[env_id]))[0]
    assert experiment.n_timesteps > 0
    policy_kwargs = hyperparams.get("policy_kwargs", {})
    assert isinstance(policy_kwargs, dict)
    images = "atari" in env_id or "CarRacing" in env_id
    assert hyperparams["policy"] == ("CnnPolicy" if images else "MlpPolicy")
    needs_memory = any(word in env_id for word in ["NoVel", "popgym", "Memory", "TMaze", *MISSING_SENSORS])
    assert policy_kwargs.get("memory_actor", False) == (needs_memory or env_id in MEMORY_WITHOUT_NEED)


def test_every_section_has_its_state():
    """What is said to be measured has five seeds in the CSV files, of as many steps as the entry or what is said of it has."""

    def task_of(env_id: str) -> str:  # as the older files name it
        return env_id.removeprefix("popgym-").removesuffix("-v0") if env_id.startswith("popgym-") else env_id

    runs: dict[str, dict[str, int]] = {}
    for name in ("last_returns", "results"):
        for file in (Path(__file__).parents[1] / "benchmarks").glob(f"*/{name}.csv"):
            for row in csv.DictReader(file.read_text().splitlines()):
                if row.get("variant", row.get("algorithm", "")).startswith("aac"):
                    seeds = runs.setdefault(row.get("task") or task_of(row["environment"]), {})
                    seeds[row["seed"]] = max(seeds.get(row["seed"], 0), int(row["steps"]))
    lines = zoo.hyperparams_path().read_text().splitlines()
    for number, line in enumerate(lines):
        if found := re.match(r"(\S+):", line):
            state = re.search("# (Tuned|Measured|Transferred)(?: at ([0-9,]+) steps)?", line + lines[number - 1])
            assert state, line
            if state[1] == "Measured":
                steps = float(state[2].replace(",", "") if state[2] else HYPERPARAMS[found[1]]["n_timesteps"])
                measured = sum(done >= steps for done in runs[task_of(found[1])].values())
                assert measured >= 5, f"{found[1]}: {measured} seeds of {steps:,.0f} steps, {runs[task_of(found[1])]}"


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [env_id for env_id in HYPERPARAMS if env_id not in ("default", "atari")])
def test_section_constructs(env_id):
    import_environments(env_id)
    experiment = manager("aac", env_id, "logs", verbose=0, eval_freq=-1, device="cpu")
    model, _ = experiment.setup_experiment()
    assert isinstance(model, AttentionActorCritic)
    assert model.policy.memory_actor == ("memory_actor" in HYPERPARAMS[env_id].get("policy_kwargs", ""))
    model.env.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_steps")
@pytest.mark.filterwarnings("ignore:.*infos returned by:UserWarning")  # some of POPGym's environments
@pytest.mark.parametrize("env_id", [env_id for env_id in HYPERPARAMS if env_id not in ("default", "atari")])
def test_section_trains(env_id):
    """Two rollouts and updates, as the entry says but for their sizes."""
    import_environments(env_id)
    short = {"n_envs": 2, "n_steps": 32, "batch_size": 32, "n_epochs": 1, "n_timesteps": 128}
    experiment = manager(
        "aac", env_id, "logs", verbose=0, eval_freq=-1, log_interval=-1, device="cpu", seed=1, hyperparams=short
    )
    model, _ = experiment.setup_experiment()
    before = {name: value.clone() for name, value in model.policy.named_parameters()}
    experiment.learn(model)
    assert model.num_timesteps == 128
    assert any((before[name] != value).any() for name, value in model.policy.named_parameters())


GOOD = {"CartPole-v1": 475, "MountainCarContinuous-v0": 90, "PendulumNoVel-v1": -400, "popgym-RepeatPreviousHard-v0": 0.9}
GOOD |= {"MiniGrid-MemoryS9-v0": 0.9, "Submarine-v0": 1.75}


@NEEDS_NUMPY_2
@pytest.mark.parametrize("folder", sorted((ROOT / "trained_agents" / "aac").iterdir()), ids=lambda folder: folder.name)
def test_trained_agent_plays(monkeypatch, capsys, folder):
    env_id = folder.name.rpartition("_")[0]
    assert (folder / "README.md").is_file()
    if env_id == "Submarine-v0":  # RL Zoo's script knows no masks
        importlib.import_module("benchmarks.action_masks.environments")
        model = AttentionActorCritic.load(folder / f"{env_id}.zip")
        returns = masked_evaluation(model, gym.make(env_id), 20, return_episode_rewards=True, warn=False)[0]
    else:
        import_environments(env_id)
        options = ["--algo", "aac", "--env", env_id, "-f", str(folder.parents[1]), "-n", "1000", "--no-render"]
        call(monkeypatch, enjoy.enjoy, *options)
        returns = [float(total) for total in re.findall(r"Episode Reward: ([-\d.]+)", capsys.readouterr().out)]
    assert returns and min(returns) > GOOD[env_id]


# --- tuning -----------------------------------------------------------------------------------------------------------


def trials(n: int) -> list[tuple[optuna.Trial, dict[str, Any]]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = [study.ask() for _ in range(n)]
    return [(trial, zoo.sample_aac_params(trial, n_actions=1, n_envs=2, additional_args={})) for trial in asked]


# The rollout of a single environment is smaller than some of the sampled minibatches
@pytest.mark.filterwarnings("ignore:batch_size")
def test_samples_are_valid_arguments():
    for _, hyperparams in trials(8):
        model = AttentionActorCritic("MlpPolicy", "CartPole-v1", **hyperparams, device="cpu")
        assert model.policy.architecture.context_length == hyperparams["policy_kwargs"]["context_length"]


def test_converter_gives_what_was_sampled():
    for trial, hyperparams in trials(20):
        params = dict(trial.params)
        schedule = hyperparams.pop("learning_rate")
        converted = zoo.convert_aac_params(params)
        assert converted.pop("learning_rate") == f"lin_{schedule(1.0)}" and schedule(0.5) == schedule(1.0) / 2
        assert converted == hyperparams
        assert params == trial.params


def test_converter_values():
    params = trials(1)[0][0].params
    params |= dict(
        n_steps_pow=6, one_minus_gamma=0.25, context_length_pow=4, memory="actor", net_arch="small", aux_loss="none"
    )
    hyperparams = zoo.convert_aac_params(params)
    assert (hyperparams["n_steps"], hyperparams["gamma"]) == (64, 0.75)
    assert hyperparams["aux_loss"] is hyperparams["aux_coef"] is None
    policy_kwargs = hyperparams["policy_kwargs"]
    assert policy_kwargs["context_length"] == 16 and policy_kwargs["net_arch"] == dict(pi=[64, 64], vf=[64, 64])
    assert policy_kwargs["memory_actor"] and policy_kwargs["share_encoder"]


# --- the scripts of RL Zoo --------------------------------------------------------------------------------------------


def test_train_and_enjoy(monkeypatch, capsys):
    # CartPole without velocities: memory, and normalized observations
    arguments = ["--algo", "aac", *SHORT, "--env", "CartPoleNoVel-v1", "--eval-freq", "32", "--eval-episodes", "1"]
    call(monkeypatch, sb3_attention_ac.train.main, *arguments)
    run = Path("logs/aac/CartPoleNoVel-v1_1")
    assert {"CartPoleNoVel-v1.zip", "best_model.zip", "evaluations.npz"} <= {path.name for path in run.iterdir()}
    assert f"Loading hyperparameters from: {zoo.hyperparams_path()}" in capsys.readouterr().out

    call(monkeypatch, enjoy.enjoy, "--algo", "aac", "--env", "CartPoleNoVel-v1", "-f", "logs", "-n", "200", "--no-render")
    assert "Mean reward" in capsys.readouterr().out

    call(monkeypatch, plot_train, "-a", "aac", "-e", "CartPoleNoVel", "-f", "logs", "-w", "1")

    # Training goes on
    call(monkeypatch, train, *arguments, "-i", str(run / "CartPoleNoVel-v1.zip"))
    assert "Loading pretrained agent" in capsys.readouterr().out


@pytest.fixture
def guarded():
    gym.register("Guarded-v0", "tests.test_masks:Guarded")
    yield "Guarded-v0"
    del gym.registry["Guarded-v0"]


def test_evaluations_during_training_have_masks(monkeypatch, guarded):
    """The environment raises where an action is not allowed."""
    call(monkeypatch, train, "--algo", "aac", *SHORT, "--env", guarded, "--eval-freq", "32", "--eval-episodes", "2")
    assert len(np.load("logs/aac/Guarded-v0_1/evaluations.npz")["results"]) > 0


@pytest.mark.filterwarnings("ignore:batch_size=:UserWarning")
def test_trials_of_a_search_have_masks(monkeypatch, guarded, capsys):
    arguments = ["--algo", "aac", "--env", guarded, "-n", "64", "-params", "n_envs:1", "--eval-episodes", "1"]
    call(monkeypatch, train, *arguments, "-optimize", "--n-trials", "1", "--n-evaluations", "1", "--no-optim-plots")
    assert "Number of finished trials:  1" in capsys.readouterr().out


def test_other_algorithms_are_unchanged(monkeypatch, capsys):
    call(monkeypatch, train, "--algo", "ppo", *SHORT, "--eval-freq", "-1")
    assert "rl_zoo3/hyperparams/ppo.yml" in capsys.readouterr().out.replace("\\", "/")


def test_conf_file(monkeypatch, capsys):
    Path("my.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 32, gamma: 0.75}")
    call(monkeypatch, train, "--algo", "aac", *SHORT, "--eval-freq", "-1", "--conf-file", "my.yml")
    output = capsys.readouterr().out
    assert "Loading hyperparameters from: my.yml" in output and "0.75" in output


@pytest.mark.slow
def test_unlisted_environment(monkeypatch, capsys):
    assert "FrozenLake-v1" not in HYPERPARAMS
    call(monkeypatch, train, "--algo", "aac", *SHORT, "--env", "FrozenLake-v1", "--eval-freq", "-1")
    assert "Using 'default' hyperparameters" in capsys.readouterr().out


@pytest.mark.slow
# The sampler does not know n_envs: a minibatch may be as large as the rollout
@pytest.mark.filterwarnings("ignore:batch_size=:UserWarning")
def test_optimize_and_trial_id(monkeypatch, capsys):
    study = ["--storage", "sqlite:///study.db", "--study-name", "study"]
    arguments = ["--algo", "aac", "--env", "CartPole-v1", "-n", "64", "-params", "n_envs:1", "--eval-episodes", "1", *study]
    options = ["-optimize", "--n-trials", "2", "--n-jobs", "2", "--n-evaluations", "1", "--no-optim-plots"]
    call(monkeypatch, train, *arguments, *options)
    assert "Number of finished trials:  2" in capsys.readouterr().out
    assert len(list(Path("logs/aac").glob("report_*.csv"))) == 1

    call(monkeypatch, train, *arguments, "--trial-id", "1", "--eval-freq", "-1")
    output = capsys.readouterr().out
    assert "Loading from Optuna study" in output and "context_length" in output


# As on several machines that share a folder
@pytest.mark.slow
def test_two_processes_share_a_study():
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "aac", *SHORT, "-optimize", "--eval-episodes", "1"]
    command += ["--n-evaluations", "1", "--no-optim-plots", "--storage", "journal.log", "--study-name", "study"]
    workers = [subprocess.Popen([*command, "--max-total-trials", "4"], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    run(*command, "--max-total-trials", "6")  # a third one goes on
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("journal.log"))
    trials = optuna.load_study(study_name="study", storage=storage).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4, 5]
    assert {trial.state for trial in trials} <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}


def run(*command: str) -> str:
    process = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


@pytest.mark.slow
def test_literal_command():
    output = run(sys.executable, "-m", "rl_zoo3.train", "--algo", "aac", *SHORT, "--eval-freq", "-1")
    assert "Saving to logs/aac/CartPole-v1_1" in output and "RuntimeWarning" not in output


@pytest.mark.slow
def test_command_line_tool_with_subprocesses():
    tool = str(Path(sys.executable).with_name("rl_zoo3"))
    output = run(tool, "train", "--algo", "aac", *SHORT, "--eval-freq", "-1", "--vec-env", "subproc")
    assert "Saving to logs/aac/CartPole-v1_1" in output


@pytest.mark.parametrize("script", ["load_from_hub", "record_training"])
def test_scripts_that_need_a_network_or_a_display(monkeypatch, capsys, script):
    with pytest.raises(SystemExit):
        call(monkeypatch, main_of(RL_ZOO / f"{script}.py"), "--help")
    assert re.search(r"\baac\b", capsys.readouterr().out)


@pytest.mark.slow
def test_record_video(monkeypatch):
    pytest.importorskip("moviepy")
    call(monkeypatch, train, "--algo", "aac", *SHORT, "--eval-freq", "-1")
    arguments = ["--algo", "aac", "--env", "CartPole-v1", "-f", "logs", "-n", "20"]
    call(monkeypatch, main_of(RL_ZOO / "record_video.py"), *arguments)
    assert len(list(Path("logs").rglob("*.mp4"))) == 1


def test_plot_training_example(monkeypatch, capsys):
    env = ["--env", "CartPoleNoVel-v1"]
    call(monkeypatch, train, "--algo", "aac", *SHORT, *env, "--eval-freq", "32", "--eval-episodes", "1")
    example = main_of(ROOT / "examples" / "plot_training.py")
    call(monkeypatch, example, *env, "-n", "2")
    assert re.search(r"Mean reward: \d+\.\d+ \+/- \d+\.\d+ \(2 episodes, deterministic\)", capsys.readouterr().out)
    assert Path("logs/aac/CartPoleNoVel-v1.png").is_file()

    with pytest.raises(SystemExit):
        call(monkeypatch, example, "--env", "Pendulum-v1")
    assert "there is no run of Pendulum-v1" in capsys.readouterr().err


@pytest.mark.slow
@NEEDS_NUMPY_2
def test_pushing_to_the_hub(monkeypatch, tmp_path):
    """All but the upload itself: the model card, the model that can be loaded from there, the returns"""

    class Hub:
        def create_repo(self, repo_id, **_):
            return f"https://huggingface.co/{repo_id}"

        def snapshot_download(self, repo_id, local_dir):
            local_dir.mkdir(parents=True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            uploaded[repo_id] = folder_path

    uploaded: dict[str, Path] = {}
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    theirs = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(theirs, "generate_metadata"):  # RL Zoo 2.9.2 asks for it by its old name
        monkeypatch.setattr(theirs, "generate_metadata", theirs._generate_metadata, raising=False)
    agents = str(ROOT / "trained_agents")
    arguments = ["--algo", "aac", "--env", "CartPole-v1", "-f", agents, "-orga", "me", "--no-render"]
    with pytest.warns(RuntimeWarning, match="found in sys.modules") if "rl_zoo3.push_to_hub" in sys.modules else nullcontext():
        call(monkeypatch, lambda: runpy.run_module("rl_zoo3.push_to_hub", run_name="__main__"), *arguments)
    folder = tmp_path / uploaded["me/aac-CartPole-v1"]
    card = (folder / "README.md").read_text()
    assert "# **AttentionActorCritic** Agent playing **CartPole-v1**" in card and "--algo aac --env CartPole-v1" in card
    assert "mean_reward" in card and yaml.safe_load((folder / "results.json").read_text())["mean_reward"] == 500
    AttentionActorCritic.load(folder / "aac-CartPole-v1.zip")
