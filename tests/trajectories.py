"""Random rollouts for the tests: any episode pattern, no environment needed."""

import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.policies import AttentionActorCriticPolicy

OBSERVATION_SPACE = spaces.Box(-1.0, 1.0, (3,), dtype=np.float32)
ACTION_SPACES = {
    "Box": spaces.Box(-1.0, 1.0, (2,), dtype=np.float32),
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}

rollouts = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "n_steps": st.integers(1, 13),
        "n_envs": st.integers(1, 3),
        "context_length": st.integers(1, 7),
        "episode_end": st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    }
)


def make_policy(context_length: int, action_space=ACTION_SPACES["Discrete"], seed: int = 0, perturb: bool = True, **kwargs):
    """A small policy; perturbed, so that what starts at zero takes part."""
    th.manual_seed(seed)
    kwargs = {"d_model": 8, "n_heads": 2, "net_arch": [6], **kwargs}
    policy = AttentionActorCriticPolicy(
        OBSERVATION_SPACE, action_space, lambda _: 1e-3, context_length=context_length, optimizer_kwargs={}, **kwargs
    )
    if perturb:
        with th.no_grad():
            for name, parameter in policy.named_parameters():
                if name != "log_std":
                    parameter.add_(0.3 * th.randn_like(parameter))
            if policy.value_gate is not None:
                policy.value_gate.share.fill_(0.7)
    policy.set_training_mode(False)
    return policy


def make_buffer(policy, n_steps: int, n_envs: int, gae_lambda: float = 0.9) -> TrajectoryRolloutBuffer:
    return TrajectoryRolloutBuffer(
        n_steps,
        policy.observation_space,
        policy.action_space,
        device="cpu",
        gae_lambda=gae_lambda,
        gamma=0.97,
        n_envs=n_envs,
        n_context=policy.n_context,
        chunk_length=policy.chunk_length,
    )


def fill(buffer, rng: np.random.Generator, starts: np.ndarray, episode_end: float, act=None) -> np.ndarray:
    """
    Fill one rollout.

    :param starts: Whether the first observations start episodes, [n_envs]
    :param episode_end: Probability that a step ends an episode; about half of these are time limits
    :param act: Function from observations and episode starts to actions; None for random ones
    :return: Whether the next observations start episodes
    """
    buffer.reset()
    for _ in range(buffer.buffer_size):
        obs = rng.uniform(-1, 1, (buffer.n_envs, *OBSERVATION_SPACE.shape)).astype(np.float32)
        if act is None:
            buffer.action_space.seed(int(rng.integers(2**31)))
            actions = np.stack([np.asarray(buffer.action_space.sample()) for _ in range(buffer.n_envs)])
        else:
            actions = act(th.as_tensor(obs), starts)
        dones = rng.random(buffer.n_envs) < episode_end
        buffer.add(obs, actions, rng.normal(size=buffer.n_envs), starts)
        for env in np.flatnonzero(dones & (rng.random(buffer.n_envs) < 0.5)):
            buffer.add_terminal_observation(env, rng.uniform(-1, 1, OBSERVATION_SPACE.shape).astype(np.float32))
        starts = dones
    return starts


def next_observations(buffer, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (buffer.n_envs, *OBSERVATION_SPACE.shape)).astype(np.float32)
