"""Hyperparameters, environments and models, all as RL Zoo makes them."""

import contextlib
import io
import re
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium import Space, spaces
from gymnasium.envs.registration import parse_env_id
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_attention_ac.compare.episodes import EndReporter, Episode, EpisodeRecorder
from sb3_attention_ac.compare.errors import CompareError, unknown_name
from sb3_attention_ac.compare.evaluate import EvaluationCallback, RecordedEnv
from sb3_attention_ac.compare.names import check_environment, known_algorithms
from sb3_attention_ac.compare.pools import VEC_ENVS, check_vec_env, make_pool
from sb3_attention_ac.compare.settings import Job, Variant
from sb3_attention_ac.compare.storage import write_atomically
from sb3_attention_ac.compare.yaml_files import read_mapping

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
# Arguments of RL Zoo which are Python source there when they are text
SOURCE_TEXTS = ("policy_kwargs", "replay_buffer_kwargs", "normalize")


def read_hyperparams(variant: Variant, env: str, steps: int, source: str) -> dict[str, Any]:
    """
    :param variant: Variant of an algorithm
    :param env: Id of a registered environment
    :param steps: Training steps, they replace those of the file
    :param source: ``"zoo"``, ``"sb3"``, a folder with files ``<algo>.yml`` (RL Zoo's file for algorithms it lacks), or one
        file for whatever algorithm
    :return: Hyperparameters in the format of RL Zoo, the changes of the variant applied
    :raises CompareError: If ``source`` is none of these, the file has no entry for the environment, or the algorithm lacks
        the policy or has none for such observations, or the environment cannot be made
    """
    source = variant.source or source
    hyperparams = {} if source == "sb3" else _read_file(variant.algo, env, source)
    hyperparams = _with_numbers(merge(hyperparams, variant.changes))
    aliases = known_algorithms()[variant.algo].policy_aliases
    name = str(hyperparams.get("policy", ""))
    is_known = "." in name or name in aliases
    if "policy" in variant.changes and not is_known:
        raise unknown_name(f"policy of {variant.algo} in the variant {variant.name!r}", name, aliases)
    check_vec_env(hyperparams, f"{variant.name} on {env}")
    space, has_masks = check_environment(env, hyperparams)
    _check_observations(space, variant.algo, env)
    if variant.algo == "maskable_ppo" and not has_masks:
        raise CompareError(
            f"{variant.name} is MaskablePPO, which needs action masks, and {env} has none: compare it with ppo."
        )
    # RL Zoo's default entry for ppo_lstm names one that RecurrentPPO does not have
    return {**hyperparams, "policy": name if is_known else policy_name(variant.algo, space), "n_timesteps": steps}


