"""
Values and log probabilities of a finished rollout, in a few batched passes under the policy that collected it. The critic is
not in the step loop: this is the only place that asks it before training.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.trajectory import TrajectoryWindows, map_obs
from sb3_attention_ac.trunk import TrunkOutput

# Larger passes are no faster on a CPU, and take and return so much memory that the kernel has to map it anew
MAX_STEPS_PER_PASS = 1024


class RolloutEstimates(NamedTuple):
    """
    :param values: V(s_t), [n_steps, n_envs]
    :param log_probs: log pi(a_t | s_t), [n_steps, n_envs]
    :param added: What attention would add to V_mlp(s_t) with a share of one, [n_steps, n_envs]; zeros for a memory actor
    :param action_advantages: A_att(h_t, a_t), [n_steps, n_envs]; zeros without ``attention_q``
    :param last_values: Values of the observations after the last step, [n_envs]
    :param terminal_values: Values of the observations on which a time limit cut episodes off, in the buffer's order
    """

    values: np.ndarray
    log_probs: np.ndarray
    added: np.ndarray
    action_advantages: np.ndarray
    last_values: th.Tensor
    terminal_values: np.ndarray


def _split(n_windows: int, window_length: int) -> Iterator[slice]:
    per_pass = max(MAX_STEPS_PER_PASS // window_length, 1)
    return (slice(i, i + per_pass) for i in range(0, n_windows, per_pass))


@th.no_grad()
def estimate_rollout(
    policy: AttentionActorCriticPolicy, buffer: TrajectoryRolloutBuffer, last_obs: Any, acted: Sequence[TrunkOutput] = ()
) -> RolloutEstimates:
    """
    :param policy: The policy that collected the rollout
    :param buffer: A full buffer
    :param last_obs: The observations after its last step, [n_envs, *obs_shape]
    :param acted: What a memory actor made of each step while acting, [n_envs, ...] each; without, it is computed again
    :return: What advantages and ratios need
    """
    latents = tuple(map(th.stack, zip(*acted, strict=True)))  # [n_steps, n_envs, ...] each; none without ``acted``
    values, log_probs, added, action_advantages = (np.zeros_like(buffer.values) for _ in range(4))
    for starts, length in buffer.chunks():
        first, env = (grid.ravel() for grid in np.meshgrid(starts, np.arange(buffer.n_envs), indexing="ij"))
        for part in _split(len(first), buffer.n_context + length):
            windows, actions = buffer.windows(first[part], env[part], length)
            where = first[part, None] + np.arange(length), env[part, None]
            known = TrunkOutput(*(latent[where] for latent in latents)) if latents else None  # [N, n, ...]
            evaluation = policy.evaluate_windows(windows, actions, buffer.to_torch(buffer.offsets[where]), known)
            values[where] = evaluation.values.cpu().numpy()
            if evaluation.added is not None:
                added[where] = evaluation.added.cpu().numpy()
            if evaluation.log_prob is not None:
                log_probs[where] = evaluation.log_prob.cpu().numpy()
            if evaluation.action_advantages is not None:
                action_advantages[where] = evaluation.action_advantages.cpu().numpy()
    if not policy.memory_actor:
        for observations, actions, steps, envs in buffer.in_order(MAX_STEPS_PER_PASS):
            offsets = buffer.to_torch(buffer.offsets[steps, envs])
            log_probs[steps, envs] = policy.evaluate_actor(observations, actions, offsets)[0].cpu().numpy()
    last_steps = np.full(buffer.n_envs, buffer.buffer_size - 1)
    last_values = _bootstrap(policy, buffer.bootstrap_windows(last_steps, np.arange(buffer.n_envs), last_obs))
    return RolloutEstimates(values, log_probs, added, action_advantages, last_values, _terminal_values(policy, buffer))


def _terminal_values(policy: AttentionActorCriticPolicy, buffer: TrajectoryRolloutBuffer) -> np.ndarray:
    """:return: Values of the buffer's terminal observations, [number of them]"""
    if not buffer.terminal_observations:
        return np.zeros(0, dtype=np.float32)
    steps, envs = np.array(list(buffer.terminal_observations)).T
    observations = list(buffer.terminal_observations.values())
    terminal_values = []
    for part in _split(len(steps), buffer.n_context + 1):
        stacked = map_obs(lambda *obs: np.stack(obs), *observations[part])
        windows = buffer.bootstrap_windows(steps[part], envs[part], stacked)
        terminal_values.append(_bootstrap(policy, windows).cpu().numpy())
    return np.concatenate(terminal_values)


def _bootstrap(policy: AttentionActorCriticPolicy, windows: TrajectoryWindows) -> th.Tensor:
    """:return: Values of the last step of each window, [N]"""
    values, _ = policy.values_and_added(policy.window_latents(windows, 1).critic)  # [N, 1]
    return values[:, 0]
