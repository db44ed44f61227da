"""Tensors that are made once and kept."""

import torch as th

from sb3_attention_ac.trajectory import kept


def test_kept_whatever_mode_they_are_made_in(monkeypatch):
    made = []

    @kept
    def ones(n: int) -> th.Tensor:
        made.append(n)
        return th.ones(n)

    with th.inference_mode():
        first = ones(3)
    assert ones(3) is first and made == [3]
    weight = th.zeros(3, requires_grad=True)
    (weight * first).sum().backward()  # not with a tensor of inference mode
    monkeypatch.setattr(th.compiler, "is_compiling", lambda: True)
    assert ones(3) is not first and made == [3, 3]
