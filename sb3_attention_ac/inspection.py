"""Look inside a trained model: what each step of a trajectory attends to, and which value the critic gives it."""

import math
import warnings
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.type_aliases import GymEnv

from sb3_attention_ac.aac import AttentionActorCritic
from sb3_attention_ac.auxiliary.next_step_prediction import NextStep
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.networks.history_network import HistoryNetwork
from sb3_attention_ac.networks.preprocessing import encode_actions
from sb3_attention_ac.networks.transformer import Block
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.type_aliases import TrajectoryWindows


@th.no_grad()
def collect_trajectory(
    model: AttentionActorCritic, env: GymEnv, n_steps: int | None = None, deterministic: bool = True
) -> TrajectoryWindows:
    """
    Run a model from a reset, through as many episodes as there are steps for.

    :param model: The model
    :param env: One environment, wrapped as in training (e.g. in a frozen ``VecNormalize``)
    :param n_steps: How many steps, W; None for as many as see everything before them when acting, too. In a longer episode
        later steps attend to more here, and a warning says so
    :param deterministic: Whether to sample or use deterministic actions
    :return: One window of W steps
    :raises ValueError: If the environment is a vector of several
    """
    env = model._wrap_env(env, verbose=0)
    if env.num_envs != 1:
        raise ValueError(f"A trajectory is one environment's, but {env.num_envs} were given: pass a single one.")
    policy = model.policy
    policy.set_training_mode(False)
    n_context = policy.architecture.n_context
    seen = (n_context // policy.chunk_length + 1) * policy.chunk_length  # each chunk sees n_context steps before its first
    length = seen if n_steps is None else n_steps
    arguments = length, policy.observation_space, policy.action_space, policy.device
    n_landmarks, held_noise = model.rollout_buffer.n_landmarks, model.rollout_buffer.held_noise
    kept: Any = {"n_landmarks": n_landmarks, "landmark_rule": model.rollout_buffer.landmark_rule, "held_noise": held_noise}
    buffer = TrajectoryRolloutBuffer(*arguments, n_context=n_context, chunk_length=length, **kept)
    noise_length = model.sde_sample_freq if model.sde_sample_freq > 0 else model.n_steps
    buffer.reset()
    act = policy.start_acting(buffer, deterministic, in_rollout=False)
    obs: Any = env.reset()
    starts = np.ones(1, dtype=bool)
    for step in range(length):
        if held_noise and step % noise_length == 0:
            buffer.start_noise()  # a step attends to those from before its noise, whether or not there is some here
        masks = get_action_masks(env) if model.use_masking else None
        obs_tensor, _ = policy.obs_to_tensor(obs)
        output = act(obs_tensor, starts, None if masks is None else policy.checked_masks(masks, obs_tensor))
        actions = output.actions
        new_obs, rewards, dones, _ = env.step(policy.actions_for_env(actions.cpu().numpy()))
        buffer.add(obs, actions.cpu().numpy(), rewards, starts, surprise=output.surprise)
        obs, starts = new_obs, dones
    windows, _ = buffer.windows(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), length)
    windows = windows.last(length)
    steps = np.arange(length)
    episode_begins = steps - windows.ages[0].cpu().numpy()
    chunk_sees_from = np.maximum(steps // policy.chunk_length * policy.chunk_length - n_context, 0)
    if n_context > 0 and (episode_begins < chunk_sees_from).any():
        warnings.warn(
            f"An episode of {int(windows.ages.max()) + 1} steps is longer than the {seen} steps that this model sees whole "
            "when acting: later steps attend to more here. Leave n_steps out to collect so many.",
            stacklevel=3,  # past no_grad
        )
    return windows


def _attending_network(policy: AttentionActorCriticPolicy, network: str) -> HistoryNetwork:
    """:raises ValueError: If the network does not attend to anything"""
    if network not in ("critic", "actor"):
        raise ValueError(f"network={network!r} is unknown: allowed are 'critic' and 'actor'.")
    if policy.architecture.n_layers == 0:
        raise ValueError("This model has no attention: it was made with n_layers=0.")
    if network == "critic":
        return policy.masked_encoder().network
    if policy.actor_network is None:
        raise ValueError("This model's actor is an MLP: only the critic attends, unless memory_actor=True.")
    return policy.actor_network


@th.no_grad()
def attention_weights(policy: AttentionActorCriticPolicy, windows: TrajectoryWindows, network: str = "critic") -> np.ndarray:
    """
    How much each step attends to each step, computed from the encoder's own queries, keys and mask.

    :param policy: The policy
    :param windows: One window of W steps, as from :func:`collect_trajectory`
    :param network: "critic", or "actor" (of a model with ``memory_actor``)
    :return: Row t: how step t divides its attention over the steps, [n_layers, n_heads, W, W]
    :raises ValueError: If the network does not attend to anything
    """
    encoder = _attending_network(policy, network).encoder
    assert encoder is not None
    recorded: list[th.Tensor] = []

    def record(block: Block, inputs: tuple[th.Tensor, ...]) -> None:
        x, rotary, mask = inputs[:3]
        queries, keys, _ = block.queries_keys_values(x, rotary)
        scores = queries[:, :, -mask.shape[2] :] @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])  # [1, n_heads, W, W]
        recorded.append((scores + mask).softmax(dim=-1)[0])

    policy.set_training_mode(False)
    hooks = [block.register_forward_pre_hook(record) for block in encoder.blocks]
    try:
        policy.encode_windows(windows, windows.episode_ids.shape[1])
    finally:
        for hook in hooks:
            hook.remove()
    weights: np.ndarray = th.stack(recorded).cpu().numpy()
    return weights


