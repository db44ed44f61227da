"""Acting with memory: observations in, actions out, one step of every environment at a time."""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attention_ac.attention_q import Tilt
from sb3_attention_ac.memory import TrajectoryMemory, TrajectoryStepper
from sb3_attention_ac.trajectory import TrajectoryWindows
from sb3_attention_ac.trunk import TrunkOutput

if TYPE_CHECKING:
    from sb3_attention_ac.policies import AttentionActorCriticPolicy


STATELESS_CALLS = 20
KNOWN_PACKAGES = {"torch", "stable_baselines3", "sb3_attention_ac"}  # their modules keep nothing between calls


class StatelessCalls:
    """Notices the classic silent mistake: predicting step after step without passing the memory on."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, state: Any, episode_start: np.ndarray | None) -> None:
        """
        Warn, once, when so many calls in a row came without a state. Calls that say a new episode starts do not count.

        :param state: What ``predict`` was given
        :param episode_start: Likewise
        """
        if episode_start is not None and np.all(episode_start):
            return
        if state is not None:
            self.count = 0 if self.count < STATELESS_CALLS else self.count  # once warned, silent
        elif self.count < STATELESS_CALLS:
            self.count += 1
            if self.count == STATELESS_CALLS:
                warnings.warn(
                    f"predict() was called {STATELESS_CALLS} times in a row with state=None on a memory actor: "
                    "it starts without a past each time. Pass the state on, and say where episodes start:\n"
                    "    state, episode_start = None, np.ones(vec_env.num_envs, dtype=bool)\n"
                    "    while True:\n"
                    "        action, state = model.predict(obs, state, episode_start)\n"
                    "        obs, rewards, episode_start, infos = vec_env.step(action)",
                    stacklevel=4,
                )


def checked_episode_starts(state: Any, given: Any, n_envs: int) -> np.ndarray:
    """
    :param state: What ``predict`` was given; without one every episode starts
    :param given: Its ``episode_start``, None for no
    :param n_envs: Number of observations it goes with
    :return: Whether each observation is the first of its episode, [N]
    :raises ValueError: If there is not one value for each observation
    """
    if state is None:
        return np.ones(n_envs, dtype=bool)
    if given is None:
        return np.zeros(n_envs, dtype=bool)
    if np.size(given) != n_envs:
        raise ValueError(
            f"episode_start has {np.size(given)} value(s), but there are {n_envs} observation(s): pass whether each is the "
            "first of its episode, which is what step() of a VecEnv returned as dones."
        )
    return np.reshape(given, n_envs)


class Decision(NamedTuple):
    """
    :param actions: As sampled, [N, *action_shape]
    :param tilt: How Q_att has changed their distributions, None for not
    :param latents: What a memory actor made of the step, [N, ...]; None for an MLP actor
    """

    actions: th.Tensor
    tilt: Tilt | None = None
    latents: TrunkOutput | None = None


class MemoryActor:
    """
    The actor of a policy that remembers, stepped. It holds no memory itself: memories go in and out.

    :param policy: A policy with ``memory_actor=True``, or with ``attention_q=True``
    :param chunk_length: Steps between two rebuilds of the memory, None for the policy's
    """

    def __init__(self, policy: "AttentionActorCriticPolicy", chunk_length: int | None = None):
        self.policy = policy
        trunk, mlp, self.extractor = policy.acting_trunk()
        self.stepper = TrajectoryStepper(trunk, mlp, policy.n_context, chunk_length or policy.chunk_length)
        # In inference mode operations take less time, but a module that keeps what it computes cannot learn from it after:
        # for modules of others it is not used
        packages = {type(module).__module__.partition(".")[0] for module in policy.modules()}
        self._mode: Any = th.inference_mode if packages <= KNOWN_PACKAGES else th.no_grad

    def empty(self, n_envs: int) -> TrajectoryMemory:
        """
        :param n_envs: Number of environments
        :return: A memory without a past
        """
        policy = self.policy
        action_dim = get_action_dim(policy.action_space)
        return self.stepper.empty(n_envs, policy.features_dim, policy.action_event_dim, action_dim, policy.device)

    @th.no_grad()
    def remember(self, windows: TrajectoryWindows) -> TrajectoryMemory:
        """
        :param windows: The last n_context steps of each environment, and after them the one to come, which is not read
        :return: A memory of their last episode
        """
        memory, n = self.empty(len(windows.episode_ids)), self.stepper.n_context
        memory.features[:, :n] = self.policy.window_features(windows, self.extractor)[:, :n]
        memory.events[:, :n] = self.policy.encode_events(windows.previous_actions, windows.episode_starts)[:, :n]
        memory.previous_action.copy_(windows.previous_actions[:, -1])
        current = windows.episode_ids[:, :n] == windows.episode_ids[:, -1:]  # [N, n_context]
        memory.start.copy_(n - current.sum(dim=1))
        self.stepper.recall(memory, slice(None))
        return memory

    def act(
        self, obs: PyTorchObs, memory: TrajectoryMemory, episode_starts: np.ndarray, deterministic: bool = False
    ) -> Decision:
        """
        :param obs: Observations, [N, *obs_shape]
        :param memory: The memory so far, updated in place
        :param episode_starts: Whether each observation is the first of its episode, [N]
        :param deterministic: Whether to sample or use deterministic actions
        :return: Actions, and how Q_att has tilted their distributions
        """
        with self._mode():
            return self._act(obs, memory, episode_starts, deterministic)

    def _act(self, obs: PyTorchObs, memory: TrajectoryMemory, episode_starts: np.ndarray, deterministic: bool) -> Decision:
        policy = self.policy
        features = policy.features(obs, self.extractor)
        is_start = np.asarray(episode_starts, dtype=bool)
        starts = th.as_tensor(is_start, device=features.device) if is_start.any() else None
        events = policy.encode_events(memory.previous_action, starts)
        stepped = self.stepper.step(memory, features, events, starts)
        if policy.memory_actor:
            latent_pi, latent_sde = stepped.latents, stepped.mlp_latents
        else:
            latent_pi, latent_sde = policy.mlp_actor_latent(obs), None
        tilt = policy.tilt(stepped.latents, latent_pi)
        actions = policy.sample_actions(latent_pi, deterministic, None if tilt is None else tilt.offsets, latent_sde)
        memory.previous_action.copy_(actions.reshape(memory.previous_action.shape))
        return Decision(actions, tilt, stepped if policy.memory_actor else None)

    def from_state(self, state: Any, n_envs: int) -> TrajectoryMemory:
        """
        :param state: What ``predict`` returned, or None to start without a past
        :param n_envs: Number of observations it goes with
        :return: A memory to step with; the state itself is never written to
        :raises ValueError: If the state is not one of this policy for as many environments
        """
        empty = self.empty(n_envs)
        if state is None:
            return empty
        expected = [tuple(tensor.shape) for tensor in empty]
        given = [np.shape(array) for array in state] if np.iterable(state) else repr(state)
        if given != expected:
            raise ValueError(
                f"The state {'is' if isinstance(given, str) else 'has shapes'} {given}, but this policy with {n_envs} "
                f"environment(s) expects arrays of shapes {expected}: pass the state that predict() returned for the same "
                "environments, or None to start anew."
            )
        return TrajectoryMemory.from_numpy(state, self.policy.device)
