"""Stepping a network that remembers, one step of every environment at a time, and the state of ``predict``."""

import warnings
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_attention_ac.networks.history_network import HistoryEncoder, is_hooked
from sb3_attention_ac.networks.kv_cache import IncrementalEncoder, KVCache
from sb3_attention_ac.type_aliases import EncoderOutput, Obs, TrajectoryWindows

CALLS_BEFORE_WARNING = 20
KNOWN_PACKAGES = ("torch", "stable_baselines3", "sb3_contrib", "sb3_attention_ac")
RECIPE = (
    "    state, episode_start = None, np.ones(vec_env.num_envs, dtype=bool)\n"
    "    while True:\n"
    "        action, state = model.predict(obs, state, episode_start)\n"
    "        obs, rewards, episode_start, infos = vec_env.step(action)"
)


class StateUse:
    """
    Notices two silent mistakes in ``predict`` loops: the state is not passed on, or nobody says where episodes start.

    contrib's ``evaluate_policy`` with action masks never passes the state on, but says where episodes start: a call with masks
    but without a state, whose ``episode_start`` says that episodes go on, is given the last state.
    """

    def __init__(self) -> None:
        self.without_state = self.without_start = 0
        # One attribute, replaced as a whole: several threads may ask one model
        self._last: tuple[tuple[np.ndarray, ...] | None, KVCache | None] = None, None

    def resolve(self, state: Any, episode_start: np.ndarray | None, masked: bool) -> Any:
        """
        :param state: What ``predict`` was given
        :param episode_start: Likewise
        :param masked: Whether it was given action masks
        :return: The state to go on from; None to start without a past
        """
        if masked and state is None and episode_start is not None and not np.all(episode_start):
            last, _ = self._last
            if last is not None and len(last[0]) == np.size(episode_start):
                return last
        self.note(state, episode_start)
        return state

    def returned(self, cache: KVCache) -> tuple[np.ndarray, ...]:
        """
        :param cache: After a step
        :return: The state to return
        """
        state = cache.to_numpy()
        is_shared = cache.age.device.type == "cpu"  # else the state is a copy, which may be written to
        self._last = state, cache if is_shared else None
        return state

    def cache_of(self, state: Any, n_envs: int, n_slots: int) -> KVCache | None:
        """
        :param state: What ``predict`` was given
        :param n_envs: Number of observations it goes with
        :param n_slots: Steps that a cache holds now
        :return: A copy of the cache, if the state is the very one that was returned last: there is nothing to check
        """
        last, cache = self._last
        if cache is None or state is not last or cache.features.shape[:2] != (n_envs, n_slots):
            return None
        return KVCache._make(tensor.clone() for tensor in cache)

    def note(self, state: Any, episode_start: np.ndarray | None) -> None:
        """
        Warn once of each, after ``CALLS_BEFORE_WARNING`` calls in a row. Calls that say a new episode starts do not count.

        :param state: What ``predict`` was given
        :param episode_start: Likewise
        """
        if state is None:
            self.without_start = _restarted(self.without_start)
            if episode_start is not None and np.all(episode_start):
                return
            self.without_state += 1
        else:
            self.without_state = _restarted(self.without_state)
            self.without_start = self.without_start + 1 if episode_start is None else _restarted(self.without_start)
        if state is None and self.without_state == CALLS_BEFORE_WARNING:
            warnings.warn(
                f"predict() was called {CALLS_BEFORE_WARNING} times in a row with state=None on a policy with memory: "
                f"it starts without a past each time. Pass the state on, and mark where episodes start:\n{RECIPE}",
                stacklevel=5,  # who called predict() of the model
            )
        if state is not None and self.without_start == CALLS_BEFORE_WARNING:
            warnings.warn(
                f"predict() was called {CALLS_BEFORE_WARNING} times in a row with a state but without episode_start: if an "
                "environment was reset meanwhile, it still remembers the previous episode. Mark where episodes start:\n"
                f"{RECIPE}",
                stacklevel=5,  # who called predict() of the model
            )


def _restarted(count: int) -> int:
    """A count starts again, unless it has led to a warning already"""
    return 0 if count < CALLS_BEFORE_WARNING else count


def acting_mode(policy: nn.Module) -> type[th.inference_mode | th.no_grad]:
    """
    :param policy: A policy that is about to act
    :return: Inference mode, in which a step takes a fifth less time; ``no_grad`` if a module is the user's own, hooked, or has
        a method replaced: a tensor that is kept from a call could not be learned with later
    """
    return th.no_grad if any(_is_the_users(module) for module in policy.modules()) else th.inference_mode


def _is_the_users(module: nn.Module) -> bool:
    own = type(module)
    replaced = any(callable(value) and hasattr(own, name) for name, value in vars(module).items())
    return replaced or is_hooked(module, "forward") or own.__module__.split(".")[0] not in KNOWN_PACKAGES


