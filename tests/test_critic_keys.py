"""A critic that sees more than the actor: entries of Dict observations that are the critic's alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_attention_ac import AAC
from sb3_attention_ac.evaluation import evaluate_actions, evaluate_transitions
from sb3_attention_ac.policies import AttentionActorCriticMultiInputPolicy

SMALL = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
ACTORS = {
    "MLP": {},
    "memory": {"memory_actor": True},
    "one encoder": {"memory_actor": True, "share_encoder": True},
    "landmarks": {"memory_actor": True, "n_landmarks": 2, "age_input": True},
}


class Hidden(gym.Env):
    """The actor sees ``seen``; ``constant`` is drawn anew in each episode."""

    def __init__(self, image: bool = False):
        parts = {"constant": spaces.Box(-1, 1, (2,), np.float32), "seen": spaces.Box(-1, 1, (3,), np.float32)}
        if image:
            parts["picture"] = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space, self.action_space = spaces.Dict(parts), spaces.Discrete(3)

    def _observation(self):
        return {k: self.constant if k == "constant" else space.sample() for k, space in self.observation_space.items()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.constant = 0, self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), float(self.constant[0]), False, self.t >= 9, {}


def make_model(options: dict, env=None, **kwargs) -> AAC:
    policy_kwargs = {"actor_keys": ["seen"], "context_length": 4, "net_arch": [8], "d_model": 8, "n_heads": 2, **options}
    return AAC("MultiInputPolicy", env or DummyVecEnv([Hidden] * 2), policy_kwargs=policy_kwargs, **{**SMALL, **kwargs})


@pytest.mark.parametrize("options", ACTORS.values(), ids=ACTORS)
def test_the_actor_needs_its_own_keys_alone(options, tmp_path):
    model = make_model(options)
    model.learn(128)
    full = model.env.reset()
    with_all, _ = model.predict(full, deterministic=True)
    alone, state = model.predict({"seen": full["seen"]}, deterministic=True)
    assert (with_all == alone).all()
    other, _ = model.predict({**full, "constant": full["constant"] + 1}, deterministic=True)
    assert (other == alone).all()
    for nothing in (None, np.zeros(7)):
        assert (model.predict({"constant": nothing, "seen": full["seen"]}, deterministic=True)[0] == alone).all()
    model.save(tmp_path / "model")
    loaded = AAC.load(tmp_path / "model")
    assert (loaded.predict({"seen": full["seen"]}, deterministic=True)[0] == alone).all()
    assert loaded.policy.actor_keys == ("seen",) and loaded.policy.critic_keys == ("constant", "seen")
    assert (state is None) == (not options)


@pytest.mark.parametrize("options", ACTORS.values(), ids=ACTORS)
def test_the_policys_gradient_and_log_probabilities_do_not_depend_on_the_critics_keys(options):
    """Values do: a critic that ignored its key would pass the rest."""
    model = make_model(options, aux_loss=None)
    model.learn(64)
    policy = model.policy
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    results = []
    (batch,) = model.rollout_buffer.get_windows(None) if options else (next(model.rollout_buffer.get_windows(None)),)
    for shift in (0.0, 1.0):
        observations = {**batch.windows.observations, "constant": batch.windows.observations["constant"] + shift}
        encoded = policy.encode_windows(batch.windows._replace(observations=observations), batch.actions.shape[1])
        values = policy.critic_output(encoded.critic).values.detach()
        policy.zero_grad()
        if options:
            log_prob, *_ = evaluate_actions(policy, encoded, batch)
        else:
            last = {key: part[:, -batch.actions.shape[1] :].flatten(0, 1) for key, part in observations.items()}
            log_prob = evaluate_transitions(policy, last, batch.actions.flatten(0, 1))[1]
        log_prob.sum().backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
        results.append((log_prob.detach(), gradients, values))
    (log_prob, gradients, values), (moved_log_prob, moved_gradients, moved_values) = results
    assert log_prob.equal(moved_log_prob)
    assert gradients.keys() == moved_gradients.keys() and all(g.equal(moved_gradients[k]) for k, g in gradients.items())
    assert not any(name.startswith(("critic_network", "value_net", "vf_features")) for name in gradients)
    assert (values - moved_values).abs().max() > 1e-3


@pytest.mark.parametrize("options", ACTORS.values(), ids=ACTORS)
def test_the_critics_keys_are_learned_from(options):
    model = make_model(options, n_steps=64, batch_size=64, learning_rate=3e-3)
    model.learn(64 * 2 * 40)
    assert model.logger.name_to_value["train/explained_variance"] > 0.6  # of returns that the constant alone explains


def test_images_frame_stacking_and_normalization():
    env = VecNormalize(VecFrameStack(DummyVecEnv([lambda: Hidden(image=True)] * 2), 2), norm_obs_keys=["constant", "seen"])
    for keys in ({"actor_keys": ["seen", "picture"]}, {"actor_keys": ["picture"], "critic_keys": ["picture", "constant"]}):
        for memory_actor in (False, True):
            kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 8}}
            make_model({**keys, "memory_actor": memory_actor, **kwargs}, env).learn(64)


def test_one_features_extractor_cannot_read_different_keys():
    with pytest.warns(UserWarning, match="share_features_extractor=True has no effect"):
        model = make_model({"actor_keys": ["seen"], "share_features_extractor": True})
    assert not model.policy.share_features_extractor
    make_model({"actor_keys": ["seen"], "share_features_extractor": False})  # as it is stored: nothing to say


def test_without_keys_everything_is_shared_as_before():
    model = AAC("MultiInputPolicy", DummyVecEnv([Hidden]), **SMALL)
    assert model.policy.share_features_extractor
    assert model.policy.pi_features_extractor is model.policy.vf_features_extractor


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"actor_keys": ["sen"]}, "actor_keys has 'sen'.*closest known names are: seen"),
        ({"critic_keys": []}, "critic_keys=.*must be a list of entries"),
        ({"critic_keys": "seen"}, "critic_keys='seen'.*must be a list of entries"),
    ],
)
def test_wrong_keys_are_refused_in_words(keys, said):
    with pytest.raises(ValueError, match=said):
        make_model(keys)


def test_keys_are_for_dict_observations():
    with pytest.raises(ValueError, match=r"actor_keys=.*is for Dict observations"):
        AAC("MlpPolicy", "CartPole-v1", policy_kwargs={"actor_keys": ["seen"]})


def test_a_memory_actors_critic_without_the_history_is_biased_and_warned_of():
    with pytest.warns(UserWarning, match=r"leaves out \['seen'\].*biased"):
        make_model({"memory_actor": True, "critic_keys": ["constant"]})


def test_an_mlp_actor_never_acts_on_the_critics_entries():
    """Q_att would, once its gate is open"""
    with pytest.raises(
        ValueError, match=r"attention_q=True .* the critic reads \['constant'\], .* or pass critic_keys=\['seen'\]"
    ):
        make_model({"attention_q": True})
    make_model({"attention_q": True, "memory_actor": True})
    make_model({"attention_q": True, "critic_keys": ["seen"]})


class Concatenated(BaseFeaturesExtractor):
    """All that it is given, side by side"""

    def __init__(self, space):
        super().__init__(space, sum(part.shape[0] for part in space.spaces.values()))

    def forward(self, obs):
        return th.cat(list(obs.values()), dim=1)


@pytest.mark.parametrize("keys", [{}, {"actor_keys": ["seen", "constant"], "critic_keys": ["seen"]}])
@pytest.mark.parametrize("share_encoder", [False, True])
@pytest.mark.filterwarnings("ignore:critic_keys=.* leaves out")
def test_the_key_encoder_reads_what_it_is_a_copy_of_reads(keys, share_encoder):
    """The masked prediction's features extractor is a copy of the actor's or the critic's"""
    options = {"memory_actor": True, "share_encoder": share_encoder, "features_extractor_class": Concatenated, **keys}
    model = make_model(options, aux_loss="contrastive").learn(64)
    assert np.isfinite(model.logger.name_to_value["train/aux_contrastive_loss"])


