"""Quick steps of Adam are PyTorch's, to the last bit; clipping does what PyTorch's does."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch as th
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_attention_ac import optim
from sb3_attention_ac.optim import QuickAdam, clip_gradients

SHAPES = ((3, 4), (4,), (), (2, 2, 2))


def two_optimizers(kind: Any = th.optim.Adam, seed: int = 0, **options: Any) -> list[Any]:
    """Of the same parameters, in two groups"""
    optimizers = []
    for _ in range(2):
        generator = th.Generator().manual_seed(seed)
        parameters = [th.nn.Parameter(th.randn(shape, generator=generator)) for shape in SHAPES]
        optimizers.append(kind([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.1}], **options))
    return optimizers


def parameters_of(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def give_gradients(optimizer: th.optim.Optimizer, seed: int, without: tuple[int, ...] = ()) -> None:
    generator = th.Generator().manual_seed(seed)
    for i, parameter in enumerate(parameters_of(optimizer)):
        parameter.grad = None if i in without else th.randn(parameter.shape, generator=generator)


def step_both(quick: QuickAdam, theirs: th.optim.Optimizer, seed: int, without: tuple[int, ...] = ()) -> None:
    """Parameters and states are the same afterwards."""
    for optimizer, step in ((quick.optimizer, quick.step), (theirs, theirs.step)):
        give_gradients(optimizer, seed, without)
        step()
    for mine, its in zip(parameters_of(quick.optimizer), parameters_of(theirs), strict=True):
        assert mine.equal(its)
        assert quick.optimizer.state[mine].keys() == theirs.state[its].keys()
        states = (quick.optimizer.state[mine], theirs.state[its])
        assert all(value is None or value.equal(states[1][name]) for name, value in states[0].items())


KINDS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"maximize": True},
    {"betas": (0.7, 0.8), "eps": 1e-3},
]
if "decoupled_weight_decay" in inspect.signature(th.optim.Adam).parameters:  # not before PyTorch 2.7
    KINDS.append({"weight_decay": 0.1, "decoupled_weight_decay": True})
FUSED = [{"fused": True, **more} for more in KINDS]


@pytest.mark.parametrize("options", [{}, *FUSED])
def test_steps_are_those_of_torch(options):
    ours, theirs = two_optimizers(**{"eps": 1e-5, **options})
    for update in range(2):
        quick = QuickAdam(ours)
        # All, one group alone (MLPs and attention learn in turns), a part of a group, and all again
        for seed, without in enumerate([(), (), (2, 3), (2, 3), (0, 1), (1,), (), (0, 3), (1,), (1,), ()]):
            for optimizer in (ours, theirs):
                optimizer.param_groups[0]["lr"] = 0.01 * (seed + update + 1)
            step_both(quick, theirs, seed, without)


@pytest.mark.parametrize("kind", [th.optim.AdamW, th.optim.SGD])
def test_another_optimizer_takes_its_own_steps(kind):
    ours, theirs = two_optimizers(kind, lr=0.1)
    quick = QuickAdam(ours)
    for seed in range(3):
        step_both(quick, theirs, seed)


def test_what_is_collected_is_used(monkeypatch):
    optimizer, _ = two_optimizers(fused=True)
    quick = QuickAdam(optimizer)
    for seed in range(3):
        give_gradients(optimizer, seed, without=(1,) if seed == 1 else ())
        quick.step()
        monkeypatch.setattr(th.optim.Adam, "step", None)  # PyTorch takes the first step
    assert optimizer.state[parameters_of(optimizer)[0]]["step"].item() == 3


def copied(optimizer: th.optim.Adam) -> th.optim.Adam:
    return copy.deepcopy(optimizer)


def pickled(optimizer: th.optim.Adam) -> th.optim.Adam:
    return pickle.loads(pickle.dumps(optimizer))


def loaded(optimizer: th.optim.Adam) -> th.optim.Adam:
    """A state dict in an optimizer that has taken other steps"""
    other, _ = two_optimizers(seed=1, fused=True)
    quick = QuickAdam(other)
    for seed in range(10, 13):
        give_gradients(other, seed)
        quick.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, its in zip(parameters_of(other), parameters_of(optimizer), strict=True):
        mine.data.copy_(its.data)
    return other


def partly_reset(optimizer: th.optim.Adam) -> th.optim.Adam:
    _, second, third, fourth = parameters_of(optimizer)
    optimizer.state[second] = {}
    del optimizer.state[third]
    optimizer.state[fourth]["exp_avg"] = th.zeros_like(fourth)
    return optimizer


@pytest.mark.parametrize("change", [copied, pickled, loaded, partly_reset])
def test_goes_on_after(change):
    """Between two updates"""
    ours, theirs = two_optimizers(fused=True)
    for update in range(2):
        quick = QuickAdam(ours)
        for seed in range(3):
            step_both(quick, theirs, seed)
        if update == 0:
            ours = change(ours)
            theirs = partly_reset(theirs) if change is partly_reset else theirs


def test_hooks_and_schedulers_see_every_step():
    ours, theirs = two_optimizers(fused=True)
    seen = []
    handles = [
        ours.register_step_post_hook(lambda *_: seen.append("own")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global")),
    ]
    quick = QuickAdam(ours)
    for seed in range(3):
        step_both(quick, theirs, seed)
    assert (seen.count("own"), seen.count("global")) == (3, 6)
    for handle in handles:
        handle.remove()
    scheduler, quick = th.optim.lr_scheduler.StepLR(ours, 1), QuickAdam(ours)
    give_gradients(ours, 0)
    quick.step()
    scheduler.step()  # it warns where it has not seen the optimizer's step


def test_gradients_that_a_scaler_has_scaled():
    ours, theirs = two_optimizers(fused=True)
    for seed in range(4):
        for optimizer in (ours, theirs):
            optimizer.grad_scale = th.tensor(8.0) if seed == 2 else None
        step_both(QuickAdam(ours), theirs, seed)


@pytest.mark.parametrize("kind", [th.optim.Adam, th.optim.SGD])
def test_gradients_are_cleared_by_who_has_to(monkeypatch, kind):
    """Those of an optimizer of one's own by its own function"""
    optimizer, _ = two_optimizers(kind, lr=0.1)
    monkeypatch.setattr(kind, "zero_grad", lambda self: give_gradients(self, 1))
    give_gradients(optimizer, 0)
    quick = QuickAdam(optimizer)
    quick.zero_grad()
    assert [parameter.grad is None for parameter in quick.parameters] == [kind is th.optim.Adam] * len(SHAPES)


