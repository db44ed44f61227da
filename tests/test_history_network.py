"""The history network starts as SB3's MLP, and adds to its latent."""

import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_attention_ac.networks.history_network import HistoryEncoder, HistoryNetwork, frozen, widened
from sb3_attention_ac.networks.preprocessing import AgeEncoder, PreviousStepEncoder, stack_frames
from sb3_attention_ac.networks.transformer import TrajectoryEncoder
from sb3_attention_ac.type_aliases import TrajectoryWindows

IDS = th.tensor([[0, 0, 1, 1, 1], [-1, -1, -1, 0, 1]])


def windows_of(ids: th.Tensor = IDS, noise_ids: th.Tensor | None = None) -> TrajectoryWindows:
    n, width = ids.shape
    th.manual_seed(1)
    starts = th.zeros((n, width), dtype=th.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    actions = th.randint(2, (n, width, 1)).float()
    return TrajectoryWindows(
        th.randn(n, width, 3), actions, th.randn(n, width), starts, ids, th.arange(width).expand(n, -1).float(), noise_ids
    )


def encoder_of(latent_dim: int = 6, previous_dim: int = 2) -> TrajectoryEncoder:
    th.manual_seed(0)
    encoder = TrajectoryEncoder(latent_dim, previous_dim, 8, 1, 2, 16, 0.0, 9.0)
    with th.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return encoder


def network_of(
    n_frames: int = 1, detach_mlp: bool = False, perturb: bool = True, age_input: bool | str = False
) -> tuple[HistoryNetwork, nn.Sequential]:
    network = HistoryNetwork(6, n_frames, encoder_of(), 8, detach_mlp, AgeEncoder(age_input))
    mlp = nn.Sequential(nn.Linear(3 * n_frames + network.age_encoder.dim, 6), nn.Tanh())
    if perturb:
        nn.init.normal_(network.output_proj.weight)
    return network, mlp


# --- frozen ---


def test_frozen_passes_gradients_on_and_gets_none():
    layer, x = nn.Linear(2, 1), th.ones(1, 2, requires_grad=True)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        assert not layer.weight.requires_grad
        layer(x).sum().backward()
    assert th.equal(x.grad, layer.weight) and layer.weight.grad is None
    assert layer.weight.requires_grad and not layer.bias.requires_grad  # as it was


def test_frozen_ends_with_an_error():
    layer = nn.Linear(2, 1)
    with pytest.raises(RuntimeError), frozen(layer):
        raise RuntimeError
    assert layer.weight.requires_grad and layer.bias.requires_grad


# --- widened ---


def test_a_widened_mlp_is_the_same_until_it_learns():
    mlp = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    wide = widened(mlp, 3, 9)
    assert isinstance(wide, nn.Sequential) and wide[0].weight.shape == (5, 9)
    assert [type(layer) for layer in wide] == [nn.Linear, nn.Tanh, nn.Linear] and wide[2] is mlp[2]
    assert th.equal(wide[0].weight[:, :3], mlp[0].weight) and wide[0].weight[:, 3:].abs().max() == 0
    assert th.equal(wide[0].bias, mlp[0].bias) and wide[0].weight.requires_grad
    features = th.randn(2, 5, 3)
    th.testing.assert_close(wide(stack_frames(features, IDS, 2)), mlp(features))
    wide(stack_frames(features, IDS, 2)).sum().backward()
    assert (wide[0].weight.grad[:, 3:].abs().sum(0) > 0).all()  # the earlier frames can be learned


@pytest.mark.parametrize("layers", [[], [nn.Tanh()]])
def test_an_mlp_without_a_first_layer_gets_one_that_changes_nothing(layers):
    mlp = nn.Sequential(*layers)
    wide = widened(mlp, 3, 6)
    assert wide[0].weight.tolist() == th.eye(3, 6).tolist() and wide[0].bias.tolist() == [0, 0, 0]
    features = th.randn(2, 5, 3)
    th.testing.assert_close(wide(stack_frames(features, IDS, 1)), mlp(features))
    assert len(wide) == len(layers) + 1


# --- the network ---


@pytest.mark.parametrize("n_frames", [1, 3])
def test_it_starts_as_its_mlp(n_frames):
    network, mlp = network_of(n_frames, perturb=False)
    assert network.n_previous == n_frames - 1
    features, previous_steps, windows = th.randn(2, 5, 3), th.randn(2, 5, 2), windows_of()
    output = network(mlp, features, previous_steps, windows, 4)
    expected = mlp(stack_frames(features, IDS, n_frames - 1))[:, -4:]
    th.testing.assert_close(output.latent, expected)
    th.testing.assert_close(output.mlp_latent, expected)
    assert output.hidden.shape == (2, 4, 8)
    output.latent.sum().backward()
    assert network.output_proj.weight.grad.abs().sum() > 0  # and can learn to add something


@pytest.mark.parametrize("n_frames", [1, 3])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("age_input", [False, True, "sinusoidal"])
def test_what_attention_adds_by_hand(n_frames, noise, age_input):
    network, mlp = network_of(n_frames, age_input=age_input)
    noise_ids = th.tensor([[3, 3, 3, 4, 4], [0, 0, 1, 1, 2]]) if noise else None
    features, previous_steps, windows = th.randn(2, 5, 3), th.randn(2, 5, 2), windows_of(noise_ids=noise_ids)
    frames = stack_frames(features, IDS, n_frames - 1)
    mlp_latent = mlp(th.cat([frames, AgeEncoder(age_input)(windows.ages)], -1))
    hidden = network.encoder(network.encoder.embed(mlp_latent, previous_steps), IDS, 3, noise_ids=noise_ids)
    output = network(mlp, features, previous_steps, windows, 3)
    th.testing.assert_close(output.mlp_latent, mlp_latent[:, -3:])
    th.testing.assert_close(output.hidden, hidden)
    th.testing.assert_close(output.latent, mlp_latent[:, -3:] + hidden @ network.output_proj.weight.T)
    assert network.output_proj.bias is None


def test_a_network_without_an_encoder_reads_anothers_hidden_states():
    network, mlp = HistoryNetwork(6, 1, None, 8), nn.Sequential(nn.Linear(3, 6))
    nn.init.normal_(network.output_proj.weight)
    features, hidden = th.randn(2, 5, 3), th.randn(2, 2, 8)
    output = network(mlp, features, th.zeros(2, 5, 0), windows_of(), 2, hidden)
    th.testing.assert_close(output.latent, mlp(features)[:, -2:] + network.output_proj(hidden))
    assert output.hidden is hidden
    without = network(mlp, features, th.zeros(2, 5, 0), windows_of(), 2)
    assert without.hidden is None and th.equal(without.latent, without.mlp_latent)


def test_without_attention_it_is_an_mlp():
    network, mlp = HistoryNetwork(6, 1, None, 0), nn.Sequential(nn.Linear(3, 6))
    assert network.output_proj is None
    output = network(mlp, th.ones(2, 5, 3), th.zeros(2, 5, 0), windows_of(), 2)
    assert th.equal(output.latent, mlp(th.ones(2, 2, 3))) and output.hidden is None
    assert network.combine(output.mlp_latent, th.randn(2, 2, 8)).latent is output.mlp_latent


@pytest.mark.parametrize("detach_mlp", [False, True])
def test_where_the_mlp_learns_elsewhere_it_gets_no_gradient(detach_mlp):
    network, mlp = network_of(detach_mlp=detach_mlp)
    assert network.detach_mlp == detach_mlp
    assert not HistoryNetwork(6, 1, None, 8).detach_mlp
    features = th.randn(2, 5, 3, requires_grad=True)
    output = network(mlp, features, th.randn(2, 5, 2), windows_of(), 3)
    (output.latent.sum() + output.hidden.square().sum()).backward()
    assert (mlp[0].weight.grad is None) == detach_mlp and (features.grad is None) == detach_mlp
    assert network.encoder.input_proj.weight.grad.abs().sum() > 0
    with th.no_grad():
        assert not network(mlp, features, th.randn(2, 5, 2), windows_of(), 3).latent.requires_grad


def test_what_an_mlp_reads():
    """Stacked frames, of landmarks without neighbours, and the age where it is asked for"""
    network, features, ages = network_of(2, age_input=True)[0], th.randn(2, 5, 3), windows_of().ages
    assert (
        network.age_encoder.dim == 2 and network_of()[0].age_encoder.dim == HistoryNetwork(6, 1, None, 8).age_encoder.dim == 0
    )
    frames = stack_frames(features, IDS, 1, n_landmarks=2)
    assert th.equal(network.mlp_input(features, IDS, ages, 2), th.cat([frames, AgeEncoder(True)(ages)], -1))
    assert not th.equal(network.mlp_input(features, IDS, ages), network.mlp_input(features, IDS, ages, 2))
    network.age_encoder = AgeEncoder(False)
    assert th.equal(network.mlp_input(features, IDS, ages, 2), frames)
    assert network.with_age(frames, ages) is frames


def test_landmarks_of_a_window_have_no_neighbours():
    network, mlp = network_of(2)
    features, previous_steps, windows = th.randn(2, 5, 3), th.randn(2, 5, 2), windows_of(th.zeros_like(IDS))
    output = network(mlp, features, previous_steps, windows._replace(n_landmarks=2), 5)
    th.testing.assert_close(output.mlp_latent, mlp(stack_frames(features, windows.episode_ids, 1, 2)))


# --- from raw steps to latents ---


@pytest.mark.parametrize("detach_mlp", [False, True])
def test_from_raw_steps_to_latents(detach_mlp):
    network, mlp = network_of(detach_mlp=detach_mlp)
    extractor, encode_previous = nn.Linear(3, 3), PreviousStepEncoder(spaces.Discrete(2), True, False, AgeEncoder(False))
    seen = []

    def extract(obs: th.Tensor) -> th.Tensor:
        seen.append(obs.shape)
        return extractor(obs)

    encoder, windows = HistoryEncoder(extract, mlp, network, encode_previous), windows_of()
    features = encoder.features(windows)
    th.testing.assert_close(features, extractor(windows.observations))
    assert seen == [(10, 3)] and features.requires_grad != detach_mlp  # a plain batch
    output = encoder(windows, features, 3)
    encoded = encode_previous(windows.previous_actions, None, windows.ages, windows.episode_starts)
    expected = network(mlp, features, encoded, windows, 3)
    for ours, its in zip(output, expected, strict=True):
        assert th.equal(ours, its)
    other = windows._replace(previous_actions=1 - windows.previous_actions)
    assert not th.allclose(encoder(other, features, 3).latent, output.latent)
    first = th.where(windows.episode_starts.unsqueeze(-1), 1 - windows.previous_actions, windows.previous_actions)
    assert th.equal(encoder(windows._replace(previous_actions=first), features, 3).latent, output.latent)


def test_hidden_states_are_passed_on_to_a_network_without_an_encoder():
    network, mlp = HistoryNetwork(6, 1, None, 8), nn.Sequential(nn.Linear(3, 6))
    encoder = HistoryEncoder(
        lambda obs: obs, mlp, network, PreviousStepEncoder(spaces.Discrete(2), True, True, AgeEncoder(True))
    )
    hidden, windows = th.randn(2, 3, 8), windows_of()
    assert encoder(windows, encoder.features(windows), 3, hidden).hidden is hidden