def _with_numbers(value: Any) -> Any:
    """PyYAML reads 3e-4, without a decimal point, as a string."""
    if isinstance(value, dict):
        return {name: _with_numbers(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_numbers(part) for part in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def _check_observations(space: Space[Any], algo: str, env: str) -> None:
    try:
        get_obs_shape(space)
    except NotImplementedError as error:
        raise CompareError(
            f"Stable-Baselines3 has no policy for the observations of {env}, {space}. Name a wrapper that changes them "
            f"(`env_wrapper`) in an entry for {algo} and this environment, see --hyperparams."
        ) from error


def _task(name: Any) -> Any:
    """:return: Namespace and name of an environment, without its version; what is none (an anchor of YAML) as it is"""
    try:
        return parse_env_id(name)[:2]
    except (gym.error.Error, TypeError):
        return name


def _read_file(algo: str, env: str, source: str) -> dict[str, Any]:
    config = None  # RL Zoo's own file
    zoo_name = algo.removeprefix("maskable_")  # MaskablePPO takes PPO's values; RL Zoo has no file for it
    if source != "zoo":
        given = Path(source)
        if not given.exists() or (given.is_file() and given.suffix not in (".yml", ".yaml")):
            raise CompareError(
                f"--hyperparams is {source!r}; give 'zoo', 'sb3', a folder with files <algo>.yml, or one YAML file."
            )
        files = [given] if given.is_file() else [given / f"{name}.yml" for name in (algo, zoo_name)]
        config = next((str(file) for file in files if file.is_file()), None)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it read
            manager = ExperimentManager(Namespace(), zoo_name, env, log_folder="", config=config)
            entries = read_mapping(Path(manager.config), "environments to hyperparameters")
            versions = [name for name in entries if _task(name) == _task(env)]
            entry = env if env in entries or not versions else versions[0]
            for name in (entry, "atari", "default"):  # one of these is taken
                if not isinstance(entries.get(name, {}), dict):
                    raise ValueError(f"{manager.config} has {entries[name]!r} at {name!r}, not a mapping.")
            manager.env_name = EnvironmentName(entry)
            hyperparams, _ = manager.read_hyperparameters()
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise CompareError(f"There are no hyperparameters for {algo} on {env}: {error}") from error
    if entry != env:
        warnings.warn(f"{manager.config} has no hyperparameters for {env}: those of {entry} are used.", stacklevel=5)
    return dict(hyperparams)


def policy_name(algo: str, space: Space[Any]) -> str:
    """
    :param algo: Name of an algorithm
    :param space: Observation space
    :return: The algorithm's policy for this kind of observation, e.g. ``"MlpLstmPolicy"``
    :raises CompareError: If the algorithm has none
    """
    kind = "MultiInput" if isinstance(space, spaces.Dict) else "Cnn" if is_image_space(space) else "Mlp"
    aliases = known_algorithms()[algo].policy_aliases
    for name in sorted(aliases):
        if name.startswith(kind):
            return name
    raise CompareError(f"{algo} has no policy for observations of type {space}; it has {', '.join(sorted(aliases))}.")


def merge(hyperparams: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: Hyperparameters in the format of RL Zoo
    :param changes: What to replace; mappings are merged, also where RL Zoo writes them as Python source
    :return: A new mapping
    """
    merged = dict(hyperparams)
    for key, new in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            merged[key] = {**old, **new}
        elif key in SOURCE_TEXTS and isinstance(old, str) and isinstance(new, dict):
            merged[key] = f"{{**{old}, **{new!r}}}"
        else:
            merged[key] = new
    return merged


class RecordingManager(ExperimentManager):
    """
    RL Zoo's manager of experiments, which records the episodes of the environments it makes. ``vec_env`` says whose
    environments it trains in, one of :data:`~sb3_attention_ac.compare.pools.VEC_ENVS`.
    """

    vec_env = VEC_ENVS[0]

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: Number of parallel environments
        :param eval_env: Whether they are for evaluation
        :param no_log: Whether Monitor writes no files
        :return: The environments; what is recorded of each is in ``self.episodes`` until others are made
        """
        self.episodes: list[list[Episode]] = []
        given = self.env_wrapper

        def wrap(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
            recorder = EpisodeRecorder(env)
            self.episodes.append(recorder.episodes)
            return EndReporter(recorder if given is None else given(recorder), recorder.episodes)

        def pool(make_envs: list[Callable[[], gym.Env[Any, Any]]], **kwargs: Any) -> VecEnv:
            made = make_pool(self.env_name.gym_id, make_envs, self.seed)
            self.episodes[:] = [made.episodes]  # not those of the example
            return made

        self.env_wrapper, vec_env_class = wrap, self.vec_env_class
        if self.vec_env == "envpool" and not eval_env:
            self.vec_env_class: Any = pool
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.env_wrapper, self.vec_env_class = given, vec_env_class


def build(job: Job, folder: Path) -> tuple[RecordingManager, BaseAlgorithm, EvaluationCallback]:
    """
    :param job: Run to prepare
    :param folder: Folder for the files RL Zoo writes
    :return: RL Zoo's manager, the model in its training environment, and the callback that evaluates it: in environments that
        make the episodes of one evaluation side by side, rewards raw
    """
    known_algorithms()
    config, hyperparams = folder / "hyperparams.yml", dict(job.hyperparams)
    vec_env = hyperparams.pop("vec_env", VEC_ENVS[0])  # RL Zoo does not know it
    write_atomically(config, yaml.safe_dump({job.env: hyperparams}, sort_keys=False))  # a mapping's order may mean something
    manager = RecordingManager(
        Namespace(**job.to_dict()),
        job.algo,
        job.env,
        log_folder=str(folder),
        n_timesteps=job.protocol.steps,
        eval_freq=-1,
        log_interval=-1,
        seed=job.seed,
        device=job.protocol.device,
        config=str(config),
    )
    manager.vec_env = vec_env
    manager.save_path = str(folder)
    manager.params_path = str(folder)
    experiment = manager.setup_experiment()
    assert experiment is not None, "only a search for hyperparameters has no model"
    # RL Zoo forgets the arguments of its file here: https://github.com/DLR-RM/rl-baselines3-zoo
    manager.eval_env_kwargs = manager.env_kwargs

    def make_env() -> RecordedEnv:
        env = manager.create_envs(job.protocol.episodes, eval_env=True)
        return RecordedEnv(env, manager.episodes)

    callback = EvaluationCallback(make_env, job.protocol, training=manager.episodes)
    manager.callbacks.append(callback)
    return manager, experiment[0], callback