class Doubled(th.optim.Adam):
    """An optimizer of one's own: every step twice"""

    def step(self, closure=None):
        super().step(closure)
        return super().step(closure)


def test_a_subclass_takes_its_own_steps():
    ours, theirs = two_optimizers(Doubled, fused=True)
    quick = QuickAdam(ours)
    for seed in range(3):
        step_both(quick, theirs, seed)
    assert ours.state[parameters_of(ours)[0]]["step"].item() == 6


@pytest.mark.parametrize("known", ["at first", "for a while", "never"])
def test_without_the_private_function_pytorch_takes_the_steps(monkeypatch, known):
    ours, theirs = two_optimizers(fused=True)
    if known == "never":
        monkeypatch.setattr(optim, "FUSED_ADAM", None)
    quick = QuickAdam(ours)
    for seed in range(4):
        if (known, seed) in (("at first", 0), ("for a while", 2)):
            monkeypatch.setattr(optim, "FUSED_ADAM", None)
        step_both(quick, theirs, seed)


def test_the_private_functions_are_used_where_there_are_some(monkeypatch):
    """The fallback above is one: else it would be all there is"""
    used = []
    fused, multiply = optim.FUSED_ADAM, optim.FOREACH_MUL
    monkeypatch.setattr(optim, "FUSED_ADAM", lambda *args, **kwargs: used.append("fused") or fused(*args, **kwargs))
    monkeypatch.setattr(optim, "FOREACH_MUL", lambda *args: used.append("multiply") or multiply(*args))
    optimizer, _ = two_optimizers(fused=True)
    quick = QuickAdam(optimizer)
    for seed in range(3):
        give_gradients(optimizer, seed)
        clip_gradients(quick.parameters, 1e-3)
        quick.step()
    assert used.count("fused") == 2 * 2  # two groups, but for the first step
    assert used.count("multiply") == 3


