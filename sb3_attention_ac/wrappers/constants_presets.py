"""
Constants of common environments that :class:`HiddenConstants` can draw: their names, ranges, and how to set them. For MuJoCo's
tasks a constant is a factor on the model's own, so that one preset fits all of them.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym

SetConstants = Callable[[gym.Env[Any, Any], Mapping[str, float]], None]


class Preset(NamedTuple):
    """What :class:`HiddenConstants` needs to know about a simulator"""

    ranges: dict[str, tuple[float, float]]
    """Low and high end by name"""
    set_constants: SetConstants
    """Puts values, all or some of them, into an environment before its ``reset()``"""


def set_attributes(names: Mapping[str, str]) -> SetConstants:
    """
    :param names: Attribute of the innermost environment for each constant
    :return: Sets them
    """

    def set_constants(env: gym.Env[Any, Any], values: Mapping[str, float]) -> None:
        for name, value in values.items():
            setattr(env.unwrapped, names[name], value)

    return set_constants


def _set_cartpole(env: gym.Env[Any, Any], values: Mapping[str, float]) -> None:
    cartpole: Any = env.unwrapped
    names = {"gravity": "gravity", "cart_mass": "masscart", "pole_mass": "masspole", "length": "length", "force": "force_mag"}
    set_attributes(names)(env, values)
    cartpole.total_mass = cartpole.masspole + cartpole.masscart
    cartpole.polemass_length = cartpole.masspole * cartpole.length


def _set_lunar_lander(env: gym.Env[Any, Any], values: Mapping[str, float]) -> None:
    names = {"gravity": "gravity", "wind": "wind_power", "turbulence": "turbulence_power"}
    set_attributes(names)(env, values)
    if {"wind", "turbulence"} & set(values):
        lander: Any = env.unwrapped
        lander.enable_wind = True
        for name in {"wind", "turbulence"} - set(values):  # what nobody asked for stays off
            setattr(lander, names[name], 0.0)


def _mujoco_arrays(model: Any) -> dict[str, tuple[Any, ...]]:
    return {
        "gravity": (model.opt.gravity,),
        "mass": (model.body_mass, model.body_inertia),
        "friction": (model.geom_friction[:, 0],),  # of sliding
        "damping": (model.dof_damping,),
        "strength": (model.actuator_gear,),
    }


def mujoco_setter(env: gym.Env[Any, Any]) -> SetConstants:
    """
    :param env: An environment of Gymnasium's MujocoEnv
    :return: A setter that multiplies the values which the model had when it was first given to this function
    """
    model: Any = env.unwrapped.model  # type: ignore[attr-defined]
    present = {name: [array.copy() for array in arrays] for name, arrays in _mujoco_arrays(model).items()}
    loaded = vars(env.unwrapped).setdefault("_loaded_constants", present)  # another wrapper may have set others since

    def set_constants(env: gym.Env[Any, Any], values: Mapping[str, float]) -> None:
        simulator: Any = env.unwrapped
        arrays = _mujoco_arrays(simulator.model)
        for name, factor in values.items():
            for array, original in zip(arrays[name], loaded[name], strict=True):
                array[:] = factor * original
        # Masses of subtrees and the like, which the solver reads
        importlib.import_module("mujoco").mj_setConst(simulator.model, simulator.data)

    return set_constants


_MUJOCO_RANGES = {name: (0.5, 1.5) for name in ("gravity", "mass", "friction", "damping", "strength")}
_ACROBOT = {
    "mass_1": "LINK_MASS_1",
    "mass_2": "LINK_MASS_2",
    "center_1": "LINK_COM_POS_1",
    "center_2": "LINK_COM_POS_2",
    "inertia": "LINK_MOI",
}

# By the name of an environment's class. Gymnasium's own values: Pendulum 10, 1, 1; CartPole 9.8, 1, 0.1, 0.5 (half of the
# pole), 10; Acrobot 1, 1, 0.5, 0.5, 1 (its gravity is written into its equations); LunarLander -10, no wind
PRESETS: dict[str, Preset] = {
    "PendulumEnv": Preset(
        {"gravity": (5.0, 15.0), "mass": (0.5, 1.5), "length": (0.5, 1.5)},
        set_attributes({"gravity": "g", "mass": "m", "length": "l"}),
    ),
    "CartPoleEnv": Preset(
        {
            "gravity": (5.0, 15.0),
            "cart_mass": (0.5, 2.0),
            "pole_mass": (0.05, 0.5),
            "length": (0.25, 1.0),
            "force": (5.0, 15.0),
        },
        _set_cartpole,
    ),
    "AcrobotEnv": Preset(
        {"mass_1": (0.5, 1.5), "mass_2": (0.5, 1.5), "center_1": (0.3, 0.7), "center_2": (0.3, 0.7), "inertia": (0.5, 1.5)},
        set_attributes(_ACROBOT),
    ),
    "LunarLander": Preset(
        {"gravity": (-11.9, -5.0), "wind": (0.0, 20.0), "turbulence": (0.0, 2.0)},
        _set_lunar_lander,
    ),
}


def find_preset(env: gym.Env[Any, Any]) -> Preset:
    """
    :param env: An environment, wrapped or not
    :return: Its constants
    :raises ValueError: If it has none here
    """
    simulator: Any = env.unwrapped
    for parent in type(simulator).__mro__:  # continuous LunarLander, and classes derived from these
        if parent.__name__ in PRESETS:
            return PRESETS[parent.__name__]
        if parent.__name__ == "MujocoEnv":
            return Preset(dict(_MUJOCO_RANGES), mujoco_setter(env))
    raise ValueError(
        f"There are no constants for {type(simulator).__name__} here, only for {sorted(PRESETS)} and Gymnasium's MuJoCo "
        "tasks: pass ranges and a function set_constants(env, values) that sets them."
    )
