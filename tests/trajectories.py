"""Random rollouts for the tests: any episode pattern, no environment needed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.networks.distributions import Categoricals
from sb3_attention_ac.policies import Act, AttentionActorCriticPolicy
from sb3_attention_ac.type_aliases import ActorOutput, TrajectoryWindows

OBSERVATION_SPACE = spaces.Box(-1.0, 1.0, (3,), dtype=np.float32)
ACTION_SPACES = {
    "Box": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
ACTORS: dict[str, dict[str, Any]] = {
    "MLP actor": {},
    "memory actor": {"memory_actor": True},
    "shared": {"memory_actor": True, "share_encoder": True},
}

rollouts = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "n_steps": st.integers(1, 13),
        "n_envs": st.integers(1, 3),
        "context_length": st.integers(1, 7),
        "chunk_length": st.none() | st.integers(1, 6),  # None as shipped: a memory actor's 32, a whole short rollout
        "episode_end": st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    }
)


def make_policy(context_length: int, action_space=ACTION_SPACES["Discrete"], seed: int = 0, perturb: bool = True, **kwargs):
    """A small policy, perturbed so that what starts at zero takes part; ``chunk_length=`` for shorter chunks"""
    th.manual_seed(seed)
    kwargs = {"observation_space": OBSERVATION_SPACE, "d_model": 8, "n_heads": 2, "net_arch": [6], **kwargs}
    policy = AttentionActorCriticPolicy(
        action_space=action_space, lr_schedule=lambda _: 1e-3, context_length=context_length, optimizer_kwargs={}, **kwargs
    )
    if perturb:
        with th.no_grad():
            for name, parameter in policy.named_parameters():
                if name != "log_std":
                    parameter.add_(0.3 * th.randn_like(parameter))
            if policy.value_gate is not None:
                policy.value_gate.gate.fill_(0.7)
    policy.set_training_mode(False)
    return policy


def make_buffer(policy, n_steps: int, n_envs: int, gae_lambda: float = 0.9) -> TrajectoryRolloutBuffer:
    """As the algorithm makes it; acting goes by its chunks from now on."""
    buffer = TrajectoryRolloutBuffer(
        n_steps,
        policy.observation_space,
        policy.action_space,
        device="cpu",
        gae_lambda=gae_lambda,
        gamma=0.97,
        n_envs=n_envs,
        n_context=policy.architecture.n_context,
        chunk_length=policy.chunk_length,
        n_landmarks=policy.architecture.n_landmarks,
        landmark_rule=policy.architecture.landmark_rule,
        held_noise=policy.use_sde and not policy.memory_actor,
    )
    policy.chunk_length = buffer.chunk_length
    return buffer


def random_actions(space: spaces.Space[Any], rng: np.random.Generator, n: int) -> np.ndarray:
    """As a policy samples them: a Gaussian's beyond the bounds of a Box too"""
    if isinstance(space, spaces.Box):
        return rng.normal(size=(n, *space.shape)).astype(np.float32)
    space.seed(int(rng.integers(2**31)))
    return np.stack([np.asarray(space.sample()) for _ in range(n)])


def random_masks(space: spaces.Space[Any], rng: np.random.Generator, n: int) -> th.Tensor:
    """[n, mask_dim], of each group one action is allowed at least"""
    parts = []
    for size in Categoricals(space).sizes:
        part = rng.random((n, size)) < 0.5
        part[np.arange(n), rng.integers(size, size=n)] = True
        parts.append(part)
    return th.as_tensor(np.concatenate(parts, axis=1))


def fill(
    buffer,
    rng: np.random.Generator,
    starts: np.ndarray,
    episode_end: float,
    start_acting: Callable[[TrajectoryRolloutBuffer], Act] | None = None,
    masked: bool = False,
) -> np.ndarray:
    """
    Fill one rollout, as ``collect_rollouts`` does.

    :param starts: Whether the first observations start episodes, [n_envs]
    :param episode_end: Probability that a step ends an episode; about half of these are time limits
    :param start_acting: Of a policy, or around it (:func:`recorded`, :func:`noisy`); None for random actions
    :param masked: Whether to draw action masks
    :return: Whether the next observations start episodes
    """
    buffer.reset()
    act = None if start_acting is None else start_acting(buffer)
    for _ in range(buffer.buffer_size):
        obs = next_observations(buffer, rng)
        masks = random_masks(buffer.action_space, rng, buffer.n_envs) if masked else None
        if act is None:
            actions, output = random_actions(buffer.action_space, rng, buffer.n_envs), None
        else:
            with th.no_grad():
                output = act(th.as_tensor(obs), starts, masks)
            actions = output.actions.numpy()
        dones, rewards = rng.random(buffer.n_envs) < episode_end, rng.normal(size=buffer.n_envs)
        log_prob, offsets, surprise = (None, None, None) if output is None else output[1:]
        buffer.add(obs, actions, rewards, starts, None, log_prob, masks, offsets, surprise)
        for env in np.flatnonzero(dones & (rng.random(buffer.n_envs) < 0.5)):
            buffer.add_terminal_observation(int(env), rng.uniform(-1, 1, OBSERVATION_SPACE.shape).astype(np.float32))
        starts = dones
    return starts


def recorded(start_acting: Callable[[TrajectoryRolloutBuffer], Act], outputs: list[ActorOutput]) -> Any:
    """For :func:`fill`: what acting gave at every step of the rollout goes into ``outputs``, which is emptied before."""

    def start(buffer: TrajectoryRolloutBuffer) -> Act:
        outputs.clear()
        act = start_acting(buffer)

        def noting(*arguments: Any) -> ActorOutput:
            outputs.append(act(*arguments))
            return outputs[-1]

        return noting

    return start


def noisy(policy: AttentionActorCriticPolicy, every: int) -> Any:
    """For :func:`fill`: gSDE with noise that is sampled anew every few steps, as with ``sde_sample_freq``"""

    def start(buffer: TrajectoryRolloutBuffer) -> Act:
        act, n_steps = policy.start_acting(buffer), 0

        def sampling(*arguments: Any) -> ActorOutput:
            nonlocal n_steps
            if n_steps % every == 0:
                policy.reset_noise(buffer.n_envs)
                buffer.start_noise()
            n_steps += 1
            return act(*arguments)

        return sampling

    return start


def next_observations(buffer, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (buffer.n_envs, *OBSERVATION_SPACE.shape)).astype(np.float32)


def random_windows(seed: int, width: int, episode_end: float) -> TrajectoryWindows:
    """Four windows, of a Discrete action space with three actions"""
    generator = th.Generator().manual_seed(seed)
    starts = th.rand((4, width), generator=generator) < episode_end
    step = th.arange(width).expand(4, width)
    began = th.where(starts, step, 0).cummax(dim=1).values
    return TrajectoryWindows(
        th.randn((4, width, *OBSERVATION_SPACE.shape), generator=generator),
        th.randint(0, 3, (4, width, 1), generator=generator).float(),
        th.randn((4, width), generator=generator),
        starts,
        starts.long().cumsum(1),
        (step - began).float(),
    )


def perturbed(windows: TrajectoryWindows, where: th.Tensor) -> TrajectoryWindows:
    """Other observations, and other actions and rewards before them, where asked"""
    noise = th.randn_like(windows.observations)
    return windows._replace(
        observations=th.where(where.unsqueeze(-1), noise, windows.observations),
        previous_actions=th.where(where.unsqueeze(-1), 1 - windows.previous_actions.clamp(0, 1), windows.previous_actions),
        previous_rewards=th.where(where, windows.previous_rewards + 1, windows.previous_rewards),
    )
