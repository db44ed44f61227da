"""Comparison: names and settings against RL Zoo."""

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_attention_ac.compare import experiment
from sb3_attention_ac.compare.__main__ import main
from sb3_attention_ac.compare.errors import CompareError
from sb3_attention_ac.compare.experiment import merge, read_hyperparams
from sb3_attention_ac.compare.jobs import plan
from sb3_attention_ac.compare.names import Shown
from sb3_attention_ac.compare.settings import Job, Protocol, Variant
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
        (["--algos", "ppo", "--envs", "CartPole-v1", "--seeds", "0"], "seeds=0 was"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--first-seed", "9998"], "with 5 seeds it must be from 0 to 9988"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--steps", "-5"], "steps=-5 was"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--hyperparams", "zooo"], "--hyperparams is 'zooo'; give 'zoo'"),
        (["--variants", "lader", "--envs", "CartPole-v1"], "variant file 'lader'; the closest known names are: ladder"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--gym-packages", "no_such"], "module 'no_such' of --gym-packages"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--gym-packages", "no_names"], "cannot be imported (NameError: name 'x'"),
        (["--algos", "ppo", "--envs", "some.module:My-v0"], "give 'My-v0' and name its module, --gym-packages some.module"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--references", "no_such.yml"], "no_such.yml must map"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--backend", "slurm"], "Unknown backend 'slurm'; known names: local"),
        (["--algos", "ppo", "--envs", "CartPole-v1", "--address", "1.2.3.4"], "goes only with --backend ray"),
    ],
)
def test_what_cannot_be_asked(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "no_names.py").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
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


@pytest.mark.parametrize(
    "text",
    [
        "CartPole-v1: 5",
        "CartPole-v1:",
        "default: 5",
        "- CartPole-v1",
        "",
        "CartPole-v1: {gamma: 1, gamma: 2}",
        "? [a, b]\n: 5",
        "Other-v1: {gamma: 1}",
    ],
)
def test_wrong_file_of_hyperparams_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "ppo.yml").write_text(text)
    for source in (tmp_path, tmp_path / "ppo.yml"):
        with pytest.raises(CompareError, match=r"ppo\.yml|no hyperparameters for ppo on CartPole-v1"):
            one_job(source=str(source))
    (tmp_path / "notes.txt").write_text("CartPole-v1: {policy: MlpPolicy}")
    with pytest.raises(CompareError, match=r"notes\.txt'; give 'zoo', 'sb3', a folder .* or one YAML file"):
        one_job(source=str(tmp_path / "notes.txt"))


def test_anchors_and_merges_of_yaml_are_no_mistakes(tmp_path: Path) -> None:
    text = """
n: &n 8
list: &list [1, 2]
empty:
base: &base {gamma: 0.9, n_steps: 64}
first: {policy_kwargs: &inner {<<: *base, gamma: 0.8}}
CartPole-v1: {policy: MlpPolicy, n_envs: *n, policy_kwargs: {<<: *inner}}
1: {gamma: 1}
"1": {gamma: 2}
"""
    (tmp_path / "ppo.yml").write_text(text)
    hyperparams = one_job(source=str(tmp_path)).hyperparams
    assert hyperparams["n_envs"] == 8 and hyperparams["policy_kwargs"] == {"gamma": 0.8, "n_steps": 64}


def test_policy_of_a_variant_must_exist() -> None:
    with pytest.raises(
        CompareError, match="policy of ppo in the variant 'ppo' 'MlpPolicyy'; the closest known names are: MlpP"
    ):
        one_job(policy="MlpPolicyy")
    with pytest.raises(CompareError, match="policy of ppo in the variant 'ppo' '3'"):
        one_job(policy=3)


