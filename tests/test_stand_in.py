"""Stand-ins do what the modules do, and step aside where these do more."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import IdentityEnv
from torch import nn

from sb3_attention_ac import AAC
from sb3_attention_ac.encoder import Block, TrajectoryEncoder
from sb3_attention_ac.stand_in import as_function, stand_in


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
def test_hooks_are_called(layer):
    hook = layer.register_forward_hook(lambda module, inputs, output: output + 1)
    x = th.randn(2, 4)
    with_hook = as_function(layer)(x)
    hook.remove()
    assert th.equal(with_hook, layer(x) + 1)


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
