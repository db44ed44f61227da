"""What scripts put into a model while it trains, or between two runs: hooks, distributions, networks, buffers, numbers."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import SMALL, TINY, RandomEnv, random_env

from sb3_attention_ac import AAC
from sb3_attention_ac.policies import AttentionActorCriticMultiInputPolicy, AttentionActorCriticPolicy

both_actors = pytest.mark.parametrize("memory_actor", [False, True])


def make(memory_actor=False, env=None, policy="MlpPolicy", algorithm=AAC, **options):
    policy_kwargs = {**TINY, "memory_actor": memory_actor}
    return algorithm(policy, env or random_env(), **{**SMALL, "policy_kwargs": policy_kwargs, **options})


class Callback(BaseCallback):
    """Calls functions of the model at its start, at each step, and at the end of each rollout"""

    def __init__(self, start=None, step=None, rollout_end=None):
        super().__init__()
        self.start, self.step, self.rollout_end = start, step, rollout_end

    def _init_callback(self):
        if self.start is not None:
            self.start(self.model)

    def _on_step(self):
        if self.step is not None:
            self.step(self)
        return True

    def _on_rollout_end(self):
        if self.rollout_end is not None:
            self.rollout_end(self)


@pytest.mark.parametrize("how", ["hook", "replaced method"])
@both_actors
def test_what_networks_gave_while_acting_can_be_learned_from(memory_actor, how):
    model, kept, probe = make(memory_actor), [], th.nn.Linear(64, 1)

    def keep(latent):
        kept.append(latent)
        return latent

    mlps = model.policy.mlp_extractor
    if how == "hook":
        mlps.policy_net.register_forward_hook(lambda module, given, latent: keep(latent))
    else:
        forward_actor = mlps.forward_actor
        mlps.forward_actor = lambda features: keep(forward_actor(features))
    model.learn(20, callback=Callback(rollout_end=lambda callback: probe(kept[0].reshape(-1, 64)).sum().backward()))
    assert probe.weight.grad.abs().sum() > 0


def test_there_are_no_values_before_the_end_of_a_rollout():
    seen, at_end = [], []
    callback = Callback(
        step=lambda callback: seen.append(callback.locals["values"]),
        rollout_end=lambda callback: at_end.append(callback.locals["values"].shape),
    )
    make().learn(40, callback=callback)
    assert seen == [None] * 20 and at_end == [(2, 1)] * 2


class AlwaysOne(CategoricalDistribution):
    def sample(self):
        return th.ones(len(self.distribution.logits))


@both_actors
def test_another_distribution_is_refused_whenever_it_comes(memory_actor):
    model = make(memory_actor)
    model.policy.action_dist = AlwaysOne(3)
    with pytest.raises(TypeError, match="AlwaysOne"):
        model.predict(np.zeros(3, dtype=np.float32))

    def put_in(callback):
        callback.model.policy.action_dist = AlwaysOne(3)

    with pytest.raises(TypeError, match="AlwaysOne"):
        make(memory_actor).learn(40, callback=Callback(step=put_in))


def test_a_hook_that_a_callback_registers_is_said_to_have_no_effect():
    """As WandbCallback does"""
    callback = Callback(start=lambda model: model.policy.register_forward_hook(lambda *given: pytest.fail("called")))
    with pytest.warns(UserWarning, match="Training does not call forward hooks of the policy"):
        make().learn(20, callback=callback)


class Linear(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 3)
        self.linear = th.nn.Linear(3, 3)

    def forward(self, observations):
        return self.linear(observations)


@pytest.mark.parametrize("aux_loss", ["contrastive", "prediction"])
@both_actors
def test_keys_follow_networks_that_are_put_in(memory_actor, aux_loss):
    model = make(memory_actor, aux_loss=aux_loss)
    model.learn(20)
    policy, masked = model.policy, model.policy.masked_prediction
    same = masked.key_extractor, masked.key_mlp
    model.learn(20)
    assert same == (masked.key_extractor, masked.key_mlp)
    policy.features_extractor = Linear(model.observation_space)
    mlp = policy.mlp_extractor.policy_net if memory_actor and policy.critic_encoder is None else policy.mlp_extractor.value_net
    mlp[-1] = th.nn.ReLU()
    policy.optimizer = th.optim.Adam(policy.parameters())
    model.learn(20)
    assert isinstance(masked.key_extractor, Linear) and isinstance(masked.key_mlp[-1], th.nn.ReLU)
    assert not any(parameter.requires_grad for parameter in masked.key_extractor.parameters())


def test_too_many_or_double_positional_arguments_are_refused():
    spaces_ = spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda progress: 1e-3
    with pytest.raises(TypeError, match="activation_fn twice, by position and by name"):
        AttentionActorCriticPolicy(*spaces_, None, th.nn.Tanh, activation_fn=th.nn.ReLU)
    with pytest.raises(TypeError, match="takes at most 17 positional arguments, SB3's, but 19 were given"):
        AttentionActorCriticPolicy(*spaces_, *range(16))
    space = spaces.Dict({"a": spaces_[0]})
    policy = AttentionActorCriticMultiInputPolicy(space, *spaces_[1:], *[None, th.nn.Tanh, True, False, 0.0, True, False])
    assert policy.features_dim == 3


@both_actors
def test_a_rollout_in_another_buffer_uses_that_one_alone(memory_actor):
    model = make(memory_actor, random_env(actions="Box"), use_sde=True, sde_sample_freq=5)
    model.learn(20)
    other, own = copy.deepcopy(model.rollout_buffer), model.rollout_buffer
    before = own.storage.noise_id, other.storage.noise_id
    _, callback = model._setup_learn(20)
    model.collect_rollouts(model.env, callback, other, 10)
    assert own.storage.noise_id == before[0] and other.storage.noise_id == before[1] + 3


def test_gates_see_the_buffer_that_was_filled(monkeypatch):
    model, seen = make(), []
    other = copy.deepcopy(model.rollout_buffer)
    _, callback = model._setup_learn(20)
    gate = model.policy.value_gate
    monkeypatch.setattr(gate, "skip", lambda: None)
    monkeypatch.setattr(type(model.policy), "skips_attention", False)
    monkeypatch.setattr(gate, "update", lambda residual, advantages: seen.append(advantages))
    model.collect_rollouts(model.env, callback, other, 10)
    np.testing.assert_array_equal(seen[0], other.advantages)


def test_a_state_from_before_another_chunk_length_is_refused_in_words():
    model = make(memory_actor=True, n_steps=20, batch_size=20)
    state, obs = None, np.zeros((2, 3), dtype=np.float32)
    for _ in range(18):
        _, state = model.predict(obs, state, np.zeros(2, dtype=bool))
    model.n_steps = model.rollout_buffer.buffer_size = 7
    model.batch_size = 7
    model.learn(14)
    with pytest.raises(ValueError, match="The state is not one of this policy: its features have the shape"):
        model.predict(obs, state, np.zeros(2, dtype=bool))


def test_a_second_optimizer_has_its_own_learning_rate():
    model = make(learning_rate=1e-3)
    model.learn(20)
    rates = [group["lr"] for group in model.policy.optimizer.param_groups]
    second = th.optim.Adam([th.nn.Parameter(th.ones(1))], lr=1.0)
    model._update_learning_rate(second)
    model._update_learning_rate(second)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == rates and len(set(rates)) == 2
    assert second.param_groups[0]["lr"] == 1e-3


def test_clipping_parameters_may_be_numbers():
    model = make()
    model.clip_range, model.clip_range_vf = 0.1, 1
    model.learn(20)
    logged = model.logger.name_to_value
    assert (logged["train/clip_range"], logged["train/clip_range_vf"]) == (0.1, 1.0)


class OwnExtractor(AttentionActorCriticMultiInputPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, features_extractor_class=Vector, **kwargs)


class Vector(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space.spaces["vector"])

    def forward(self, observations):
        return super().forward(observations["vector"])


class WithOwnPolicy(AAC):
    policy_aliases = {"MultiInputPolicy": OwnExtractor}  # noqa: RUF012  # as SB3's own subclasses do


def test_an_image_that_no_default_network_reads_may_be_of_any_size():
    vector, image = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (10, 10, 3), np.uint8)
    space = spaces.Dict({"vector": vector, "image": image})
    env = DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(2))])
    both = {"actor_keys": ["vector"], "critic_keys": ["vector"]}
    make(env=env, policy="MultiInputPolicy", policy_kwargs={**TINY, **both})
    make(env=env, policy="MultiInputPolicy", algorithm=WithOwnPolicy)
    with pytest.raises(ValueError, match="too small for 'MultiInputPolicy'"):
        make(env=env, policy="MultiInputPolicy", policy_kwargs={**TINY, "actor_keys": ["vector"]})
