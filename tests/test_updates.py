"""What a minibatch is, and which terms of the loss it gives."""

from typing import Any

import numpy as np
import pytest
import torch as th
from trajectories import ACTION_SPACES, ACTORS, fill, make_buffer, make_policy

from sb3_attention_ac.auxiliary.recent_trajectories import RecentTrajectories
from sb3_attention_ac.evaluation import evaluate_action_advantages, evaluate_actions, evaluate_transitions
from sb3_attention_ac.train_log import TrainLog
from sb3_attention_ac.type_aliases import AuxiliaryLoss, TransitionSamples, WindowSamples
from sb3_attention_ac.updates import MemoryActorUpdate, MlpActorUpdate, UpdateSettings, update_class

GIVEN = UpdateSettings(4, 0.2, None, True, 0.01, 0.5, 0.3, 0.25)


def make(policy_options: dict[str, Any], n_steps=16, n_envs=2, name="Discrete", masked=False, **coefficients):
    """An update of a policy that collected a rollout and has changed a little since; its buffer has targets"""
    policy = make_policy(3, ACTION_SPACES[name], chunk_length=4, **policy_options)
    buffer, rng = make_buffer(policy, n_steps, n_envs), np.random.default_rng(0)
    if policy.attention_q is not None:
        policy.attention_q.evidence.fill_(5.0)
    fill(buffer, rng, np.ones(n_envs, dtype=bool), 0.2, policy.start_acting, masked)
    for target in ("values", "mlp_values", "advantages", "returns"):
        setattr(buffer, target, rng.normal(size=buffer.values.shape).astype(np.float32))
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.03 * th.randn_like(parameter))
    th.manual_seed(0)
    np.random.seed(0)
    recent, log = RecentTrajectories(0), TrainLog(0.2)
    recent.add(buffer)
    return update_class(policy)(policy, buffer, recent, GIVEN._replace(**coefficients), log)


def logged(update) -> dict[str, float]:
    """What was noted of the only minibatch"""
    values = {name: collected for name, collected in update.log._values.items() if name != "log_ratio"}
    assert all(len(collected) == 1 for collected in values.values())
    return {name: collected[0][1].item() for name, collected in values.items()}


def surrogate(log_prob, batch, clip_range=0.2, normalize=True) -> float:
    advantages, ratio = batch.advantages, th.exp(log_prob - batch.old_log_prob)
    assert (ratio - 1).abs().max() > 1e-3
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -th.minimum(ratio * advantages, clipped * advantages).mean().item()


def approx(value) -> Any:
    return pytest.approx(th.as_tensor(value).item(), rel=1e-4, abs=1e-6)


# --- losses of transitions ---


COEFFICIENTS: list[dict[str, Any]] = [
    {"clip_range": 0.01},
    {"normalize_advantage": False},
    {"ent_coef": 0.0},
    {"vf_coef": 2.0},
    {"clip_range_vf": 0.1},
]
SPACES = [("Discrete", False, {}), ("MultiDiscrete", True, {}), ("Box", False, {})]
CASES = SPACES + [("Discrete", False, coefficients) for coefficients in COEFFICIENTS]


@pytest.mark.parametrize(("name", "masked", "coefficients"), CASES)
@pytest.mark.parametrize("attention_q", [False, True])
def test_losses_of_transitions(coefficients, name, masked, attention_q):
    update = make({"attention_q": attention_q}, name=name, masked=masked, **coefficients)
    given, policy = update.settings, update.policy
    batch = next(update.buffer.get_transitions(None))
    assert (batch.logit_offsets is not None) == attention_q and (batch.action_masks is not None) == masked
    losses = update.losses(batch)
    values, log_prob, entropy, _ = evaluate_transitions(
        policy, batch.observations, batch.actions, batch.action_masks, batch.logit_offsets
    )
    policy_loss = surrogate(log_prob, batch, given.clip_range, given.normalize_advantage)
    if given.clip_range_vf is not None:
        values = batch.old_values + (values - batch.old_values).clamp(-0.1, 0.1)
    value_loss = (values - batch.returns).square().mean()
    assert {name: loss.item() for name, loss in losses.items()} == {
        "policy_gradient_loss": approx(policy_loss),
        "value_loss": approx(given.vf_coef * value_loss),
        **({"entropy_loss": approx(-given.ent_coef * entropy.mean())} if given.ent_coef else {}),
    }
    assert logged(update) == {
        "policy_gradient_loss": approx(policy_loss),
        "value_loss": approx(value_loss),
        "entropy_loss": approx(-entropy.mean()),
    }
    assert th.equal(update.log._values["log_ratio"][0][1], (log_prob - batch.old_log_prob).detach())
    assert all(loss.requires_grad for loss in losses.values())


