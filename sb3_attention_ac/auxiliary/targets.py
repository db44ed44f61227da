"""What the self-supervised losses predict, by name."""

from collections.abc import Collection, Sequence
from typing import Any

PREDICTION_TARGETS = ("return", "observation", "action", "reward")
FROM_KEYS = frozenset({"observation", "contrastive"})  # made of features of the key encoder
AUX_LOSSES: dict[str, tuple[str, ...]] = {  # files depend on what a name stands for
    "contrastive": ("contrastive",),
    "value": ("return",),
    "prediction": ("return", "observation", "action", "reward"),
    "next_step": ("next_step",),
}
ALL_TARGETS = (*PREDICTION_TARGETS, "contrastive", "next_step")


def resolve_aux_loss(aux_loss: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """
    :param aux_loss: None, "auto", a name of ``AUX_LOSSES``, or a list of targets
    :return: What is predicted; None for "auto", which the policy resolves
    :raises ValueError: If a name is unknown
    """
    allowed = f"allowed are 'auto', None, {', '.join(map(repr, AUX_LOSSES))}, or a list of {list(ALL_TARGETS)}"
    if aux_loss is None:
        return ()
    if isinstance(aux_loss, str) and aux_loss == "auto":
        return None
    if isinstance(aux_loss, str):
        aux_loss = _current_name(aux_loss)
    if isinstance(aux_loss, str) and aux_loss in AUX_LOSSES:
        return AUX_LOSSES[aux_loss]
    if isinstance(aux_loss, str) or not isinstance(aux_loss, Collection):
        raise ValueError(f"aux_loss={aux_loss!r} is unknown: {allowed}.")
    aux_loss = [_current_name(target) for target in aux_loss]
    unknown = [target for target in aux_loss if target not in ALL_TARGETS]
    if unknown or len(aux_loss) == 0:
        problem = f"unknown targets {unknown}" if unknown else "no targets (None: no such loss)"
        raise ValueError(f"aux_loss={list(aux_loss)!r} has {problem}: {allowed}.")
    return tuple(dict.fromkeys(aux_loss))


def _current_name(target: Any) -> Any:
    return "next_step" if target == "live" else target  # as 0.1.0 called it
