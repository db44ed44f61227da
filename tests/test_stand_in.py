"""Stand-ins do what the modules do, and step aside where these do more."""

import copy

import numpy as np
import pytest
import torch as th
from sb3_attention_ac.encoder import Block, TrajectoryEncoder
from sb3_attention_ac.stand_in import as_function, stand_in
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from sb3_attention_ac import AAC
from sb3_attention_ac.policies import AttentionActorCriticPolicy


class Doubled(nn.Linear):
    """A layer of a kind of its own"""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2 * super().forward(x)


LAYERS = [
    nn.Linear(4, 3),
    nn.Linear(4, 3, bias=False),
    nn.LayerNorm(4),
    nn.Tanh(),
    nn.ReLU(),
    nn.Identity(),
    nn.ELU(),
    Doubled(4, 3),
    nn.Sequential(),
    nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Doubled(5, 2), nn.Sequential(nn.ReLU())),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_function_does_what_its_layer_does(layer):
    x, function = th.randn(2, 4), as_function(layer)
    assert th.equal(function(x), layer(x))
    with th.no_grad():  # as an optimizer does
        for parameter in layer.parameters():
            parameter.add_(1.0)
    assert th.equal(function(x), layer(x))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("how", ["hook", "global hook", "backward hook", "forward of its own", "compiled"])
def test_whatever_a_call_does_more_is_done(layer, how):
    layer, calls = copy.deepcopy(layer), []
    forward, handle = layer.forward, None
    if how == "hook":
        layer.register_forward_hook(lambda *_: calls.append(1))
    elif how == "global hook":
        handle = register_module_forward_hook(lambda *_: calls.append(1))
    elif how == "backward hook":
        layer.register_full_backward_hook(lambda *_: calls.append(1))
    elif how == "forward of its own":
        layer.forward = lambda x: calls.append(1) or forward(x)
    else:
        layer._compiled_call_impl = lambda x: calls.append(1) or forward(x)  # as layer.compile() leaves it
    as_function(layer)(th.randn(2, 4, requires_grad=True)).sum().backward()
    if handle is not None:
        handle.remove()
    assert calls


def test_a_parameter_may_be_replaced():
    for layer in (nn.Linear(4, 4), nn.LayerNorm(4)):
        function, x = as_function(layer), th.randn(2, 4)
        layer.load_state_dict({name: th.randn_like(value) for name, value in layer.state_dict().items()}, assign=True)
        assert th.equal(function(x), layer(x))


def test_a_stand_in_does_what_its_module_does():
    encoder = TrajectoryEncoder(5, 2, 8, 2, 2, 16, 0.1, 8).eval()
    x, latents, events = th.randn(3, 6, 8), th.randn(3, 6, 5), th.randn(3, 6, 2)
    assert th.equal(stand_in(encoder).tokens(latents, events), encoder.tokens(latents, events))
    block, turns, mask = encoder.blocks[0], encoder.turns(6, th.device("cpu")), th.ones((3, 1, 6, 6), dtype=th.bool)
    instead = stand_in(block)
    assert not isinstance(instead, nn.Module)
    for theirs, its in zip(instead.queries_keys_values(x, turns), block.queries_keys_values(x, turns), strict=True):
        assert th.equal(theirs, its)
    assert th.equal(
        instead(x, *block.queries_keys_values(x, turns), mask), block(x, *block.queries_keys_values(x, turns), mask)
    )


def test_a_layer_that_was_taken_away_stays_away():
    encoder = TrajectoryEncoder(5, 2, 8, 2, 1, 16, 0.0, 8)
    encoder.event = None
    latents = th.randn(3, 6, 5)
    assert th.equal(stand_in(encoder).tokens(latents, None), encoder.read(latents))


def test_classes_of_others_have_no_stand_in():
    class Own(Block):
        pass

    block = Own(8, 2, 16, 0.0)
    assert stand_in(block) is block


@pytest.mark.parametrize("name", ["actor_trunk.encoder.blocks.0", "actor_trunk.encoder.norm", "mlp_extractor.policy_net.1"])
def test_hooks_of_a_policys_modules_are_called_while_acting(name):
    model = AAC(
        "MlpPolicy", IdentityEnv(dim=2), n_steps=8, batch_size=8, policy_kwargs={"memory_actor": True, "context_length": 4}
    )
    calls = []
    model.policy.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    model.predict(np.zeros(1, dtype=np.int64), None, np.ones(1, dtype=bool))
    assert calls


class OwnExtractor(MlpExtractor):
    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return -super().forward_actor(features)


class OwnMlp(AttentionActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        self.mlp_extractor.__class__ = OwnExtractor


class OwnLatent(AttentionActorCriticPolicy):
    def mlp_actor_latent(self, obs: th.Tensor) -> th.Tensor:
        return -super().mlp_actor_latent(obs)


@pytest.mark.parametrize("policy", [AttentionActorCriticPolicy, OwnMlp, OwnLatent])
def test_an_mlp_actor_of_ones_own_acts(policy):
    model = AAC(policy, IdentityEnv(dim=4), n_steps=64, batch_size=64, n_epochs=1, seed=0)
    with th.no_grad():
        model.policy.action_net.weight.mul_(1e6)  # so that actions are all but certain
    model.learn(64)
    assert model.rollout_buffer.log_probs.min() > -0.1