def test_parameters_of_several_types_in_a_group():
    optimizers = []
    for _ in range(2):
        parameters = [th.nn.Parameter(th.ones(3, dtype=dtype)) for dtype in (th.float32, th.float64)]
        optimizers.append(th.optim.Adam(parameters, lr=0.1, fused=True))
    quick = QuickAdam(optimizers[0])
    for _ in range(3):
        for optimizer, step in zip(optimizers, (quick.step, optimizers[1].step), strict=True):
            for parameter in parameters_of(optimizer):
                parameter.grad = th.full_like(parameter, 2.0)
            step()
    for mine, its in zip(*map(parameters_of, optimizers), strict=True):
        assert mine.equal(its) and mine.max() < 1


def test_quick_beside_what_is_frozen(monkeypatch):
    """As the key encoder of the masked prediction is, or a layer that a user has frozen."""
    mine, theirs = two_optimizers(fused=True)
    for optimizer in (mine, theirs):
        for frozen in (0, 3):
            parameters_of(optimizer)[frozen].requires_grad_(False)
    quick = QuickAdam(mine)
    step_both(quick, theirs, 0, without=(0, 3))
    monkeypatch.setattr(mine, "step", lambda: pytest.fail("PyTorch took the step"))
    for seed in range(1, 4):
        step_both(quick, theirs, seed, without=(0, 3))
        step_both(quick, theirs, seed, without=(0, 1, 3))
    assert not mine.state.get(parameters_of(mine)[0])


@pytest.mark.skipif(optim.FUSED_ADAM is None, reason="no quick steps")
def test_frozen_with_a_gradient():
    """PyTorch moves it, so do we."""
    mine, theirs = two_optimizers(fused=True)
    for optimizer in (mine, theirs):
        parameters_of(optimizer)[1].requires_grad_(False)
    quick = QuickAdam(mine)
    for seed in range(3):
        step_both(quick, theirs, seed)


def test_no_gradient_at_all_moves_nothing():
    ours, theirs = two_optimizers(fused=True)
    quick = QuickAdam(ours)
    for seed, without in enumerate([(), (0, 1, 2, 3), ()]):
        step_both(quick, theirs, seed, without)


def test_an_optimizer_that_is_not_fused_keeps_its_own_step():
    """Fused and not differ in the last bits: nothing may change the kind of step that was asked for."""
    optimizer, _ = two_optimizers()
    quick, called = QuickAdam(optimizer), []
    for seed in range(3):
        give_gradients(optimizer, seed)
        handle = optimizer.register_step_pre_hook(lambda *_: called.append(1))
        quick.step()
        handle.remove()
    assert len(called) == 3


# --- clipping ---


def parameters_with_gradients(scale: float) -> list[th.Tensor]:
    generator = th.Generator().manual_seed(0)
    parameters = [th.zeros(shape, requires_grad=True) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = scale * th.randn(parameter.shape, generator=generator)
    return [*parameters, th.zeros(2, requires_grad=True)]


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_torch(monkeypatch, scale, private):
    if not private:
        monkeypatch.setattr(optim, "FOREACH_MUL", None)
    ours, theirs = parameters_with_gradients(scale), parameters_with_gradients(scale)
    norm = clip_gradients(iter(ours), 0.5)
    assert th.allclose(norm, th.nn.utils.clip_grad_norm_(theirs, 0.5))
    for our, their in zip(ours[:-1], theirs[:-1], strict=True):
        assert th.allclose(our.grad, their.grad)
    assert ours[-1].grad is None


@pytest.mark.parametrize("private", [True, False])
def test_a_norm_is_that_of_all_gradients_together(monkeypatch, private):
    if not private:
        monkeypatch.setattr(optim, "FOREACH_MUL", None)
    first, second = (th.zeros(shape, requires_grad=True) for shape in ((1, 2), ()))
    first.grad, second.grad = th.tensor([[2.0, 3.0]]), th.tensor(6.0)
    assert clip_gradients([first, second], 7.0).item() == 7.0
    assert first.grad.tolist() == [[2.0, 3.0]]  # at most: nothing to scale
    assert clip_gradients([first, second], 3.5).item() == 7.0  # the norm before
    th.testing.assert_close(first.grad, th.tensor([[1.0, 1.5]]))
    th.testing.assert_close(second.grad, th.tensor(3.0))


def test_a_norm_of_nothing_is_zero():
    assert clip_gradients([th.zeros(2, requires_grad=True)], 0.5).tolist() == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_told(bad):
    parameters = parameters_with_gradients(1.0)
    parameters[1].grad[2] = bad
    assert not th.isfinite(clip_gradients(parameters, 0.5))