def test_more_entropy_is_less_loss():
    update = make({}, ent_coef=0.5)
    batch = next(update.buffer.get_transitions(None))
    update.losses(batch)["entropy_loss"].backward()
    entropy = evaluate_transitions(update.policy, batch.observations, batch.actions)[2].mean()
    with th.no_grad():
        for parameter in update.policy.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    assert evaluate_transitions(update.policy, batch.observations, batch.actions)[2].mean() > entropy


@pytest.mark.parametrize("memory_actor", [False, True])
@pytest.mark.parametrize(("name", "masked"), [("Discrete", False), ("MultiDiscrete", True)])
def test_the_log_barrier(name, masked, memory_actor):
    update = make({"memory_actor": memory_actor}, name=name, masked=masked, log_barrier_coef=0.5)
    policy, batch = update.policy, next(iter(update.minibatches(0)))
    if memory_actor:
        given = evaluate_actions(policy, policy.encode_windows(batch[0].windows, batch[0].actions.shape[1]), batch[0])[2]
    else:
        batch = next(update.buffer.get_transitions(None))
        given = evaluate_transitions(policy, batch.observations, batch.actions, batch.action_masks)[3]
    barrier = policy.distribution.log_barrier(given).mean()
    losses = update.losses(batch)
    assert losses["log_barrier_loss"].item() == approx(0.5 * barrier) and losses["log_barrier_loss"].requires_grad
    assert logged(update)["log_barrier_loss"] == approx(barrier) and barrier > 0


def test_entropy_without_a_formula_is_estimated():
    update = make({"use_sde": True, "squash_output": True}, name="Box")
    batch = next(update.buffer.get_transitions(None))
    _, log_prob, entropy, _ = evaluate_transitions(update.policy, batch.observations, batch.actions)
    assert entropy is None
    assert update.losses(batch)["entropy_loss"].item() == approx(0.01 * log_prob.mean())


# --- losses of windows, beside an MLP actor ---


@pytest.mark.parametrize("gate", [0.0, 0.7])
def test_losses_of_attention_beside_an_mlp_actor(gate):
    """The residual is fitted to what V_mlp leaves unexplained, whatever the gate; no clipping, no gradient into the MLPs."""
    update = make({}, vf_coef=0.25, clip_range_vf=0.01)
    update.policy.value_gate.gate.fill_(gate)
    batch = next(update.buffer.get_windows(8))
    losses = update.losses(batch)
    critic = update.policy.critic_output(update.policy.encode_windows(batch.windows, 4).critic)
    expected = (critic.mlp_values + critic.residual - batch.returns).square().mean()
    assert {name: loss.item() for name, loss in losses.items()} == {"attention_value_loss": approx(0.25 * expected)}
    assert logged(update) == {"attention_value_loss": approx(expected)}
    losses["attention_value_loss"].backward()
    moved = {name.split(".")[0] for name, parameter in update.policy.named_parameters() if parameter.grad is not None}
    assert moved == {"critic_network"}


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize(("name", "masked"), [("Discrete", True), ("Box", False)])
@pytest.mark.parametrize("normalize", [True, False])
def test_losses_of_q_att(actor, name, masked, normalize):
    """Advantages are normalized always: A_att is in units of their standard deviation."""
    options = {"attention_q": True, "aux_targets": (), **ACTORS[actor]}
    update = make(options, name=name, masked=masked, normalize_advantage=normalize)
    windows = next(update.buffer.get_windows(8))
    losses = update.losses(windows if actor == "MLP actor" else (windows, False))
    encoded = update.policy.encode_windows(windows.windows, 4)
    predicted = evaluate_action_advantages(update.policy, encoded, windows)
    advantages = (windows.advantages - windows.advantages.mean()) / windows.advantages.std()
    expected = (predicted - advantages).square().mean()
    assert losses["attention_q_loss"].item() == approx(0.5 * expected)
    assert logged(update)["attention_q_loss"] == approx(expected)


