"""The transformer does what its page says: RoPE, masks, blocks by a formula written out, and layers that are called."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn
from trajectories import make_policy, random_windows

from sb3_attention_ac import AAC
from sb3_attention_ac.networks.constants import cached
from sb3_attention_ac.networks.transformer import (
    Block,
    TrajectoryEncoder,
    apply_rotary,
    as_real,
    attention_mask,
    rotary_frequencies,
)
from sb3_attention_ac.policies import AttentionActorCriticPolicy

CPU = th.device("cpu")
NAN, INF = float("nan"), float("inf")


# --- rotary position embedding ---


@pytest.mark.parametrize(("head_dim", "base"), [(2, 7.0), (6, 20.0), (7, 20.0), (8, 10_000.0)])
def test_rotary_frequencies_by_hand(head_dim, base):
    """Pair k of position t is turned by t * base^(-k / pairs); values are not turned."""
    rotary, pairs = rotary_frequencies(5, 3, head_dim, base, CPU), head_dim // 2
    assert rotary.shape == (5, 3, 3, pairs) and rotary.is_complex() and rotary.is_contiguous()
    for t in range(5):
        for k in range(pairs):
            angle = t * base ** (-k / pairs)
            for head in range(3):
                for part in range(2):
                    assert complex(rotary[t, part, head, k]) == pytest.approx(
                        complex(math.cos(angle), math.sin(angle)), abs=1e-5
                    )
                assert complex(rotary[t, 2, head, k]) == 1


def test_heads_of_one_coordinate_have_nothing_to_turn():
    rotary = rotary_frequencies(5, 2, 1, 20.0, CPU)
    assert rotary.shape == (5, 3, 2, 0)
    x = th.randn(4, 5, 3, 2, 1)
    assert th.equal(apply_rotary(x, rotary), x)


@pytest.mark.parametrize("head_dim", [4, 5])
@pytest.mark.parametrize("for_each_row", [False, True])
def test_apply_rotary_by_hand(head_dim, for_each_row):
    """Neighbouring coordinates are turned as a pair; an odd last one stays."""
    rotary = rotary_frequencies(6, 2, head_dim, 9.0, CPU)
    x = th.randn(3, 6, 3, 2, head_dim)
    turned = apply_rotary(x, rotary.expand(3, *rotary.shape) if for_each_row else rotary)
    expected = x.clone()
    for t in range(6):
        for k in range(head_dim // 2):
            angle = th.tensor(t * 9.0 ** (-k / (head_dim // 2)))
            first, second = x[:, t, :2, :, 2 * k], x[:, t, :2, :, 2 * k + 1]
            expected[:, t, :2, :, 2 * k] = first * angle.cos() - second * angle.sin()
            expected[:, t, :2, :, 2 * k + 1] = first * angle.sin() + second * angle.cos()
    th.testing.assert_close(turned, expected)
    assert th.equal(turned[:, :, 2], x[:, :, 2])


def test_rotary_keeps_double_precision():
    x, rotary = th.randn(1, 6, 3, 2, 4, dtype=th.float64), rotary_frequencies(6, 2, 4, 9.0, CPU).to(th.complex128)
    assert apply_rotary(x, rotary).dtype == th.float64
    assert th.equal(apply_rotary(x, rotary)[:, 0], x[:, 0])  # position 0 is not turned
    assert apply_rotary(x.bfloat16(), rotary_frequencies(6, 2, 4, 9.0, CPU)).dtype == th.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["latent", "previous_steps"])
def test_what_is_not_finite_is_zero_in_a_token(value, where):
    """0 times NaN is NaN: one such step would reach every step that does not attend to it."""
    encoder = TrajectoryEncoder(3, 1, 8, 1, 2, 16, 0.0, 9.0)
    inputs = {"latent": th.randn(2, 4, 3), "previous_steps": th.randn(2, 4, 1)}
    zeroed, bad = dict(inputs), dict(inputs)
    keep = th.ones_like(inputs[where])
    keep[1, 2] = 0.0
    zeroed[where] = inputs[where] * keep
    bad[where] = th.where(keep > 0, inputs[where], value)
    assert th.equal(encoder.embed(**bad), encoder.embed(**zeroed))
    assert not th.equal(encoder.embed(**inputs), encoder.embed(**zeroed))


@pytest.mark.parametrize("head_dim", [1, 4, 5])
@pytest.mark.parametrize("for_each_row", [False, True])
def test_rotary_without_complex_numbers(head_dim, for_each_row):
    """As ONNX has none: the same to the last bits"""
    rotary, x = rotary_frequencies(6, 2, head_dim, 9.0, CPU), th.randn(3, 6, 3, 2, head_dim)
    rotary = rotary.expand(3, *rotary.shape) if for_each_row else rotary
    assert as_real(rotary).shape == (*rotary.shape[:-1], head_dim // 2 * 2)
    turned = apply_rotary(x, as_real(rotary))
    assert turned.shape == x.shape
    th.testing.assert_close(turned, apply_rotary(x, rotary))


def test_each_row_may_have_positions_of_its_own():
    rotary, x = rotary_frequencies(6, 2, 4, 9.0, CPU), th.randn(2, 1, 3, 2, 4)
    together = apply_rotary(x, rotary[th.tensor([4, 1])].unsqueeze(1))
    alone = [apply_rotary(x[n : n + 1], rotary[t : t + 1]) for n, t in enumerate((4, 1))]
    th.testing.assert_close(together, th.cat(alone))


def test_only_the_distance_between_two_steps_matters():
    rotary = rotary_frequencies(40, 1, 8, 20.0, CPU)
    query, key = th.randn(8), th.randn(8)

    def score(i: int, j: int) -> float:
        x = th.stack([query, key, key]).reshape(1, 1, 3, 1, 8)
        queries, keys = (apply_rotary(x, rotary[t : t + 1])[0, 0, part, 0] for t, part in ((i, 0), (j, 1)))
        return float(queries @ keys)

    for distance in (0, 1, 7):
        scores = [score(j + distance, j) for j in (0, 3, 20)]
        assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)
    assert score(0, 0) == pytest.approx(float(query @ key), abs=1e-4)
    assert abs(score(5, 0) - score(4, 0)) > 1e-3 and abs(score(5, 0) - score(0, 5)) > 1e-3


def test_short_floats_become_long_ones():
    rotary = rotary_frequencies(3, 1, 4, 9.0, CPU)
    x = th.randn(2, 3, 3, 1, 4)
    turned = apply_rotary(x.bfloat16(), rotary)
    assert turned.dtype == th.float32
    th.testing.assert_close(turned, apply_rotary(x, rotary), rtol=0.02, atol=0.02)


# --- tensors that are made once ---


def test_cached_whatever_mode_they_are_made_in(monkeypatch):
    made = []

    @cached
    def ones(n: int) -> th.Tensor:
        made.append(n)
        return th.ones(n)

    with th.inference_mode():
        first = ones(3)
    assert ones(3) is first and made == [3]
    assert ones(4) is not first and made == [3, 4]
    weight = th.zeros(3, requires_grad=True)
    (weight * first).sum().backward()  # not with a tensor of inference mode
    monkeypatch.setattr(th.compiler, "is_compiling", lambda: True)
    assert ones(3) is not first and made == [3, 4, 3]
    assert ones.__name__ == "ones"


# --- masks ---

IDS = th.tensor([[0, 0, 1, 1, 1], [-1, -1, -1, 0, 1]])


def rows(mask: th.Tensor) -> list[list[str]]:
    """Of each window the rows of its mask, as strings"""
    assert mask.shape[1] == 1 and mask.dtype == th.bool
    return [["".join("x" if x else "." for x in row) for row in window[0]] for window in mask.tolist()]


def test_causal_mask():
    assert rows(attention_mask(IDS, 5)) == [
        ["x....", "xx...", "..x..", "..xx.", "..xxx"],
        ["x....", "xx...", "xxx..", "...x.", "....x"],
    ]
    assert rows(attention_mask(IDS, 2)) == [["..xx.", "..xxx"], ["...x.", "....x"]]
    assert rows(attention_mask(IDS, 1)) == [["..xxx"], ["....x"]]


def test_mask_of_whole_episodes():
    assert rows(attention_mask(IDS, 5, causal=False)) == [
        ["xx...", "xx...", "..xxx", "..xxx", "..xxx"],
        ["xxx..", "xxx..", "xxx..", "...x.", "....x"],
    ]
    assert rows(attention_mask(IDS, 2, causal=False)) == [["..xxx", "..xxx"], ["...x.", "....x"]]


def test_mask_with_noise():
    """A step sees itself, and of its own episode those steps before its noise was sampled."""
    noise = th.tensor([[3, 3, 3, 4, 4], [0, 0, 1, 1, 2]])
    ids = th.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert rows(attention_mask(ids, 5, noise_ids=noise)) == [
        ["x....", ".x...", "..x..", "..xx.", "..x.x"],
        ["x....", ".x...", "xxx..", "xx.x.", "xxxxx"],
    ]
    assert rows(attention_mask(ids, 2, noise_ids=noise)) == [["..xx.", "..x.x"], ["xx.x.", "xxxxx"]]
    assert rows(attention_mask(ids, 2, causal=False, noise_ids=noise)) == [["..xx.", "..x.x"], ["xx.x.", "xxxxx"]]


# --- a block ---


def block_by_hand(block: Block, x: th.Tensor, rotary: th.Tensor, mask: th.Tensor, scale: float = 1.0) -> th.Tensor:
    """Pre-norm attention and feed-forward, in loops; ``scale`` stands for dropout"""
    n, width, d_model = x.shape
    head_dim = d_model // block.n_heads
    normed = nn.functional.layer_norm(x, (d_model,), block.norm1.weight, block.norm1.bias)
    qkv = normed @ block.qkv_proj.weight.T + block.qkv_proj.bias
    attended = th.zeros_like(x)
    for row in range(n):
        for head in range(block.n_heads):
            parts = [qkv[row, :, i * d_model + head * head_dim :][:, :head_dim] for i in range(3)]
            turned = [
                th.view_as_real(th.view_as_complex(part.reshape(width, -1, 2).contiguous()) * rotary[:, 0, head]).flatten(1)
                for part in parts[:2]
            ]
            scores = turned[0] @ turned[1].T / head_dim**0.5
            weights = scores.masked_fill(~mask[row, 0], -INF).softmax(-1)
            attended[row, :, head * head_dim : (head + 1) * head_dim] = weights @ parts[2]
    x = x + scale * (attended @ block.out_proj.weight.T + block.out_proj.bias)
    normed = nn.functional.layer_norm(x, (d_model,), block.norm2.weight, block.norm2.bias)
    hidden = (normed @ block.fc1.weight.T + block.fc1.bias).clamp(min=0)
    return x + scale * (hidden @ block.fc2.weight.T + block.fc2.bias)


def perturbed_block(dropout: float = 0.0) -> Block:
    th.manual_seed(0)
    block = Block(8, 2, 5, dropout)
    with th.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return block


@th.no_grad()
def test_a_block_by_hand():
    block, x, rotary = perturbed_block(), th.randn(2, 5, 8), rotary_frequencies(5, 2, 4, 9.0, CPU)
    mask = attention_mask(IDS, 5)
    expected = block_by_hand(block, x, rotary, mask)
    th.testing.assert_close(block(x, rotary, mask), expected, rtol=1e-5, atol=1e-5)
    for n in (1, 3):
        th.testing.assert_close(block(x, rotary, mask[:, :, -n:], n), expected[:, -n:], rtol=1e-5, atol=1e-5)


class Twice(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2 * x


@th.no_grad()
def test_dropout_comes_after_attention_and_after_feed_forward():
    block, x, rotary = perturbed_block(0.25), th.randn(2, 5, 8), rotary_frequencies(5, 2, 4, 9.0, CPU)
    assert isinstance(block.dropout, nn.Dropout) and block.dropout.p == 0.25
    assert isinstance(perturbed_block().dropout, nn.Identity)
    block.dropout, mask = Twice(), attention_mask(IDS, 5)
    th.testing.assert_close(block(x, rotary, mask), block_by_hand(block, x, rotary, mask, 2.0), rtol=1e-5, atol=1e-5)


class Growing:
    """Keys and values of all tokens so far"""

    def __init__(self):
        self.keys = self.values = th.zeros(2, 2, 0, 4)

    def append(self, keys, values):
        self.keys, self.values = th.cat([self.keys, keys], 2), th.cat([self.values, values], 2)
        return self.keys, self.values


@th.no_grad()
def test_with_a_cache_a_block_goes_on():
    block, x, rotary = perturbed_block(), th.randn(2, 5, 8), rotary_frequencies(5, 2, 4, 9.0, CPU)
    cache, mask = Growing(), attention_mask(IDS, 5)
    parts = [block(x[:, a:b], rotary[a:b], mask[:, :, a:b, :b], cache=cache) for a, b in ((0, 2), (2, 3), (3, 5))]
    th.testing.assert_close(th.cat(parts, 1), block(x, rotary, mask), rtol=1e-5, atol=1e-5)


# --- the encoder ---


def make_encoder(n_layers: int = 2, previous_dim: int = 2, **options) -> TrajectoryEncoder:
    th.manual_seed(0)
    options = {"d_model": 8, "n_heads": 2, "dim_feedforward": 16, "dropout": 0.0, "rope_base": 9.0, **options}
    encoder = TrajectoryEncoder(5, previous_dim, n_layers=n_layers, **options)
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return encoder.eval()


def test_what_an_encoder_is_made_of():
    encoder = make_encoder(n_layers=3, dropout=0.1)
    assert encoder.input_proj.weight.shape == (8, 5) and encoder.input_proj.bias is not None
    assert encoder.previous_proj.weight.shape == (8, 2) and encoder.previous_proj.bias is None
    assert len(encoder.blocks) == 3
    block = encoder.blocks[1]
    assert (block.n_heads, block.fc1.out_features, block.fc2.in_features, block.dropout.p) == (2, 16, 16, 0.1)
    assert block.qkv_proj.weight.shape == (24, 8) and block.out_proj.weight.shape == (8, 8)
    assert make_encoder(previous_dim=0).previous_proj is None
    assert th.equal(encoder.rotary(7, CPU), rotary_frequencies(7, 2, 4, 9.0, CPU))


@th.no_grad()
def test_tokens_by_hand():
    encoder, latent, previous_steps = make_encoder(), th.randn(2, 5, 5), th.randn(2, 5, 2)
    expected = latent @ encoder.input_proj.weight.T + encoder.input_proj.bias + previous_steps @ encoder.previous_proj.weight.T
    th.testing.assert_close(encoder.embed(latent, previous_steps), expected)
    encoder = make_encoder(previous_dim=0)
    assert th.equal(encoder.embed(latent, previous_steps[..., :0]), encoder.input_proj(latent))


def test_a_layer_that_was_taken_away_stays_away():
    encoder, latent = make_encoder(), th.randn(3, 6, 5)
    encoder.previous_proj = None
    assert th.equal(encoder.embed(latent, th.randn(3, 6, 2)), encoder.input_proj(latent))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_tokens_are_finite(bad):
    """And so are the gradients of what made them, where nobody looks at these tokens"""
    encoder, latent, previous_steps = make_encoder(), th.randn(2, 5, 5), th.randn(2, 5, 2)
    tokens = encoder.embed(latent, previous_steps)
    latent[0, 1, 2] = bad
    previous_steps[1, 3, 0] = bad
    found = encoder.embed(latent, previous_steps)
    assert th.isfinite(found).all()
    seen = th.ones(2, 5, dtype=th.bool)
    seen[0, 1] = seen[1, 3] = False
    assert th.equal(found[seen], tokens[seen])
    found[seen].sum().backward()
    assert all(th.isfinite(layer.weight.grad).all() for layer in (encoder.input_proj, encoder.previous_proj))


@th.no_grad()
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("noise", [False, True])
def test_an_encoder_is_its_blocks_and_a_norm(n_layers, causal, noise):
    encoder, x = make_encoder(n_layers), th.randn(2, 5, 8)
    noise_ids = th.tensor([[3, 3, 3, 4, 4], [0, 0, 1, 1, 2]]) if noise else None
    mask, expected = attention_mask(IDS, 5, causal, noise_ids), x
    for block in encoder.blocks:
        expected = block_by_hand(block, expected, rotary_frequencies(5, 2, 4, 9.0, CPU), mask)
    expected = nn.functional.layer_norm(expected, (8,), encoder.norm.weight, encoder.norm.bias)
    for n in (1, 3, 5):
        hidden = encoder(x, IDS, n, causal, noise_ids)
        th.testing.assert_close(hidden, expected[:, -n:], rtol=1e-4, atol=1e-4)


@th.no_grad()
def test_by_default_an_encoder_is_causal():
    encoder, x = make_encoder(), th.randn(2, 5, 8)
    assert th.equal(encoder(x, IDS, 5), encoder(x, IDS, 5, True, None))
    assert not th.allclose(encoder(x, IDS, 5), encoder(x, IDS, 5, False))


@th.no_grad()
def test_steps_with_caches_are_one_pass():
    encoder, x = make_encoder(2), th.randn(2, 5, 8)
    caches, rotary, mask = [Growing(), Growing()], encoder.rotary(5, CPU), attention_mask(IDS, 5)
    parts = [encoder.step(x[:, a:b], rotary[a:b], mask[:, :, a:b, :b], caches) for a, b in ((0, 3), (3, 4), (4, 5))]
    th.testing.assert_close(th.cat(parts, 1), encoder(x, IDS, 5), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError):
        encoder.step(x, rotary, mask, [Growing()])


@th.no_grad()
def test_where_a_window_starts_does_not_matter():
    encoder, x = make_encoder(2), th.randn(1, 9, 8)
    ids = th.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    whole = encoder(x, ids, 2)
    th.testing.assert_close(encoder(x[:, 3:], ids[:, 3:], 2), whole, rtol=1e-4, atol=1e-5)
    assert not th.allclose(encoder(x[:, 4:], ids[:, 4:], 2), whole, atol=1e-3)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("actor", [{}, {"memory_actor": True}])
def test_what_is_not_finite_stays_in_its_episode(bad, n_layers, actor):
    policy, windows = make_policy(4, n_layers=n_layers, **actor), random_windows(0, 8, 0.0)
    windows.episode_ids[:, 3:6], windows.episode_ids[:, 6:] = 1, 2
    with th.no_grad():
        before = policy.encode_windows(windows, 8).stepped.latent
        windows.observations[:, 2:4] = bad  # the last step of one episode, the first of the next
        windows.previous_rewards[:, 3] = bad
        after = policy.encode_windows(windows, 8).stepped.latent
    assert th.equal(after[:, [0, 1, 6, 7]], before[:, [0, 1, 6, 7]])
    assert not th.isfinite(after[:, 2:4]).all() or bad == INF  # tanh of infinity is finite


# --- layers are called, not read: hooks, subclasses, adapters and pruning take effect everywhere ---

LAYERS = [f"blocks.0.{name}" for name in ("norm1", "qkv_proj", "out_proj", "norm2", "fc1", "fc2", "dropout")]
LAYERS += ["blocks.0", "norm", "input_proj", "previous_proj"]


@pytest.mark.parametrize("name", LAYERS)
@th.no_grad()
def test_layers_are_called(name):
    encoder, latent, previous_steps = make_encoder(1), th.randn(2, 5, 5), th.randn(2, 5, 2)

    def whole() -> th.Tensor:
        return encoder(encoder.embed(latent, previous_steps), IDS, 5)

    def stepped() -> th.Tensor:
        mask = attention_mask(IDS, 5)
        return encoder.step(encoder.embed(latent, previous_steps), encoder.rotary(5, CPU), mask, [Growing()])

    before = whole()
    encoder.get_submodule(name).register_forward_hook(lambda module, inputs, output: output + 1 + th.arange(output.shape[-1]))
    assert not th.allclose(whole(), before, atol=1e-3)
    th.testing.assert_close(stepped(), whole())


@pytest.mark.parametrize(
    "name", ["actor_network.encoder.blocks.0", "actor_network.encoder.norm", "mlp_extractor.policy_net.1", "actor_network"]
)
def test_hooks_of_a_policys_modules_are_called_while_acting(name):
    options = {"memory_actor": True, "context_length": 4}
    model = AAC("MlpPolicy", IdentityEnv(dim=2), n_steps=8, batch_size=8, policy_kwargs=options)
    module = model.policy.get_submodule(name)
    module = module.output_proj if name == "actor_network" else module
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
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
