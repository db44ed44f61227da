"""
Hidden constants of a simulator, drawn anew in each episode, for a critic that may see more than the actor.

Common environments are known by name::

    env = HiddenConstants(gym.make("Pendulum-v1"))  # gravity, mass, length
    env = HiddenConstants(gym.make("Hopper-v5"), {"friction": (0.5, 1.5)})  # friction alone, as a factor

For a simulator of your own, write one function that puts values into it, and give the range of each::

    def set_constants(env, values):
        env.unwrapped.simulator.payload = values["payload"]

    env = HiddenConstants(MyEnv(), {"payload": (0.0, 5.0)}, set_constants)

The observation becomes a Dict of ``observation`` and ``privileged``. In RL Zoo's format::

    Pendulum-v1:
      env_wrapper:
        - sb3_attention_ac.wrappers.HiddenConstants: {ranges: {gravity: [5.0, 15.0]}}
      policy: MultiInputPolicy
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_attention_ac.wrappers.constants_presets import SetConstants, find_preset
from sb3_attention_ac.wrappers.previous_step import OBSERVATION
from sb3_attention_ac.wrappers.randomness import OwnGenerator

PRIVILEGED = "privileged"


class HiddenConstants(OwnGenerator, gym.ObservationWrapper[dict[str, Any], Any, Any], gym.utils.RecordConstructorArgs):
    """
    Resamples constants of the simulator in each episode, uniformly from their ranges, and shows them under a separate key. An
    actor that does not read that key has to infer them by acting; its critic may be told.

    The observation becomes a Dict with ``observation`` (or the entries it had) and ``privileged``: float32, one value for each
    constant shown, in the order of ``ranges``, from -1 at the range's low end to 1 at its high end. ``reset()`` returns the
    values as they are in ``info["constants"]``, and takes values for this episode as ``options={"constants": {...}}``; those
    outside their range are shown as its nearer end.

    :param env: The environment
    :param ranges: Low and high end for each constant by name; None: those of the environment's preset
    :param set_constants: Puts values into the simulator, before the environment's ``reset()``; called with the environment
        and a value for each name in ``ranges``. None: that of the environment's preset
    :param shown: Names to show under ``privileged``; None: all. Those left out are drawn as well, but only ``info`` has them
    :raises ValueError: If there is no preset, a name is not known, a range is empty, or the observation has such an entry
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        ranges: Mapping[str, Sequence[float]] | None = None,
        set_constants: SetConstants | None = None,
        shown: Sequence[str] | None = None,
    ):
        gym.utils.RecordConstructorArgs.__init__(self, ranges=ranges, set_constants=set_constants, shown=shown)
        gym.ObservationWrapper.__init__(self, env)
        if set_constants is None:
            preset = find_preset(env)
            ranges = preset.ranges if ranges is None else ranges
            _check_names("ranges", ranges, preset.ranges)
            self._set_constants: SetConstants = preset.set_constants
        else:
            if not ranges:
                raise ValueError("set_constants needs ranges: pass ranges={'name': (low, high)} for each constant.")
            self._set_constants = set_constants
        for name, ends in ranges.items():
            if np.shape(ends) != (2,) or not ends[0] <= ends[1]:
                raise ValueError(f"ranges[{name!r}]={ends!r} was given, but it must be (low, high), the low end first.")
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        self.shown = list(self.ranges) if shown is None else list(shown)
        _check_names("shown", self.shown, self.ranges)
        self.values: dict[str, float] = {}

        inner = env.observation_space
        self._is_dict = isinstance(inner, spaces.Dict)
        entries = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {OBSERVATION: inner}
        if PRIVILEGED in entries:
            raise ValueError(f"The observation has an entry {PRIVILEGED!r} already: wrap it only once, or rename that entry.")
        if self.shown:
            entries[PRIVILEGED] = spaces.Box(-1.0, 1.0, (len(self.shown),), dtype=np.float32)
        self.observation_space = spaces.Dict(entries)

    def observation(self, observation: Any) -> dict[str, Any]:
        """
        :param observation: The environment's
        :return: The same with the constants
        """
        entries = dict(observation) if self._is_dict else {OBSERVATION: observation}
        if self.shown:
            entries[PRIVILEGED] = self._privileged.copy()
        return entries

    def _draw(self, given: Mapping[str, float]) -> None:
        _check_names("options['constants']", given, self.ranges)
        self.values = {name: float(self.generator.uniform(low, high)) for name, (low, high) in self.ranges.items()}
        self.values.update({name: float(value) for name, value in given.items()})
        privileged = [np.interp(self.values[name], self.ranges[name], (-1, 1)) for name in self.shown]
        self._privileged = np.array(privileged, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :param seed: Seed of this and all following episodes, constants included
        :param options: Options of the environment; ``constants``: values for this episode instead of drawn ones
        :return: The first observation and its information, with all constants
        :raises ValueError: If ``ranges`` has no constant of a given name
        """
        options = dict(options or {})
        given = options.pop("constants", {})
        self.seed_generator(seed)
        self._draw(given)
        self._set_constants(self.env, self.values)
        obs, info = self.env.reset(seed=seed, options=options or None)
        return self.observation(obs), {**info, "constants": dict(self.values)}


def _check_names(what: str, names: Any, known: Mapping[str, Any]) -> None:
    """:raises ValueError: If one of them is not known"""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{what} has {unknown}: the constants are {sorted(known)}.")