# --- losses of windows, of a memory actor ---


@pytest.mark.parametrize(("name", "masked", "coefficients"), CASES)
@pytest.mark.parametrize(("share_encoder", "skip_critic"), [(False, False), (True, False), (False, True)])
def test_losses_of_a_memory_actor(coefficients, name, masked, share_encoder, skip_critic):
    options = {"memory_actor": True, "share_encoder": share_encoder, "aux_targets": ()}
    update = make(options, name=name, masked=masked, **coefficients)
    given, policy = update.settings, update.policy
    batch = next(update.buffer.get_windows(8))
    losses = update.losses((batch, skip_critic))
    encoded = policy.encode_windows(batch.windows, 4)
    log_prob, entropy, _ = evaluate_actions(policy, encoded, batch)
    assert log_prob.shape == entropy.shape == (2, 4)
    policy_loss = surrogate(log_prob, batch, given.clip_range, given.normalize_advantage)
    values = policy.critic_output(encoded.critic).values
    if given.clip_range_vf is not None:
        values = batch.old_values + (values - batch.old_values).clamp(-0.1, 0.1)
    value_loss = given.vf_coef * (values - batch.returns).square().mean()
    assert {name: loss.item() for name, loss in losses.items()} == {
        "policy_gradient_loss": approx(policy_loss),
        **({} if skip_critic else {"value_loss": approx(value_loss)}),
        **({"entropy_loss": approx(-given.ent_coef * entropy.mean())} if given.ent_coef else {}),
    }
    assert ("value_loss" in logged(update)) != skip_critic
    sum(losses.values()).backward()
    assert (policy.value_net.weight.grad is None) == skip_critic
    assert policy.action_net.weight.grad.abs().sum() > 0


def test_entropy_of_squashed_noise_of_a_memory_actor():
    update = make({"memory_actor": True, "aux_targets": (), "use_sde": True, "squash_output": True}, name="Box")
    batch = next(update.buffer.get_windows(8))
    log_prob, entropy, _ = evaluate_actions(update.policy, update.policy.encode_windows(batch.windows, 4), batch)
    assert entropy is None and log_prob.shape == (2, 4)
    assert update.losses((batch, False))["entropy_loss"].item() == approx(0.01 * log_prob.mean())


# --- self-supervised losses ---


@pytest.mark.parametrize(
    ("targets", "n"),
    [(("next_step",), 2), (("reward",), 1), (("next_step", "reward"), 3), (("reward", "action", "return"), 3)],
)
@pytest.mark.parametrize("actor", ACTORS)
def test_the_weight_of_self_supervised_losses_is_shared_by_them(targets, n, actor):
    update = make({"aux_targets": targets, **ACTORS[actor]}, aux_coef=0.6)
    windows = next(update.buffer.get_windows(None))
    losses = update.losses(windows if actor == "MLP actor" else (windows, False))
    names = {"next_reward", "next_observation"} if "next_step" in targets else set()
    names |= {target for target in targets if target != "next_step"}
    found = {name for name in losses if name.startswith("aux_")}
    assert len(names) == n and found == {f"aux_{name}_loss" for name in names}
    noted = logged(update)
    for name in names:
        assert losses[f"aux_{name}_loss"].item() == approx(0.6 / n * noted[f"aux_{name}_loss"])
        assert noted[f"aux_{name}_baseline"] != noted[f"aux_{name}_loss"]
        assert losses[f"aux_{name}_loss"].requires_grad


