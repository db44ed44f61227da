"""What can be wrong with rollouts: the buffer, its size and its minibatches."""

import warnings
from typing import Any

from stable_baselines3.common.buffers import RolloutBuffer

from sb3_attention_ac.architecture import Architecture
from sb3_attention_ac.buffers import TrajectoryRolloutBuffer
from sb3_attention_ac.minibatch_sizes import whole_chunks
from sb3_attention_ac.validation import check_integers

# Where buffer and policy differ, training sees what acting does not
STEPS_SEEN = ("n_context", "n_landmarks", "landmark_rule")


def check_buffer_arguments(arguments: dict[str, Any], architecture: Architecture) -> None:
    """
    :param arguments: ``rollout_buffer_kwargs``
    :param architecture: The network's shape
    :raises ValueError: If the buffer would keep other steps: training would see some that acting does not; or if
        ``chunk_length`` is no length
    """
    check_integers({"chunk_length": (arguments.get("chunk_length", 1), 1)})
    if "held_noise" in arguments:
        raise ValueError(
            f"rollout_buffer_kwargs has held_noise={arguments['held_noise']!r}, which follows from use_sde: leave it out."
        )
    for name in STEPS_SEEN:
        needed = getattr(architecture, name)
        if arguments.get(name, needed) != needed:
            argument = "context_length" if name == "n_context" else name
            raise ValueError(
                f"rollout_buffer_kwargs has {name}={arguments[name]!r}, but the policy needs {needed!r}: leave it out, and "
                f"set policy_kwargs=dict({argument}=...), which the buffer follows."
            )


def warn_about_unused_buffer_methods(buffer_class: type[Any]) -> None:
    """Say which method of SB3's buffers a subclass overrides in vain."""
    for name in ("get", "_get_samples"):
        if getattr(buffer_class, name) is not getattr(TrajectoryRolloutBuffer, name):
            warnings.warn(
                f"{buffer_class.__name__} overrides {name}(), which is not called in training: minibatches come from "
                "get_transitions() and get_windows(). Override transition_samples() or window_samples() instead.",
                stacklevel=4,
            )
            return


def check_buffer(buffer: RolloutBuffer, n_steps: int, n_envs: int, architecture: Architecture) -> None:
    """:raises ValueError: If the rollout buffer, which may have been replaced, is not for such rollouts or this network"""
    if not isinstance(buffer, TrajectoryRolloutBuffer):
        raise ValueError(
            f"rollout_buffer is a {type(buffer).__name__}, but attention needs a TrajectoryRolloutBuffer. For rollouts of "
            "another length, set n_steps and rollout_buffer.buffer_size, or use load(path, env, n_steps=...)."
        )
    if (buffer.buffer_size, buffer.n_envs) != (n_steps, n_envs):
        raise ValueError(
            f"The rollout buffer is for {buffer.buffer_size} steps of {buffer.n_envs} environments, but {n_steps} steps of "
            f"{n_envs} are to be collected: set rollout_buffer.buffer_size and rollout_buffer.n_envs too, or use "
            "load(path, env, n_steps=...)."
        )
    for name in STEPS_SEEN:
        found, needed = getattr(buffer, name), getattr(architecture, name)
        if found != needed:
            raise ValueError(f"The rollout buffer has {name}={found!r}, but the policy needs {needed!r}.")


def check_rollout(
    batch_size: int, n_steps: int, n_envs: int | None, normalize_advantage: bool, buffer_class: type[RolloutBuffer] | None
) -> None:
    """
    :param batch_size: Minibatch size
    :param n_steps: Steps per environment in a rollout
    :param n_envs: Number of environments, None if not known yet
    :param normalize_advantage: Whether advantages are normalized
    :param buffer_class: The rollout buffer's class, None for ours
    :raises ValueError: If they do not go together
    """
    check_integers({"batch_size": (batch_size, 1)})
    if batch_size < 2 and normalize_advantage:
        raise ValueError(
            f"batch_size={batch_size} was given, but it must be at least 2 to normalize advantages, or at least 1 with "
            "normalize_advantage=False (see https://github.com/DLR-RM/stable-baselines3/issues/440)."
        )
    if normalize_advantage and n_envs is not None and n_steps * n_envs < 2:
        raise ValueError(
            f"n_steps={n_steps} and n_envs={n_envs} were given, but their product must be at least 2 to normalize advantages."
        )
    if buffer_class is not None and not issubclass(buffer_class, TrajectoryRolloutBuffer):
        raise ValueError(
            f"rollout_buffer_class={buffer_class.__name__} does not keep trajectories: "
            "use TrajectoryRolloutBuffer, a subclass of it, or None."
        )


def warn_about_batch_size(batch_size: int, n_steps: int, n_envs: int, chunk_length: int | None) -> None:
    """
    Say once what the minibatches will be when they cannot all have ``batch_size`` transitions.

    :param batch_size: Minibatch size
    :param n_steps: Steps per environment in a rollout
    :param n_envs: Number of environments
    :param chunk_length: Steps that are kept together (memory actor), None if transitions are shuffled one by one
    """
    n_transitions, length = n_steps * n_envs, chunk_length or 1
    used = max(batch_size // length, 1) * length
    rollout = f"n_steps * n_envs = {n_transitions} (n_steps={n_steps} and n_envs={n_envs})"
    if batch_size > n_transitions:
        message = f"batch_size={batch_size} is more than {rollout}: each epoch has one minibatch with all of them."
    elif used != batch_size:
        message = (
            f"batch_size={batch_size} is not a multiple of {length}: a memory actor's minibatches are whole chunks of "
            f"{length} steps, so {used} transitions are used instead."
        )
    elif n_transitions % batch_size != 0:
        message = f"batch_size={batch_size} is not a factor of {rollout}: the last minibatch of each epoch will be smaller."
    else:
        return
    fitting = whole_chunks(batch_size, n_steps, n_envs, length)
    advice = f" Without this warning: batch_size={fitting}." if n_transitions % fitting == 0 and fitting != batch_size else ""
    warnings.warn(message + advice, stacklevel=5)
