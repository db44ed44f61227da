"""Look inside a trained model: what each step of a trajectory attends to, and which value the critic gives it."""

import math
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.type_aliases import GymEnv
from torch import nn

from sb3_attention_ac.acting import MemoryActor
from sb3_attention_ac.attention_ac import AttentionActorCritic
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.trajectory import TrajectoryWindows
from sb3_attention_ac.trunk import AttentionTrunk


@th.no_grad()
def collect_trajectory(
    model: AttentionActorCritic, env: GymEnv, n_steps: int | None = None, deterministic: bool = True
) -> TrajectoryWindows:
    """
    Run a model from a reset, through as many episodes as there are steps for.

    :param model: The model
    :param env: One environment, wrapped as in training (e.g. in a frozen ``VecNormalize``)
    :param n_steps: How many steps, W; None for a window as the model is trained on
    :param deterministic: Whether to sample or use deterministic actions
    :return: One window of W steps
    :raises ValueError: If the environment is a vector of several
    """
    env = model._wrap_env(env, verbose=0)
    if env.num_envs != 1:
        raise ValueError(f"A trajectory is one environment's, but {env.num_envs} were given: pass a single one.")
    policy = model.policy
    policy.set_training_mode(False)
    n_steps = n_steps or policy.n_context + policy.chunk_length
    buffer = TrajectoryRolloutBuffer(
        n_steps, policy.observation_space, policy.action_space, policy.device, n_context=0, chunk_length=n_steps
    )
    actor = MemoryActor(policy) if policy.remembers else None
    memory = actor.empty(1) if actor is not None else None
    obs: Any = env.reset()
    starts = np.ones(1, dtype=bool)
    for _ in range(n_steps):
        obs_tensor, _ = policy.obs_to_tensor(obs)
        if actor is not None and memory is not None:
            actions = actor.act(obs_tensor, memory, starts, deterministic).actions.cpu().numpy()
        else:
            actions = policy.sample_actions(policy.mlp_actor_latent(obs_tensor), deterministic).cpu().numpy()
        new_obs, rewards, dones, _ = env.step(policy.actions_for_env(actions))
        buffer.add(obs, actions, rewards, starts)
        obs, starts = new_obs, dones
    windows, _ = buffer.windows(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), n_steps)
    return windows


def _attending_trunk(policy: AttentionActorCriticPolicy, network: str) -> AttentionTrunk:
    """:raises ValueError: If the network does not attend to anything"""
    if network not in ("critic", "actor"):
        raise ValueError(f"network={network!r} is unknown: allowed are 'critic' and 'actor'.")
    if policy.n_layers == 0:
        raise ValueError("This model has no attention: it was made with n_layers=0.")
    if network == "critic":
        return policy.encoder_trunk()[0]
    if not policy.memory_actor:
        raise ValueError("This model's actor is an MLP: only the critic attends, unless memory_actor=True.")
    return policy.actor_trunk


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
    encoder = _attending_trunk(policy, network).encoder
    assert encoder is not None
    recorded: list[th.Tensor] = []

    def record(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        _, queries, keys, _, mask = inputs
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])  # [1, n_heads, W, W]
        recorded.append(scores.masked_fill(~mask, -math.inf).softmax(dim=-1)[0])

    policy.set_training_mode(False)
    hooks = [block.register_forward_pre_hook(record) for block in encoder.blocks]
    try:
        policy.window_latents(windows, windows.episode_ids.shape[1])
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
    latents = policy.window_latents(windows, windows.episode_ids.shape[1])
    values: np.ndarray = policy.values_and_added(latents.critic)[0][0].cpu().numpy()  # [1, W] -> [W]
    return values


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