@pytest.mark.parametrize(("batch_size", "n_drawn"), [(4, 2), (16, 2), (24, 3), (32, 4)])
def test_how_many_windows_are_drawn_for_the_masked_prediction(batch_size, n_drawn):
    """Half as many as the minibatch has, two at least, and as long; masked in the ratio asked for"""
    update = make({"aux_targets": ("reward",)}, mask_ratio=0.4)
    windows, asked = next(update.buffer.get_windows(batch_size)), []

    def masked_prediction(encoder, extract, batch, mask_ratio):
        asked.append((encoder, extract, tuple(batch.rewards.shape), mask_ratio))
        return {"reward": AuxiliaryLoss(th.tensor(3.0), th.tensor(7.0))}

    update.policy.masked_prediction.forward = masked_prediction
    losses = update.losses(windows)
    (encoder, extract, shape, ratio) = asked[0]
    assert len(asked) == 1 and shape == (n_drawn, 3 + 4) and ratio == 0.4
    assert encoder.network is update.policy.critic_network and extract == update.policy.extract_features
    assert losses["aux_reward_loss"].item() == approx(0.3 * 3)
    noted = logged(update)
    assert (noted["aux_reward_loss"], noted["aux_reward_baseline"]) == (3, 7)


def test_a_skipped_critic_does_not_keep_the_next_step_prediction():
    update = make({"aux_targets": ("next_step",), "memory_actor": True})
    windows = next(update.buffer.get_windows(8))
    both = [update.losses((windows, skip)) for skip in (False, True)]
    for name in ("aux_next_reward_loss", "aux_next_observation_loss"):
        assert both[0][name].item() == approx(both[1][name])


def test_chunks_of_one_step_have_no_next_one():
    update = make({"aux_targets": ("next_step",)})
    batch = update.buffer.window_samples(np.array([3]), np.array([0]), 1)
    assert set(update.losses(batch)) == {"attention_value_loss"}


# --- minibatches beside an MLP actor ---


def kinds(update, epoch: int = 0, stop_at: int | None = None) -> str:
    """Of the minibatches of an epoch: t for transitions, w for windows; the actor has to stop after so many"""
    found = ""
    for batch in update.minibatches(epoch):
        found += {TransitionSamples: "t", WindowSamples: "w"}[type(batch)]
        if stop_at is not None and found.count("t") == stop_at:
            update.continue_training = False
    return found


@pytest.mark.parametrize(
    ("options", "gate", "period"),
    [
        ({}, 0.7, 8),
        ({}, 0.0, 16),
        ({"attention_q": True}, 0.0, 8),
        ({"attention_q": True}, 0.7, 8),
        ({"aux_targets": ("reward",)}, 0.0, 2),
        ({"aux_targets": ("next_step",)}, 0.7, 2),
        ({"aux_targets": ("reward",), "attention_q": True}, 0.0, 2),
    ],
    ids=str,
)
def test_how_often_attention_learns(options, gate, period):
    """
    Before the first of so many minibatches of the MLPs, once in an epoch at least; after it where a masked prediction may
    teach the actor's features extractor
    """
    update = make(options, n_steps=36)
    assert isinstance(update, MlpActorUpdate)
    update.policy.value_gate.gate.fill_(gate)
    due, other = ("tw", "t") if update.policy.masked_prediction is not None else ("wt", "t")
    expected = "".join(due if i % period == 0 else other for i in range(18))
    assert kinds(update) == kinds(update, 1) == expected
    assert not update.is_done and update.continue_training


def test_without_attention_there_are_transitions_alone():
    update = make({"n_layers": 0})
    assert kinds(update) == "t" * 8 and not update.is_done
    update.continue_training = False
    assert update.is_done


@pytest.mark.parametrize("n_layers", [0, 1])
def test_the_actor_may_have_to_stop_while_attention_goes_on(n_layers):
    update = make({"n_layers": n_layers}, n_steps=36)
    assert kinds(update, stop_at=3) == ("wtttw" + "w" if n_layers else "ttt")
    assert kinds(update, 1) == ("www" if n_layers else "")
    assert update.is_done == (n_layers == 0)


def test_minibatches_of_the_mlps_hold_every_transition_once():
    update = make({}, batch_size=6)
    batches = [batch for batch in update.minibatches(0) if isinstance(batch, TransitionSamples)]
    assert [len(batch.returns) for batch in batches] == [6] * 5 + [2]
    seen = th.cat([batch.returns for batch in batches]).sort().values
    assert th.equal(seen, th.as_tensor(update.buffer.returns).flatten().sort().values)
    assert th.equal(batches[0].old_values, _of(update, "mlp_values", batches[0]))


def _of(update, name: str, batch) -> th.Tensor:
    """A target of the steps of a minibatch, found by their returns"""
    returns, target = (th.as_tensor(getattr(update.buffer, k)).flatten() for k in ("returns", name))
    return target[(batch.returns.flatten().unsqueeze(1) == returns).int().argmax(1)].reshape(batch.returns.shape)