@th.no_grad()
def trajectory_values(policy: AttentionActorCriticPolicy, windows: TrajectoryWindows) -> np.ndarray:
    """
    :param policy: The policy
    :param windows: One window of W steps, as from :func:`collect_trajectory`
    :return: The critic's value of each step, [W]
    """
    policy.set_training_mode(False)
    encoded = policy.encode_windows(windows, windows.episode_ids.shape[1]).critic
    assert encoded is not None
    values: np.ndarray = policy.critic_output(encoded).values[0].cpu().numpy()  # [1, W] -> [W]
    return values


@th.no_grad()
def predict_next(policy: AttentionActorCriticPolicy, windows: TrajectoryWindows, actions: th.Tensor) -> NextStep:
    """
    Predict the next reward and observation for candidate actions.

    :param policy: A policy trained with ``aux_loss="next_step"`` (or a list with "next_step" in it)
    :param windows: What has happened so far, e.g. from :func:`collect_trajectory`
    :param actions: Candidate actions of the last n steps of each window, as the buffer stores them, [N, n, action_dim]
    :return: Expected rewards [N, n] and features of the next observations [N, n, F]
    :raises ValueError: If the policy was made without the next-step prediction
    """
    if policy.next_step_prediction is None:
        raise ValueError(
            f"This policy has no next-step prediction (targets: {', '.join(policy.aux_targets) or 'none'}): train with "
            "aux_loss='next_step'."
        )
    policy.set_training_mode(False)
    n = actions.shape[1]
    encoded = policy.encode_windows(windows, n)
    assert encoded.stepped.hidden is not None
    encoded_actions = encode_actions(actions, policy.action_space)
    return policy.next_step_prediction.predict(encoded.stepped.hidden, encoded.features[:, -n:], encoded_actions)


def plot_attention(weights: np.ndarray, episode_starts: np.ndarray | th.Tensor) -> Figure:
    """
    One heat map per layer (row) and head (column): bright where the step on the vertical axis looks at that on the horizontal.

    :param weights: From :func:`attention_weights`, [n_layers, n_heads, W, W]
    :param episode_starts: Whether each step is the first of its episode, [W] or [1, W]; borders are drawn before them
    :return: The figure
    """
    n_layers, n_heads, width, _ = weights.shape
    starts = th.as_tensor(episode_starts).cpu().numpy().reshape(width)
    figure = Figure(figsize=(1 + 3 * n_heads, 0.6 + 3 * n_layers), layout="constrained")
    axes = figure.subplots(n_layers, n_heads, squeeze=False, sharex=True, sharey=True)
    for (layer, head), axis in np.ndenumerate(axes):
        image = axis.imshow(weights[layer, head], vmin=0, vmax=weights.max(), cmap="magma")
        axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize="small")
        for border in np.flatnonzero(starts[1:]) + 0.5:
            axis.axhline(border, color="white", linewidth=0.8, linestyle="--")
            axis.axvline(border, color="white", linewidth=0.8, linestyle="--")
    figure.supxlabel("step attended to")
    figure.supylabel("attending step")
    figure.colorbar(image, ax=axes, label="attention weight")
    return figure
