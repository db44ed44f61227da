"""Names of algorithms and environments, and what to do about those that are not known."""

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym

from sb3_attention_ac.compare.errors import CompareError, unknown_name

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# Where environments come from that are not part of Gymnasium: pattern of the id, module that registers them, package
SOURCES = (
    (r"popgym-", "popgym", "popgym"),
    (r"(MiniGrid|BabyAI)-", "minigrid", "minigrid"),
    (r"(ALE/|.*NoFrameskip-v4$)", "ale_py", "ale-py"),
    (r".*BulletEnv-", "pybullet_envs_gymnasium", "pybullet_envs_gymnasium"),
    (r"Panda", "panda_gym", "panda-gym"),
    (r"(parking|highway|merge|roundabout|intersection|racetrack)-", "highway_env", "highway-env"),
    (r"donkey-", "gym_donkeycar", "gym-donkeycar"),
    (r"MemoryGym|(MortarMayhem|MysteryPath|SearingSpotlights)", "memory_gym", "memory-gym"),
)


def known_algorithms() -> "dict[str, type[BaseAlgorithm]]":
    """
    :return: All algorithms RL Zoo knows, that of this package included, and sb3-contrib's MaskablePPO
    """
    from rl_zoo3.utils import ALGOS
    from sb3_contrib import MaskablePPO

    from sb3_attention_ac.zoo import register

    register()
    ALGOS.setdefault("maskable_ppo", MaskablePPO)
    return ALGOS


def check_algorithm(name: str) -> None:
    """
    :param name: Name of an algorithm in RL Zoo
    :raises CompareError: If there is none of this name; offers the closest names
    """
    algorithms = known_algorithms()
    if name not in algorithms:
        raise unknown_name("algorithm", name, algorithms)


def register_environments(gym_packages: Iterable[str] = ()) -> None:
    """
    Import everything that registers environments: the modules given, RL Zoo's list, and known packages if installed.

    :param gym_packages: Modules to import
    :raises CompareError: If one of ``gym_packages`` cannot be imported
    """
    for module in gym_packages:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever it does there
            reason = f"{type(error).__name__}: {error}"
            raise CompareError(f"The module {module!r} of --gym-packages cannot be imported ({reason}).") from error
    import rl_zoo3.import_envs  # noqa: F401

    for _, module, _ in SOURCES:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def check_known(env: str) -> None:
    """
    :param env: Id of an environment
    :raises CompareError: If it is not known (offers the closest names), its package is missing (says which), or it is given
        with its module
    """
    if env in gym.registry:
        return
    module, colon, name = env.partition(":")
    if colon:
        raise CompareError(f"The environment {env!r} was given: give {name!r} and name its module, --gym-packages {module}.")
    for pattern, module, package in SOURCES:
        if re.match(pattern, env) and importlib.util.find_spec(module) is None:
            raise CompareError(
                f"The environment {env!r} comes with the package {package!r}, which is not installed; "
                f"run `pip install {package}`."
            )
    raise unknown_name("environment", env, gym.registry)


class Shown(NamedTuple):
    """
    What an environment shows to an algorithm.

    :param space: Observation space
    :param has_masks: Whether it says which actions are allowed
    """

    space: gym.Space[Any]
    has_masks: bool


def check_environment(env: str, hyperparams: Mapping[str, Any] = {}) -> Shown:
    """
    Create the environment once, with the arguments and wrappers of its entry. Call :func:`register_environments` before.

    :param env: Id of the environment
    :param hyperparams: In the format of RL Zoo; ``env_kwargs``, ``env_wrapper`` and ``vec_env_wrapper`` of it count
    :return: What it shows
    :raises CompareError: If it is not known (offers the closest names), a package is missing (says which), or it fails
    """
    from rl_zoo3.utils import get_wrapper_class
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sb3_attention_ac.networks.distributions import forbids_actions

    check_known(env)
    try:
        wrap = get_wrapper_class(dict(hyperparams))
        made = gym.make(env, **(hyperparams.get("env_kwargs") or {}))
        instance = made if wrap is None else wrap(made)
        space = instance.observation_space
        wrap_all: Any = get_wrapper_class(dict(hyperparams), "vec_env_wrapper")
        if wrap_all is not None:
            space = wrap_all(DummyVecEnv([lambda: instance])).observation_space
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise CompareError(f"The environment {env!r} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise CompareError(
            f"The environment {env!r} cannot be made: {type(error).__name__}: {error}. If its arguments or wrappers are "
            "missing, set `env_kwargs` (a mapping) and `env_wrapper` in its entry, see --hyperparams and --variants."
        ) from error
    shown = Shown(space, forbids_actions(instance))
    made.close()
    return shown