class Mission(gym.Env[Any, int]):
    """Shows a text beside numbers, numbers alone, or an image; ``needed`` has no default"""

    action_space = spaces.Discrete(2)

    def __init__(self, needed: int, shows: str = "text") -> None:
        numbers, text = spaces.Box(0, 1, (3,)), spaces.Text(5)
        kinds = {"text": spaces.Dict({"numbers": numbers, "mission": text}), "numbers": spaces.Dict({"numbers": numbers})}
        self.observation_space = {**kinds, "image": spaces.Box(0, 255, (64, 64, 3), np.uint8)}[shows]

    def action_masks(self) -> np.ndarray:
        return np.ones(2, dtype=bool)


def test_the_policy_is_that_of_what_an_entry_makes_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Mission-v0", EnvSpec("Mission-v0", entry_point=Mission))

    def read(algo: str = "ppo", **changes: Any) -> dict[str, Any]:
        return read_hyperparams(Variant(algo, algo, changes), "Mission-v0", 100, "sb3")

    with pytest.raises(CompareError, match=r"Mission-v0' cannot be made: TypeError: .*needed.*`env_kwargs` \(a mapping\)"):
        read()
    with pytest.raises(CompareError, match=r"no policy for the observations of Mission-v0.*env_wrapper"):
        read(env_kwargs={"needed": 1})
    assert read(env_kwargs={"needed": 1, "shows": "numbers"})["policy"] == "MultiInputPolicy"
    assert read(env_kwargs={"needed": 1, "shows": "image"})["policy"] == "CnnPolicy"
    flat = {"env_kwargs": {"needed": 1, "shows": "numbers"}, "env_wrapper": "gymnasium.wrappers.FlattenObservation"}
    assert read(**flat)["policy"] == read("ars", **flat, policy="MlpPolicy")["policy"] == "MlpPolicy"
    assert read("maskable_ppo", **flat)["policy"] == "MlpPolicy"
    assert read(**flat, vec_env_wrapper="sb3_attention_ac.wrappers.VecPreviousActionReward")["policy"] == "MultiInputPolicy"


def test_maskable_ppo_needs_masks() -> None:
    with pytest.raises(CompareError, match="needs action masks, and CartPole-v1 has none: compare it with ppo"):
        one_job("maskable_ppo", source="sb3")


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(
        "mine: {algo: ppo, hyperparams: {learning_rate: 3e-4, policy_kwargs: {a: 1E5, b: [{c: 2e-2}]}}}"
    )
    (variant,) = load_variants(str(tmp_path / "mine.yml"))
    hyperparams = read_hyperparams(variant, "CartPole-v1", 100, "sb3")
    assert hyperparams["learning_rate"] == 3e-4 and hyperparams["policy_kwargs"] == {"a": 1e5, "b": [{"c": 0.02}]}


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
        "a: {algo: ppo}\na: {algo: a2c}": "duplicate key 'a'",
        "a: {algo: ppo, hyperparams: {gamma: 0.9, gamma: 0.8}}": "duplicate key 'gamma'",
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
    (tmp_path / "own.yml").write_text("CartPole-v1: {policy: MlpPolicy}")
    path.write_text("a: {algo: ppo, source: own.yml}\nb: {algo: ppo, source: sb3}")
    assert [variant.source for variant in load_variants(str(path))] == [str(tmp_path / "own.yml"), "sb3"]
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


def test_maskable_ppo_has_the_values_of_ppo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "check_environment", lambda *_: Shown(spaces.Box(0, 1, (4,)), True))
    (tmp_path / "ppo.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 10, n_steps: 7}")
    assert one_job("maskable_ppo", source=str(tmp_path)).hyperparams["n_steps"] == 7
    (tmp_path / "maskable_ppo.yml").write_text("CartPole-v1: {policy: MlpPolicy, n_timesteps: 10, n_steps: 9}")
    assert one_job("maskable_ppo", source=str(tmp_path)).hyperparams["n_steps"] == 9
    assert one_job("maskable_ppo").hyperparams["n_steps"] == one_job("ppo").hyperparams["n_steps"]
