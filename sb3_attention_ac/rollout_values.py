"""
Values of a finished rollout, in a few batched passes under the policy that collected it, and what the gates make of them. The
critic is not in the step loop: this is the only place that asks it before training.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.distributed import of_all_envs
from sb3_attention_ac.evaluation import evaluate_action_advantages
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.type_aliases import CriticOutput, TrajectoryWindows, WindowSamples, map_obs

# Larger passes are no faster on a CPU, and take and return so much memory that the kernel has to map it anew
MAX_STEPS_PER_PASS = 1024


class RolloutValues(NamedTuple):
    """
    :param values: V(h_t), [n_steps, n_envs]
    :param mlp_values: V_mlp(s_t), [n_steps, n_envs]; for a memory actor the values
    :param residual: What attention would add to V_mlp(s_t) at a gate of one, [n_steps, n_envs]; zeros for a memory actor, and
        while attention is skipped
    :param action_advantages: A_att(h_t, a_t) of Q_att, [n_steps, n_envs]; zeros without it
    :param last: Values of the observations after the last step, [n_envs] each
    :param terminal: Values of the observations on which a time limit cut episodes off, in the buffer's order, [number] each
    """

    values: np.ndarray
    mlp_values: np.ndarray
    residual: np.ndarray
    action_advantages: np.ndarray
    last: CriticOutput
    terminal: CriticOutput


def _split(n_windows: int, window_length: int) -> Iterator[slice]:
    per_pass = max(MAX_STEPS_PER_PASS // window_length, 1)
    return (slice(i, i + per_pass) for i in range(0, n_windows, per_pass))


def _passes(buffer: TrajectoryRolloutBuffer) -> Iterator[tuple[WindowSamples, tuple[np.ndarray, np.ndarray]]]:
    """All windows of a rollout, some at a time, and which steps and environments these are, [N, n] and [N, 1]"""
    for starts, length in buffer.chunks():
        first, env = buffer.of_each_env(starts)
        for part in _split(len(first), buffer.n_context + length):
            where = first[part, None] + np.arange(length), env[part, None]
            yield buffer.window_samples(first[part], env[part], length), where


@th.no_grad()
def evaluate_rollout(policy: AttentionActorCriticPolicy, buffer: TrajectoryRolloutBuffer, last_obs: Any) -> RolloutValues:
    """
    :param policy: The policy that collected the rollout
    :param buffer: A full buffer
    :param last_obs: The observations after its last step, [n_envs, *obs_shape]
    :return: What advantages need
    """
    attends = not policy.skips_attention
    values, mlp_values, residual, action_advantages = (np.zeros_like(buffer.values) for _ in range(4))
    for batch, where in _passes(buffer):
        encoded = policy.encode_windows(batch.windows, batch.actions.shape[1], attends=attends)
        assert encoded.critic is not None
        critic = policy.critic_output(encoded.critic)
        if policy.attention_q is not None:
            action_advantages[where] = evaluate_action_advantages(policy, encoded, batch).cpu().numpy()
        values[where] = critic.values.cpu().numpy()
        mlp_values[where] = critic.mlp_values.cpu().numpy()
        if critic.residual is not None:
            residual[where] = critic.residual.cpu().numpy()
    last_steps = np.full(buffer.n_envs, buffer.buffer_size - 1)
    last = _bootstrap(policy, buffer.bootstrap_windows(last_steps, np.arange(buffer.n_envs), last_obs), attends)
    return RolloutValues(values, mlp_values, residual, action_advantages, last, _terminal_values(policy, buffer, attends))


def update_gates(
    policy: AttentionActorCriticPolicy, buffer: TrajectoryRolloutBuffer, rollout: RolloutValues, dones: np.ndarray
) -> dict[str, float]:
    """
    Let the gates see how attention has done on a rollout, which nothing was learned from yet.

    :param policy: The policy, with its gates
    :param buffer: The rollout, with advantages
    :param rollout: Its values
    :param dones: Whether the last step ended an episode, [n_envs]
    :return: What to log
    """
    gate, attention_q, logged = policy.value_gate, policy.attention_q, {}
    if gate is not None:
        logged["attention_gate"] = float(gate.gate)
        if policy.skips_attention:
            gate.skip()
        else:
            advantages = buffer.advantages
            if not gate.is_closed:
                last, terminal = (part.mlp_values.cpu().numpy() for part in (rollout.last, rollout.terminal))
                advantages = buffer.advantages_under(rollout.mlp_values, last, dones, terminal)
            gate.update(of_all_envs(rollout.residual), of_all_envs(advantages))
    if attention_q is not None:
        predicted, advantages = of_all_envs(rollout.action_advantages), of_all_envs(buffer.advantages)
        logged |= {f"attention_q_{name}": value for name, value in attention_q.update_gate(predicted, advantages).items()}
    return logged


def _terminal_values(policy: AttentionActorCriticPolicy, buffer: TrajectoryRolloutBuffer, attends: bool) -> CriticOutput:
    """:return: Values of the buffer's terminal observations, [number of them]"""
    if not buffer.terminal_observations:
        nothing = th.zeros(0)
        return CriticOutput(nothing, nothing, None)
    steps, envs = np.array(list(buffer.terminal_observations)).T
    observations = list(buffer.terminal_observations.values())
    outputs = []
    for part in _split(len(steps), buffer.n_context + 1):
        stacked = map_obs(lambda *obs: np.stack(obs), *observations[part])
        outputs.append(_bootstrap(policy, buffer.bootstrap_windows(steps[part], envs[part], stacked), attends))
    return CriticOutput(th.cat([o.values for o in outputs]), th.cat([o.mlp_values for o in outputs]), None)


def _bootstrap(policy: AttentionActorCriticPolicy, windows: TrajectoryWindows, attends: bool) -> CriticOutput:
    """:return: Values of the last step of each window, [N]"""
    encoded = policy.encode_windows(windows, 1, attends=attends).critic
    assert encoded is not None
    output = policy.critic_output(encoded)  # [N, 1]
    return CriticOutput(output.values[:, 0], output.mlp_values[:, 0], None)
