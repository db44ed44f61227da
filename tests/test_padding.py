"""What was never stored, and what is not finite in another episode, is not seen: not by extractors, values or gradients."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import SMALL, TINY
from trajectories import ACTORS, make_policy, random_windows

from sb3_attention_ac import AAC

KINDS: dict[str, dict[str, Any]] = {
    **ACTORS,
    "two layers": {"n_layers": 2},
    "landmarks": {"memory_actor": True, "n_landmarks": 2},
    "Q_att": {"attention_q": True},
}


class Far(gym.Env):
    """Observations far from zero, in episodes of 9 steps; one reward may be bad"""

    action_space = spaces.Discrete(2)

    def __init__(self, as_dict: bool = False, bad_at: int = -1, bad: float = 0.0):
        self.vector = spaces.Box(45.0, 55.0, (2,), np.float32)
        self.as_dict, self.bad_at, self.bad, self.total = as_dict, bad_at, bad, 0
        self.observation_space = spaces.Dict(price=self.vector, kind=spaces.Discrete(2)) if as_dict else self.vector
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t, self.total = self.t + 1, self.total + 1
        reward = self.bad if self.total == self.bad_at else float(action)
        return self.observation_space.sample(), reward, self.t == 9, False, {}


class Direction(BaseFeaturesExtractor):
    """x / |x|, which is NaN for zeros, and so is its gradient"""

    def __init__(self, space):
        super().__init__(space, 2)
        self.scale = th.nn.Parameter(th.ones(()))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.scale * obs / obs.square().sum(dim=-1, keepdim=True).sqrt()


class Reciprocal(BaseFeaturesExtractor):
    """1 / x of one entry of Dict observations"""

    def __init__(self, space):
        super().__init__(space, 4)

    def forward(self, obs: dict[str, th.Tensor]) -> th.Tensor:
        return th.cat([1 / obs["price"], obs["kind"].flatten(1)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extractor", [Direction, Reciprocal])
@pytest.mark.parametrize("aux_loss", ["auto", "prediction"])
def test_extractors_that_are_not_finite_on_zeros(kind, extractor, aux_loss):
    """Rows before the first step, also of an environment whose context is not full, and of a loaded model"""
    is_dict = extractor is Reciprocal
    policy_kwargs = {**TINY, **KINDS[kind], "features_extractor_class": extractor}
    settings = {**SMALL, "policy_kwargs": policy_kwargs, "aux_loss": aux_loss}
    env = DummyVecEnv([lambda: Far(is_dict)] * 2)
    model = AAC("MultiInputPolicy" if is_dict else "MlpPolicy", env, **settings).learn(60)
    for name, parameter in model.policy.named_parameters():
        assert th.isfinite(parameter).all(), name


class Normalized(BaseFeaturesExtractor):
    """Keeps statistics of what it is given"""

    def __init__(self, space):
        super().__init__(space, 2)
        self.norm = th.nn.BatchNorm1d(2, momentum=0.2)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.norm(obs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aux_loss", ["auto", "prediction"])
def test_statistics_of_batch_norm_are_those_of_observations(kind, aux_loss):
    """Padding with zeros would pull the mean of 50 far down. While acting, and by values of a rollout, they do not move."""
    policy_kwargs = {**TINY, **KINDS[kind], "features_extractor_class": Normalized}
    settings = {**SMALL, "n_steps": 20, "batch_size": 20, "n_epochs": 4, "aux_loss": aux_loss, "policy_kwargs": policy_kwargs}
    model = AAC("MlpPolicy", DummyVecEnv([Far] * 2), **settings)
    norm, train = model.policy.features_extractor.norm, model.train
    seen: list[list[float]] = []

    def noting() -> None:
        seen.append(norm.running_mean.tolist())
        train()
        seen.append(norm.running_mean.tolist())

    model.train = noting
    model.learn(80)
    assert seen[0] == [0, 0] and seen[1] == seen[2] != seen[3]
    assert norm.running_mean.sub(50).abs().max() < 2
    assert (norm.running_var.sqrt() < 4).all() and (norm.running_var.sqrt() > 1.5).all()  # uniform over 10: 2.9


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aux_loss", ["auto", "prediction"])
def test_a_bad_reward_spoils_its_own_rollout_alone(kind, bad, aux_loss):
    """It is in the context of the two rollouts after it, in an episode that is over."""
    policy_kwargs = {**TINY, **KINDS[kind], "context_length": 16, "age_input": "sinusoidal"}
    settings = {**SMALL, "policy_kwargs": policy_kwargs, "aux_loss": aux_loss, "n_trajectories": 3 * (aux_loss != "auto")}
    env = DummyVecEnv([lambda: Far(bad_at=17, bad=bad), Far])
    model, said = AAC("MlpPolicy", env, **settings), []
    for _ in range(5):
        try:
            model.learn(20, reset_num_timesteps=False)
            said.append("learned")
        except FloatingPointError:
            said.append("not finite")
    assert said == ["learned", "not finite", "learned", "learned", "learned"]
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("kind", ["MLP actor", "memory actor", "shared", "two layers"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_do_not_see_what_is_bad_in_another_episode(kind, bad):
    policy, windows = make_policy(4, **KINDS[kind]), random_windows(3, 12, 0.0)
    windows.episode_ids[:, 6:] = 1
    windows.episode_starts[:, 6] = True
    rewards = windows.previous_rewards.clone()
    rewards[:, 2:5] = bad

    def gradients(given) -> dict[str, th.Tensor | None]:
        policy.zero_grad()
        encoded = policy.encode_windows(given, 6)
        loss = policy.critic_output(encoded.critic).values.square().sum()
        if encoded.actor is not None:
            loss = loss + encoded.actor.latent.square().sum()
        loss.backward()
        return {name: parameter.grad for name, parameter in policy.named_parameters()}

    good, spoiled = gradients(windows), gradients(windows._replace(previous_rewards=rewards))
    assert any(gradient is not None and gradient.any() for gradient in good.values())
    for name, gradient in good.items():
        assert (gradient is None) == (spoiled[name] is None)
        if gradient is not None:
            th.testing.assert_close(spoiled[name], gradient, msg=name)