def checked_episode_starts(state: Any, given: Any, n_envs: int) -> np.ndarray:
    """
    :param state: What ``predict`` was given; without one every episode starts
    :param given: Its ``episode_start``, None for no
    :param n_envs: Number of observations it goes with
    :return: Whether each observation is the first of its episode, [N]
    :raises ValueError: If there is not one value for each observation
    """
    if given is not None and np.size(given) != n_envs:
        raise ValueError(
            f"episode_start has {np.size(given)} value(s), but there are {n_envs} observation(s): pass whether each is the "
            "first of its episode, which is what step() of a VecEnv returned as dones."
        )
    if state is None or given is None:
        return np.full(n_envs, state is None)
    return np.reshape(np.asarray(given, dtype=bool), n_envs)


class SteppedNetwork:
    """
    What is stepped where acting needs a memory: a memory actor, or with Q_att beside an MLP actor the critic. It holds no
    memory itself: KV caches go in and out.

    :param encoder: The way from raw steps to latents
    :param incremental: Its network, one step at a time
    :param features_dim: Width of the features of an observation
    :param action_dim: Number of action dimensions in the buffer
    """

    def __init__(self, encoder: HistoryEncoder, incremental: IncrementalEncoder, features_dim: int, action_dim: int):
        self.encoder, self.incremental = encoder, incremental
        self._dims = features_dim, encoder.encode_previous.dim, action_dim

    def empty(self, n_envs: int) -> KVCache:
        """
        :param n_envs: Number of environments
        :return: A cache without a past
        """
        return self.incremental.empty(n_envs, *self._dims)

    @th.no_grad()
    def prefill(self, windows: TrajectoryWindows) -> KVCache:
        """
        :param windows: Landmarks and the last n_context steps of each environment, and the step to come, whose observation is
            not read
        :return: A cache of their last episode
        """
        cache, n, k = self.empty(len(windows.episode_ids)), self.incremental.n_before, self.incremental.n_landmarks
        cache.previous_action.copy_(windows.previous_actions[:, -1])
        cache.age.copy_(windows.ages[:, -1])
        current = windows.episode_ids[:, :n] == windows.episode_ids[:, -1:]  # [N, n_landmarks + n_context]
        cache.start.copy_(n - current[:, k:].sum(dim=1))
        cache.landmark_ages.copy_(th.where(current[:, :k], windows.ages[:, :k], -1.0))
        if current.any():
            context = windows.first(n)
            if context.surprises is not None:
                cache.surprises[:, :n] = context.surprises
            cache.features[:, :n] = self.encoder.features(context)
            cache.previous_steps[:, :n] = self.encoder.encode_previous(
                context.previous_actions, context.previous_rewards, context.ages, context.episode_starts
            )
            self.incremental.prefill(cache, slice(None))
        return cache

    def step(self, obs: Obs, cache: KVCache, episode_starts: np.ndarray) -> EncoderOutput:
        """
        :param obs: Observations, [N, *obs_shape]
        :param cache: The steps so far, updated in place
        :param episode_starts: Whether each observation is the first of its episode, [N]
        :return: What the network makes of them, [N, ...]
        """
        starts = None
        if episode_starts.any():
            starts = th.as_tensor(np.asarray(episode_starts, dtype=bool), device=cache.age.device)
        return self.step_tensors(obs, cache, starts)

    def step_tensors(self, obs: Obs, cache: KVCache, starts: th.Tensor | None) -> EncoderOutput:
        """
        :param obs: Observations, [N, *obs_shape]
        :param cache: The steps so far, updated in place
        :param starts: Whether each observation is the first of its episode, [N]; None if none is
        :return: What the network makes of them, [N, ...]
        """
        features = self.encoder.extract(obs)
        if starts is not None:
            cache.age.masked_fill_(starts, 0.0)
        previous_steps = self.encoder.encode_previous(cache.previous_action, None, cache.age, starts)
        output = self.incremental.step(cache, features, previous_steps, starts)
        cache.age.add_(1.0)
        return output

    def from_state(self, state: Any, n_envs: int) -> KVCache:
        """
        :param state: What ``predict`` returned, or None to start without a past
        :param n_envs: Number of observations it goes with
        :return: A cache to step with; the state itself is never written to
        :raises ValueError: If the state is not one of this policy for as many environments
        """
        if state is None:
            return self.empty(n_envs)
        expected = self.incremental.shapes(n_envs, *self._dims)
        given = [np.shape(array) for array in state] if np.iterable(state) else []
        if given != expected:
            problem = _difference(given, expected) if np.iterable(state) else f"The state is {state!r}"
            raise ValueError(
                f"{problem}: pass the state that predict() returned for the same environments, or None to start afresh."
            )
        return KVCache.from_numpy(state, self.incremental.device)


def _difference(given: list[tuple[int, ...]], expected: list[tuple[int, ...]]) -> str:
    """
    :param given: Shapes of what ``predict`` was given as state
    :param expected: Shapes of a state of this policy
    :return: In words what is wrong
    """
    if len(given) != len(expected):
        return f"The state has {len(given)} arrays, but a state of this policy has {len(expected)}"
    n_envs = {shape[0] for shape in given if shape}
    if len(n_envs) == 1 and n_envs != {expected[0][0]}:
        return f"The state is for {n_envs.pop()} environment(s), but there are {expected[0][0]} observation(s)"
    name, shape, wanted = next(each for each in zip(KVCache._fields, given, expected, strict=False) if each[1] != each[2])
    return f"The state is not one of this policy: its {name} have the shape {shape}, expected is {wanted}"