def test_attentions_minibatches_are_twice_as_large_and_go_through_the_rollout():
    """Over the borders of epochs, each step once in each pass"""
    update = make({"aux_targets": ("reward",)})
    sizes, seen = [], []
    for epoch in range(2):
        for batch in update.minibatches(epoch):
            if isinstance(batch, WindowSamples):
                sizes.append(tuple(batch.returns.shape))
                seen.append(batch.returns.flatten())
                assert th.equal(batch.old_values, _of(update, "values", batch))
    assert sizes == [(2, 4)] * 8  # 8 steps, where the MLPs have 4
    returns = th.as_tensor(update.buffer.returns).flatten().sort().values
    for half in (seen[:4], seen[4:]):
        assert th.equal(th.cat(half).sort().values, returns)


def test_the_mlps_are_shuffled_as_without_attention():
    """Attention takes nothing from the random stream, and has an order of its own in each update."""
    orders = []
    for n_layers in (0, 1):
        update = make({"n_layers": n_layers})
        np.random.seed(5)
        batches = [batch for epoch in range(2) for batch in update.minibatches(epoch)]
        orders.append([batch.observations for batch in batches if isinstance(batch, TransitionSamples)])
    assert len(orders[0]) == 16 and all(map(th.equal, *orders))
    firsts = set()
    for seed in range(3):
        np.random.seed(seed)
        update = update_class(update.policy)(update.policy, update.buffer, update.recent, update.settings, update.log)
        firsts.add(tuple(next(update.minibatches(0)).returns.flatten().tolist()))
    assert len(firsts) > 1
    for _ in range(2):  # and the same one with the same seed
        np.random.seed(0)
        update = update_class(update.policy)(update.policy, update.buffer, update.recent, update.settings, update.log)
        assert tuple(next(update.minibatches(0)).returns.flatten().tolist()) in firsts


# --- minibatches of a memory actor ---


class Learned(th.nn.Flatten):
    """A features extractor with parameters"""

    def __init__(self, observation_space):
        super().__init__()
        self.features_dim, self.weight = 3, th.nn.Parameter(th.ones(3))

    def forward(self, obs):
        return super().forward(obs) * self.weight


@pytest.mark.parametrize(
    ("options", "skips"),
    [
        ({"aux_targets": ()}, True),
        ({"aux_targets": ("next_step",)}, True),
        ({"aux_targets": ("next_step",), "share_features_extractor": False}, True),
        ({"aux_targets": (), "features_extractor_class": Learned}, False),
        ({"aux_targets": (), "features_extractor_class": Learned, "share_features_extractor": False}, True),
        ({"aux_targets": (), "share_encoder": True}, False),
        ({"aux_targets": (), "attention_q": True}, False),
        ({"aux_targets": ("reward",)}, False),
    ],
    ids=str,
)
def test_a_critic_apart_is_skipped_in_turns(options, skips):
    """In every second minibatch, and of those the other ones in the next epoch"""
    update = make({"memory_actor": True, **options}, batch_size=8, n_steps=20)
    assert isinstance(update, MemoryActorUpdate)
    for epoch in range(3):
        skipped = [skip for _, skip in update.minibatches(epoch)]
        assert skipped == [skips and (epoch + i) % 2 == 1 for i in range(5)]


def test_minibatches_of_a_memory_actor_hold_every_step_once():
    update = make({"memory_actor": True}, batch_size=8)
    batches = [windows for windows, _ in update.minibatches(0)]
    assert [tuple(batch.returns.shape) for batch in batches] == [(2, 4)] * 4
    seen = th.cat([batch.returns.flatten() for batch in batches]).sort().values
    assert th.equal(seen, th.as_tensor(update.buffer.returns).flatten().sort().values)
    assert th.equal(batches[0].old_values, _of(update, "values", batches[0]))


def test_a_memory_actor_that_has_to_stop_is_done():
    update, n = make({"memory_actor": True}, batch_size=4), 0
    assert not update.is_done
    for _ in update.minibatches(0):
        n += 1
        update.continue_training = n < 2
    assert n == 2 and update.is_done