@pytest.mark.parametrize("options", ACTORS.values(), ids=ACTORS)
def test_the_policys_own_methods_need_no_more_than_predict(options):
    policy = make_model(options).policy
    seen = {"seen": th.zeros(2, 3)}
    probabilities = policy.get_distribution(seen).distribution.probs
    full = policy.get_distribution({**seen, "constant": th.ones(2, 2)}).distribution.probs
    assert th.equal(probabilities, full) and policy._predict(seen).shape == (2,)


class Joined(BaseFeaturesExtractor):
    """All that it is given"""

    def __init__(self, observation_space):
        super().__init__(observation_space, sum(space.shape[0] for space in observation_space.spaces.values()))

    def forward(self, observations):
        return th.cat(list(observations.values()), dim=1)


@pytest.mark.parametrize("options", ACTORS.values(), ids=ACTORS)
def test_the_same_part_for_actor_and_critic(options):
    model = make_model({**options, "critic_keys": ["seen"], "features_extractor_class": Joined}).learn(64)
    assert model.policy.features_extractor.features_dim == 3 and model.policy.share_features_extractor
    model.predict(model.env.reset())


class Own(th.nn.Module):
    """Nothing is called as SB3 calls it but the methods"""

    latent_dim_pi, latent_dim_vf = 6, 7

    def __init__(self, features_dim: int):
        super().__init__()
        self.acts, self.judges = th.nn.Linear(features_dim, 6), th.nn.Linear(features_dim, 7)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.acts(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.judges(features)


class OwnPolicy(AttentionActorCriticMultiInputPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = Own(self.features_dim)


@pytest.mark.parametrize("options", [{}, {"memory_actor": True, "local_window": 1}], ids=str)
def test_networks_of_ones_own_with_keys(options, tmp_path):
    policy_kwargs = {"actor_keys": ["seen"], "context_length": 4, "d_model": 8, "n_heads": 2, **options}
    model = AAC(OwnPolicy, DummyVecEnv([Hidden] * 2), policy_kwargs=policy_kwargs, **SMALL)
    model.learn(128)
    mlps, widths = model.policy.mlp_extractor, (3, 5)
    assert (mlps.actor.acts.in_features, mlps.critic.judges.in_features) == widths
    obs = model.env.reset()
    actions, _ = model.predict({"seen": obs["seen"]}, deterministic=True)
    model.save(tmp_path / "model")
    assert (AAC.load(tmp_path / "model").predict({"seen": obs["seen"]}, deterministic=True)[0] == actions).all()


def test_wrong_entries_are_named():
    model = make_model({})
    seen = np.zeros((1, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=r"has no \['seen'\]: predict\(\) needs \['seen'\], and was given \['scene'\]"):
        model.predict({"scene": seen})
    with pytest.raises(ValueError, match=r"has 'constants', which the space does not know; .* constant"):
        model.predict({"seen": seen, "constants": seen})
    with pytest.raises(ValueError, match=r"was given ndarray, but it must be a dictionary with \['seen'\]"):
        model.predict(seen)
