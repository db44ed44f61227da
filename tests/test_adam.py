"""The quick Adam is PyTorch's, to the last bit."""

import copy
import pickle

import pytest
import torch as th

from sb3_attention_ac.adam import QuickAdam

SHAPES = ((3, 4), (4,), (), (2, 2, 2))


def parameters(seed: int = 0) -> list[th.nn.Parameter]:
    generator = th.Generator().manual_seed(seed)
    return [th.nn.Parameter(th.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(optimizer: th.optim.Optimizer, seed: int, without: tuple[int, ...] = ()) -> None:
    generator = th.Generator().manual_seed(seed)
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = None if i in without else th.randn(parameter.shape, generator=generator)


def groups(of: list[th.nn.Parameter]) -> list[dict]:
    return [{"params": of[:2]}, {"params": of[2:], "lr": 0.1}]


def same(ours: th.optim.Optimizer, theirs: th.optim.Optimizer) -> bool:
    """Whether parameters and states are equal"""
    pairs = [
        zip(mine["params"], its["params"], strict=True)
        for mine, its in zip(ours.param_groups, theirs.param_groups, strict=True)
    ]
    return all(
        mine.equal(its) and all(value.equal(theirs.state[its][name]) for name, value in ours.state[mine].items())
        for pair in pairs
        for mine, its in pair
    )


@pytest.mark.parametrize(
    "options", [{}, {"fused": True}, {"fused": True, "weight_decay": 0.1}, {"fused": True, "amsgrad": True}]
)
def test_steps_are_those_of_torch(options):
    ours, theirs = (
        QuickAdam(groups(parameters()), eps=1e-5, **options),
        th.optim.Adam(groups(parameters()), eps=1e-5, **options),
    )
    # All, one group alone (MLPs and attention learn in turns), a part of a group, and all again
    for seed, without in enumerate([(), (), (2, 3), (2, 3), (0, 1), (1,), (), ()]):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.01 * (seed + 1)
            give_gradients(optimizer, seed, without)
            optimizer.step()
        assert same(ours, theirs)


def test_what_is_collected_is_used():
    optimizer = QuickAdam(groups(parameters()), fused=True)
    for seed in range(3):
        give_gradients(optimizer, seed)
        optimizer.step()
    assert len(optimizer._collected) == 2
    assert optimizer.state[optimizer.param_groups[0]["params"][1]]["step"].item() == 3


def copied(optimizer: QuickAdam) -> QuickAdam:
    return copy.deepcopy(optimizer)


def pickled(optimizer: QuickAdam) -> QuickAdam:
    return pickle.loads(pickle.dumps(optimizer))


def loaded(optimizer: QuickAdam) -> QuickAdam:
    """A state dict in an optimizer that has taken other steps"""
    other = QuickAdam(groups(parameters(1)), fused=True)
    for seed in range(10, 13):
        give_gradients(other, seed)
        other.step()
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group, its in zip(other.param_groups, optimizer.param_groups, strict=True):
        for mine, parameter in zip(group["params"], its["params"], strict=True):
            mine.data.copy_(parameter.data)
    return other


@pytest.mark.parametrize("again", [copied, pickled, loaded])
def test_goes_on_after(again):
    ours, theirs = QuickAdam(groups(parameters()), fused=True), th.optim.Adam(groups(parameters()), fused=True)
    for seed in range(6):
        if seed == 3:
            ours = again(ours)
        for optimizer in (ours, theirs):
            give_gradients(optimizer, seed)
            optimizer.step()
        assert same(ours, theirs)


def test_a_state_that_was_cleared_starts_anew():
    ours, theirs = QuickAdam(groups(parameters()), fused=True), th.optim.Adam(groups(parameters()), fused=True)
    for seed in range(6):
        for optimizer in (ours, theirs):
            if seed == 3:
                optimizer.state.clear()
            give_gradients(optimizer, seed)
            optimizer.step()
        assert same(ours, theirs)


def test_closure_is_called():
    optimizer = QuickAdam(groups(parameters()), fused=True)
    give_gradients(optimizer, 0)
    assert optimizer.step(lambda: 5.0) == 5.0


def test_gradients_that_a_scaler_has_scaled():
    ours, theirs = QuickAdam(groups(parameters()), fused=True), th.optim.Adam(groups(parameters()), fused=True)
    for seed in range(4):
        for optimizer in (ours, theirs):
            optimizer.grad_scale = th.tensor(8.0) if seed == 2 else None
            give_gradients(optimizer, seed)
            optimizer.step()
        assert same(ours, theirs)
