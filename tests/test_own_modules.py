"""
Modules are called, not read: hooks, subclasses, adapters, pruning and networks of one's own take effect while acting, in the
values of a rollout and while learning alike. Methods that are not called are refused.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from test_run import SMALL, TINY, RandomEnv, random_env
from torch.nn.utils import parametrize, prune
from trajectories import ACTORS

from sb3_attention_ac import AAC
from sb3_attention_ac.evaluation import evaluate_actions, evaluate_transitions
from sb3_attention_ac.networks.transformer import Block
from sb3_attention_ac.policies import AttentionActorCriticPolicy

KINDS: dict[str, dict[str, Any]] = {**ACTORS, "Q_att": {"attention_q": True}}


def perturb(policy) -> None:
    """So that what starts at zero takes part"""
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
        if policy.value_gate is not None:
            policy.value_gate.gate.fill_(0.7)
            policy.value_gate.update = lambda *evidence: None
        if policy.attention_q is not None:
            policy.attention_q.evidence.fill_(3.0)


def make_model(kind: str, policy: Any = "MlpPolicy", **settings):
    """With a rollout of three chunks; it learns nothing unless asked to"""
    policy_kwargs = {**TINY, **KINDS[kind], **settings.pop("policy_kwargs", {})}
    settings = {**SMALL, "n_steps": 12, "batch_size": 12, "learning_rate": 0.0, **settings}
    buffer = {"chunk_length": 4}
    model = AAC(policy, random_env(), policy_kwargs=policy_kwargs, rollout_buffer_kwargs=buffer, **settings)
    perturb(model.policy)
    return model


@th.no_grad()
def check_alike(model) -> None:
    """Old log probabilities are those that training computes first, and so are old values; with learning_rate=0"""
    policy, buffer = model.policy, model.rollout_buffer
    model.learn(2 * buffer.buffer_size * buffer.n_envs)
    policy.set_training_mode(True)
    samples = buffer.transition_samples(th.arange(buffer.buffer_size * buffer.n_envs))
    if not policy.memory_actor:
        trained = evaluate_transitions(policy, samples.observations, samples.actions, None, samples.logit_offsets)
        th.testing.assert_close(trained[:2], (samples.old_values, samples.old_log_prob), rtol=1e-4, atol=1e-4)
    for batch in buffer.get_windows(8):
        encoded = policy.encode_windows(batch.windows, batch.actions.shape[1])
        th.testing.assert_close(policy.critic_output(encoded.critic).values, batch.old_values, rtol=1e-4, atol=1e-4)
        if policy.memory_actor:
            log_prob, *_ = evaluate_actions(policy, encoded, batch)
            th.testing.assert_close(log_prob, batch.old_log_prob, rtol=1e-4, atol=1e-4)


class Said(BaseCallback):
    """What a policy says while acting and of a rollout, with the parameters it has then"""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        self.log_probs, self.values = buffer.log_probs.copy(), buffer.values.copy()


def said(model) -> tuple[np.ndarray, np.ndarray]:
    model.set_random_seed(5)
    model.learn(1, callback=(callback := Said()))
    return callback.log_probs, callback.values


def leaves(policy) -> list[str]:
    """Modules without children that are on the way to actions or values, and whole blocks"""
    skipped = ("masked_prediction", "next_step_prediction", "value_gate", "features_extractor")
    return [
        name
        for name, module in policy.named_modules()
        if (not list(module.children()) or isinstance(module, Block))
        and not isinstance(module, th.nn.Identity)
        and not any(part in name for part in skipped)
    ]


LEAVES = [(kind, name) for kind in KINDS for name in leaves(AAC("MlpPolicy", random_env(), policy_kwargs=KINDS[kind]).policy)]


def wavy(module, inputs, output: th.Tensor) -> th.Tensor:
    return output + 0.3 * th.sin(5 * output + th.arange(output.shape[-1]))


def of_the_actor(kind: str, name: str) -> bool:
    if kind == "MLP actor" or kind == "Q_att":
        acting = ("policy_net", "action_net") + (
            ("critic_network", "attention_q", "mlp_extractor.value_net") * (kind == "Q_att")
        )
        return any(part in name for part in acting)
    return any(part in name for part in ("policy_net", "action_net", "actor_network"))


@pytest.mark.parametrize(("kind", "name"), LEAVES)
def test_a_hook_on_any_layer_is_seen_everywhere(kind, name):
    plain, hooked = make_model(kind), make_model(kind)
    hooked.policy.load_state_dict(plain.policy.state_dict())
    module = hooked.policy.get_submodule(name)
    module.register_forward_hook(wavy)
    (log_probs, values), (other_log_probs, other_values) = said(plain), said(hooked)
    if of_the_actor(kind, name):
        assert not np.allclose(log_probs[0], other_log_probs[0], atol=1e-6)  # acting
    else:
        np.testing.assert_array_equal(log_probs, other_log_probs)
    of_values = any(part in name for part in ("critic", "value_net")) or (kind == "shared" and "policy_net" in name)
    if of_values or (kind == "shared" and "actor_network.encoder" in name):
        assert not np.allclose(values, other_values, atol=1e-6)
    check_alike(hooked)


class Adapter(th.nn.Module):
    """As LoRA: a linear layer that is frozen, and a learned product of low rank beside it"""

    def __init__(self, layer: th.nn.Linear):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = th.nn.Linear(layer.in_features, 2, bias=False)
        self.up = th.nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.layer(x) + self.up(self.down(x))


class Scaled(th.nn.Linear):
    """A subclass with a forward of its own"""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return 1.5 * super().forward(x)


class Halved(th.nn.Module):
    """A parametrization"""

    def forward(self, weight: th.Tensor) -> th.Tensor:
        return weight / 2


def scaled(layer: th.nn.Linear) -> th.nn.Linear:
    new = Scaled(layer.in_features, layer.out_features, layer.bias is not None)
    new.load_state_dict(layer.state_dict())
    return new


def parametrized(layer: th.nn.Linear) -> th.nn.Linear:
    parametrize.register_parametrization(layer, "weight", Halved())
    return layer


def pruned(layer: th.nn.Linear) -> th.nn.Linear:
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


CHANGES: dict[str, Any] = {"adapter": Adapter, "subclass": scaled, "parametrization": parametrized, "pruning": pruned}


def change_linear_layers(policy, change) -> list[str]:
    names = [name for name, module in policy.named_modules() if type(module) is th.nn.Linear]
    names = [name for name in names if "prediction" not in name]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(policy.get_submodule(parent), child, change(policy.get_submodule(name)))
    return names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_other_layers_take_their_place(kind, change):
    model = make_model(kind)
    before = said(model)
    assert len(change_linear_layers(model.policy, CHANGES[change])) >= 9
    if change == "adapter":
        with th.no_grad():
            for name, parameter in model.policy.named_parameters():
                if name.endswith("up.weight"):
                    parameter.normal_()
    check_alike(model)
    for one, other in zip(before, said(model), strict=True):
        assert not np.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_and_what_they_adapt_stays(kind):
    """Where nothing is left to teach an MLP but adapters, as in fine-tuning"""
    model = make_model(kind, learning_rate=1e-2, n_epochs=3)
    names = change_linear_layers(model.policy, Adapter)
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name.endswith(("down.weight", "up.weight")))
    model.policy.optimizer = th.optim.Adam([p for p in model.policy.parameters() if p.requires_grad], lr=1e-2)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(120)
    moved = {name for name, parameter in model.policy.named_parameters() if not th.equal(parameter, before[name])}
    adapters = {f"{name}.{part}.weight" for name in names for part in ("up", "down")}
    assert moved == adapters


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_weights_stay_pruned(kind):
    model = make_model(kind, learning_rate=1e-2)
    names = change_linear_layers(model.policy, pruned)
    before = {name: model.policy.get_submodule(name).weight_orig.clone() for name in names}
    model.learn(60)
    for name in names:
        layer = model.policy.get_submodule(name)
        layer(th.zeros(1, layer.in_features))
        assert not layer.weight[layer.weight_mask == 0].any() and (layer.weight_mask == 0).any()
        gets_gradients = layer.weight_mask == 1
        assert not th.equal(layer.weight_orig[gets_gradients], before[name][gets_gradients]), name


# --- networks of one's own ------------------------------------------------------------------------------------------------


class CustomNetwork(th.nn.Module):
    """As in SB3's documentation of custom policies"""

    def __init__(self, feature_dim: int, last_layer_dim_pi: int = 16, last_layer_dim_vf: int = 24):
        super().__init__()
        self.latent_dim_pi = last_layer_dim_pi
        self.latent_dim_vf = last_layer_dim_vf
        self.policy_net = th.nn.Sequential(th.nn.Linear(feature_dim, last_layer_dim_pi), th.nn.ReLU())
        self.value_net = th.nn.Sequential(th.nn.Linear(feature_dim, last_layer_dim_vf), th.nn.ReLU())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.policy_net(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.value_net(features)


class CustomActorCriticPolicy(AttentionActorCriticPolicy):
    def __init__(self, observation_space, action_space, lr_schedule, *args, **kwargs):
        kwargs["ortho_init"] = False
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = CustomNetwork(self.features_dim)


class OtherNames(th.nn.Module):
    """Nothing is called as SB3 calls it but the methods, and the critic does more than one network"""

    latent_dim_pi, latent_dim_vf = 16, 24

    def __init__(self, feature_dim: int):
        super().__init__()
        self.body = th.nn.Linear(feature_dim, 16)
        self.head = th.nn.Linear(16, 24, bias=False)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.body(features).tanh()

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return 3 * self.head(self.body(features).tanh())


class OtherNamesPolicy(AttentionActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OtherNames(self.features_dim)


class Tripled(MlpExtractor):
    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return 3 * super().forward_critic(features)


class TripledPolicy(AttentionActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor.__class__ = Tripled


@pytest.mark.parametrize("memory_actor", [False, True])
def test_a_compiled_mlp_extractor(memory_actor):
    model = make_model("memory actor" if memory_actor else "MLP actor", aux_loss="contrastive")
    model.policy.mlp_extractor = th.compile(model.policy.mlp_extractor, backend="eager")
    model.learn(64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", [CustomActorCriticPolicy, OtherNamesPolicy, TripledPolicy])
@pytest.mark.parametrize("aux_loss", [None, ["contrastive", "return"]], ids=str)
def test_networks_of_ones_own(kind, policy, aux_loss):
    options = {"local_window": 1} if policy is OtherNamesPolicy and KINDS[kind].get("memory_actor") else {}
    model = make_model(kind, policy, policy_kwargs=options, aux_loss=aux_loss)
    check_alike(model)
    extractor = model.policy.mlp_extractor
    before = [parameter.clone() for parameter in extractor.parameters()]
    model.learning_rate = 1e-2
    model._setup_lr_schedule()
    model.learn(60)
    assert not any(th.equal(*pair) for pair in zip(before, extractor.parameters(), strict=True))
    obs = th.rand(5, 3)
    features = th.nn.functional.pad(obs, (0, 3 * 3)) if KINDS[kind].get("memory_actor") and not options else obs
    if kind == "MLP actor":
        model.policy.value_gate.gate.fill_(0.0)
        values = model.policy.value_net(extractor.forward_critic(features))
        th.testing.assert_close(model.policy.predict_values(obs), values)
    actions, _ = model.predict(obs.numpy(), deterministic=True)
    assert actions.shape == (5,)
    latent = model.policy.mlp_extractor.forward_actor(features)
    assert latent.shape == (5, extractor.latent_dim_pi)


@pytest.mark.parametrize("policy", [CustomActorCriticPolicy, OtherNamesPolicy, TripledPolicy])
def test_keys_of_the_contrastive_loss_come_from_the_critics_own_function(policy):
    model = make_model("MLP actor", policy, aux_loss="contrastive")
    masked, obs = model.policy.masked_prediction, th.rand(7, 3)
    masked.update_key_encoder(*model.policy._trained_by_masking()[:2], tau=1.0)
    th.testing.assert_close(masked.key_mlp(obs), model.policy.mlp_extractor.forward_critic(obs))


def test_stacked_frames_need_a_network_that_can_be_widened():
    with pytest.raises(
        ValueError, match=r"local_window=4 .* needs a wider first layer in .*policy_net.*Sequential.*Use local_window=1\."
    ):
        make_model("memory actor", OtherNamesPolicy)


class OwnFirstLayer(AttentionActorCriticPolicy):
    """Its first layers are a subclass, have a hook, or no bias"""

    first = "subclass"

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        for net in (self.mlp_extractor.policy_net, self.mlp_extractor.value_net):
            layer = net[0]
            if self.first == "subclass":
                net[0] = scaled(layer)
            elif self.first == "hook":
                layer.register_forward_hook(lambda module, inputs, output: 2 * output + 1)
            else:
                net[0] = th.nn.Linear(layer.in_features, layer.out_features, bias=False)


@pytest.mark.parametrize("first", ["subclass", "hook", "no bias"])
def test_a_memory_actors_stacked_frames_keep_a_first_layer_of_ones_own(monkeypatch, first):
    monkeypatch.setattr(OwnFirstLayer, "first", first)
    policy_kwargs = {**TINY, "memory_actor": True, "ortho_init": False}
    stacked, single = (
        AAC(OwnFirstLayer, random_env(), policy_kwargs={**policy_kwargs, "local_window": n}, **SMALL).policy for n in (4, 1)
    )
    obs = th.rand(5, 3)
    # The same weights at first: what is made of stacked frames is drawn after the MLPs
    expected = single.mlp_extractor.forward_actor(obs), single.mlp_extractor.forward_critic(obs)
    padded = th.nn.functional.pad(obs, (0, 9))
    th.testing.assert_close(
        (stacked.mlp_extractor.forward_actor(padded), stacked.mlp_extractor.forward_critic(padded)), expected
    )
    if first == "no bias":
        assert stacked.mlp_extractor.policy_net[0].bias is None


HEADS = {
    "Sequential": lambda width: th.nn.Sequential(th.nn.Linear(width, 8), th.nn.Tanh(), th.nn.Linear(8, 1)),
    "no bias": lambda width: th.nn.Linear(width, 1, bias=False),
    "module": lambda width: Sum(width),
}


class Sum(th.nn.Module):
    """Neither weight nor bias"""

    def __init__(self, width: int):
        super().__init__()
        self.scales = th.nn.Parameter(th.randn(width))

    def forward(self, latent: th.Tensor) -> th.Tensor:
        return (latent * self.scales).sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_a_value_head_of_ones_own(kind, head):
    model = make_model(kind, learning_rate=0.0)
    model.policy.value_net = HEADS[head](64)
    check_alike(model)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-2)
    before = [parameter.clone() for parameter in model.policy.value_net.parameters()]
    model.learning_rate = 1e-2
    model._setup_lr_schedule()
    model.learn(60)
    assert not any(th.equal(*pair) for pair in zip(before, model.policy.value_net.parameters(), strict=True))


class RightOnly(th.nn.Linear):
    """Makes one action of three as good as certain"""

    def forward(self, latent: th.Tensor) -> th.Tensor:
        return super().forward(latent) + th.tensor([-1e8, -1e8, 0.0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_action_head_of_ones_own(kind):
    model = make_model(kind)
    model.policy.action_net = RightOnly(64, 3)
    check_alike(model)
    assert (model.rollout_buffer.actions == 2).all()
    assert (model.predict(np.zeros((4, 3), np.float32))[0] == 2).all()


# --- methods of one's own ---------------------------------------------------------------------------------------------------


class Blindfolded(AttentionActorCriticPolicy):
    """The second entry of the observation must not be seen."""

    def extract_features(self, obs, features_extractor=None):
        hidden = obs.clone()
        hidden[..., 1] = 0.0
        return super().extract_features(hidden, features_extractor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("aux_loss", ["auto", ["contrastive", "observation"]], ids=str)
@pytest.mark.parametrize("shared", [True, False])
def test_extract_features_is_called(kind, aux_loss, shared):
    settings = {"learning_rate": 1e-2, "aux_loss": aux_loss, "policy_kwargs": {"share_features_extractor": shared}}
    model = make_model(kind, Blindfolded, **settings)
    nets = [model.policy.mlp_extractor.policy_net[0], model.policy.mlp_extractor.value_net[0]]
    before = [net.weight.clone() for net in nets]
    obs = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)
    other = obs + np.array([0, 1, 0], dtype=np.float32)
    (said_, other_) = (model.policy.get_distribution(th.as_tensor(o)).distribution.logits for o in (obs, other))
    assert th.equal(said_, other_)
    assert th.equal(*(model.policy.predict_values(th.as_tensor(o)) for o in (obs, other)))
    model.learn(72)
    for net, weight in zip(nets, before, strict=True):
        is_first = th.arange(weight.shape[1]) % 3 == 1
        if KINDS[kind].get("memory_actor"):  # stacked: the current features, then those of the past side by side
            is_first = th.tensor([False, True, False] + [False] * 3 + [True] * 3 + [False] * 3)
        assert th.equal(net.weight[:, is_first], weight[:, is_first])
        assert not th.equal(net.weight[:, ~is_first], weight[:, ~is_first])


def overriding(name: str, base: type = AttentionActorCriticPolicy) -> type:
    def method(self, *args, **kwargs):
        return getattr(super(cls, self), name)(*args, **kwargs)

    cls = type("Mine", (base,), {name: method})
    return cls


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("forward", "extract_features"),
        ("evaluate_actions", "extract_features"),
        ("predict_values", "value_net"),
        ("get_distribution", "action_net"),
        ("_get_action_dist_from_latent", "action_net"),
    ],
)
def test_methods_that_are_not_called_are_refused(name, instead, memory_actor):
    for policy in (overriding(name), overriding("extract_features", overriding(name))):
        with pytest.raises(
            TypeError, match=rf"Mine overrides {name}\(\), which is not called .* Override or replace {instead}"
        ):
            AAC(policy, random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)


@pytest.mark.parametrize("name", ["predict", "_predict", "extract_features", "make_features_extractor", "scale_action"])
def test_methods_that_are_called_may_be_overridden(name):
    AAC(overriding(name), random_env(), policy_kwargs=TINY, **SMALL).learn(20)


# --- extractors with a state -----------------------------------------------------------------------------------------------


class CountingExtractor(FlattenExtractor):
    """Counts the rows that it is given"""

    def __init__(self, space):
        super().__init__(space)
        self.register_buffer("n_rows", th.zeros((), dtype=th.long))

    def forward(self, obs: th.Tensor) -> th.Tensor:
        self.n_rows += len(obs)
        return super().forward(obs)


@pytest.mark.parametrize("kind", KINDS)
def test_features_extractors_are_called_for_every_step(kind):
    model = make_model(kind, policy_kwargs={"features_extractor_class": CountingExtractor})
    model.learn(24)
    assert model.policy.features_extractor.n_rows >= 2 * 24  # acting, values and learning


def test_hooks_of_a_dict_extractor_are_seen():
    space = spaces.Dict(a=spaces.Box(-1.0, 1.0, (2,)), b=spaces.Discrete(3))
    env = DummyVecEnv([lambda: RandomEnv(space, spaces.Discrete(2))])
    model = AAC("MultiInputPolicy", env, policy_kwargs={**TINY, "memory_actor": True}, **{**SMALL, "learning_rate": 0.0})
    perturb(model.policy)
    seen: list[int] = []
    extractor = model.policy.features_extractor.extractors["b"]
    extractor.register_forward_hook(lambda module, inputs, output: (seen.append(len(output)), 2 * output)[1])
    check_alike(model)
    assert seen.count(1) >= 20  # each step of acting


class Forbidding(th.nn.Linear):
    """A head's own way to forbid actions"""

    def forward(self, input):
        return super().forward(input).index_fill(-1, th.tensor([1]), -th.inf)


@pytest.mark.parametrize("memory_actor", [False, True])
def test_a_head_may_forbid_actions(memory_actor):
    model = AAC("MlpPolicy", random_env(), policy_kwargs={**TINY, "memory_actor": memory_actor}, **SMALL)
    model.policy.action_net.__class__ = Forbidding
    model.learn(2 * SMALL["n_steps"])
    assert not (model.rollout_buffer.actions == 1).any()
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    model.policy.action_net.bias.data[0] = th.nan
    with pytest.raises(ValueError, match="The actor's output is not finite"):
        model.predict(np.zeros((1, 3), dtype=np.float32))


class Squashed(AttentionActorCriticPolicy):
    """Puts another of SB3's distributions in place, in the middle of its construction or at its end"""

    at_end = True

    def _build(self, lr_schedule) -> None:
        if not self.at_end:
            self.action_dist = SquashedDiagGaussianDistribution(1)
        super()._build(lr_schedule)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.at_end:
            self.action_dist = SquashedDiagGaussianDistribution(1)


@pytest.mark.parametrize("at_end", [False, True])
def test_another_distribution_is_refused(monkeypatch, at_end):
    """It would not be asked"""
    monkeypatch.setattr(Squashed, "at_end", at_end)
    with pytest.raises(TypeError, match="action_dist is SquashedDiagGaussianDistribution, which would not be used"):
        AAC(Squashed, "Pendulum-v1", policy_kwargs=TINY, **SMALL)


class First(AttentionActorCriticPolicy):
    """SB3's abstract method, overridden as SB3 has it"""

    def _predict(self, observation, deterministic=False):
        return th.zeros(len(observation), dtype=th.int64)


def test_a_policy_may_choose_its_actions_itself():
    model = AAC(First, random_env(), policy_kwargs=TINY, **SMALL)
    assert model.predict(np.ones((2, 3), dtype=np.float32))[0].tolist() == [0, 0]
    with pytest.raises(TypeError, match=r"First overrides _predict\(\), which a memory actor does not call"):
        AAC(First, random_env(), policy_kwargs={**TINY, "memory_actor": True}, **SMALL)
