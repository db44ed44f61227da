"""What can be wrong with the arguments, said at construction: what was given, what is allowed, what to do."""

import inspect
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Number, Real
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_attention_ac.buffers import TrajectoryRolloutBuffer

PREDICTION_TARGETS = ("return", "observation", "action", "reward")
AUX_LOSSES: dict[str, tuple[str, ...]] = {
    "contrastive": ("contrastive",),
    "value": ("return",),
    "prediction": PREDICTION_TARGETS,
    "live": ("live",),
}
ALL_TARGETS = (*PREDICTION_TARGETS, "contrastive", "live")
SUPPORTED_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)


def check_integers(given: dict[str, tuple[Any, int]]) -> None:
    """
    :param given: Name of each argument to its value and the least that is allowed
    :raises ValueError: If one is not an integer, or less
    """
    for name, (value, least) in given.items():
        if not isinstance(value, Integral):
            raise ValueError(f"{name}={value!r} was given, but it must be an integer.")
        if int(value) < least:
            raise ValueError(f"{name}={value} was given, but it must be at least {least}.")


def check_numbers(**given: Any) -> None:
    """:raises ValueError: If one is not a number"""
    for name, value in given.items():
        if not isinstance(value, Real):
            raise ValueError(f"{name}={value!r} was given, but it must be a number.")


def check_flags(**given: Any) -> None:
    """:raises ValueError: If one is neither True nor False"""
    for name, value in given.items():
        if value not in (True, False):  # 1 and 0 are equal to them
            raise ValueError(f"{name}={value!r} was given, but it must be True or False.")


def check_network(
    context_length: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    dim_feedforward: int | None,
    dropout: float,
    local_window: int,
    memory_actor: bool,
) -> None:
    """
    Check the network's shape, see :class:`~sb3_attention_ac.policies.AttentionActorCriticPolicy`.

    :raises ValueError: If it cannot be built
    """
    at_least = {"context_length": (context_length, 1), "n_layers": (n_layers, 0), "n_heads": (n_heads, 1)}
    at_least |= {"d_model": (d_model, 1), "local_window": (local_window, 1)}
    if dim_feedforward is not None:
        at_least["dim_feedforward"] = (dim_feedforward, 1)
    check_integers(at_least)
    check_numbers(dropout=dropout)
    if d_model % n_heads != 0:
        divisors = [n for n in range(1, d_model + 1) if d_model % n == 0]
        raise ValueError(
            f"d_model={d_model} is not divisible by n_heads={n_heads}: choose n_heads from {divisors}, or another d_model."
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout} was given, but it must be in [0, 1).")
    if memory_actor and n_layers == 0:
        raise ValueError("memory_actor=True needs attention, but n_layers=0 was given: use n_layers of at least 1.")


def check_attention_q(attention_q: bool, n_layers: int, use_sde: bool) -> None:
    """
    Check whether Q_att can be built, see :class:`~sb3_attention_ac.attention_q.AttentionQ`.

    :raises ValueError: If not
    """
    if attention_q and n_layers == 0:
        raise ValueError("attention_q=True needs attention, but n_layers=0 was given: use n_layers of at least 1.")
    if attention_q and use_sde:
        raise ValueError("attention_q=True was given with use_sde=True, which it cannot tilt: use one of them.")


def resolve_aux_loss(aux_loss: str | Sequence[str] | None) -> tuple[str, ...]:
    """
    :param aux_loss: None, a name of ``AUX_LOSSES``, or a list of targets
    :return: What is predicted
    :raises ValueError: If a name is unknown
    """
    allowed = f"allowed are 'auto', None, {', '.join(map(repr, AUX_LOSSES))}, or a list of {list(ALL_TARGETS)}"
    if aux_loss is None:
        return ()
    if isinstance(aux_loss, str) and aux_loss in AUX_LOSSES:
        return AUX_LOSSES[aux_loss]
    if isinstance(aux_loss, str) or not isinstance(aux_loss, Collection):
        raise ValueError(f"aux_loss={aux_loss!r} is unknown: {allowed}.")
    unknown = [target for target in aux_loss if target not in ALL_TARGETS]
    if unknown or len(aux_loss) == 0:
        raise ValueError(f"aux_loss={list(aux_loss)!r} has {'unknown targets' if unknown else 'no targets'}: {allowed}.")
    return tuple(dict.fromkeys(aux_loss))


def check_auxiliary(targets: tuple[str, ...], aux_coef: float, mask_ratio: float, temperature: float, n_layers: int) -> None:
    """
    Check the auxiliary loss, see :class:`~sb3_attention_ac.attention_ac.AttentionActorCritic`.

    :raises ValueError: If a value is out of range
    """
    check_numbers(aux_coef=aux_coef, mask_ratio=mask_ratio, temperature=temperature)
    if not aux_coef >= 0:
        raise ValueError(f"aux_coef={aux_coef} was given, but it must be at least 0.")
    if not 0.0 < mask_ratio < 1.0:
        raise ValueError(f"mask_ratio={mask_ratio} was given, but it must be between 0 and 1, both excluded.")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} was given, but it must be greater than 0.")
    if targets and n_layers == 0:
        raise ValueError("aux_loss needs attention, but n_layers=0 was given: use n_layers of at least 1, or aux_loss=None.")


def check_spaces(policy: Any, observation_space: spaces.Space[Any], has_extractor: bool) -> None:
    """
    :param policy: The policy's alias, or a class
    :param observation_space: The environment's
    :param has_extractor: Whether a features extractor is given: an alias stands for nothing but a default one
    :raises ValueError: If they do not go together
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    for space in parts:
        # Those of an old Gym are none of Gymnasium's; SB3 converts them later
        if isinstance(space, spaces.Space) and not isinstance(space, SUPPORTED_SPACES):
            raise ValueError(
                f"{type(space).__name__} observations are not supported; allowed are Box, Discrete, MultiDiscrete, "
                "MultiBinary and Dict: wrap the environment to return a Dict or a flat array "
                "(gymnasium.wrappers.FlattenObservation)."
            )
    if has_extractor:
        return
    is_dict = isinstance(observation_space, spaces.Dict)
    kind = f"the observation space is {observation_space}"
    if policy == "MultiInputPolicy" and not is_dict:
        raise ValueError(f"'MultiInputPolicy' is for Dict observations, but {kind}: use 'MlpPolicy' or 'CnnPolicy'.")
    if policy in ("MlpPolicy", "CnnPolicy") and is_dict:
        raise ValueError(f"{policy!r} is not for Dict observations, but {kind}: use 'MultiInputPolicy'.")
    if policy == "CnnPolicy" and not is_image_space(observation_space, normalized_image=True, check_channels=False):
        raise ValueError(f"'CnnPolicy' is for image observations, but {kind}: use 'MlpPolicy'.")


def check_policy_arguments(policy: Any, policy_kwargs: Any) -> None:
    """
    :param policy: The policy's alias, or a class
    :param policy_kwargs: Its keyword arguments, or None
    :raises ValueError: If the alias is one of RecurrentPPO's, or the arguments are not a dictionary
    """
    if policy in ("MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy"):
        raise ValueError(
            f"policy={policy!r} is one of RecurrentPPO's: use {policy.replace('Lstm', '')!r} with "
            "policy_kwargs=dict(memory_actor=True) for an actor with a memory."
        )
    if policy_kwargs is not None and not isinstance(policy_kwargs, Mapping):
        raise ValueError(
            f"policy_kwargs={policy_kwargs!r} was given, but it must be a dictionary, or None: "
            "policy_kwargs=dict(memory_actor=True), without quotes."
        )


def closest_names(name: str, known: Iterable[str]) -> str:
    """
    :param name: A name that is not known
    :param known: All names that are
    :return: Part of a sentence that offers the closest known names, or all of them where none is close
    """
    names = sorted(known)
    lower = {candidate.lower(): candidate for candidate in names}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=5, cutoff=0.6)]
    return f"the closest known names are: {', '.join(close)}" if close else f"known are: {', '.join(names[:40])}"


def default_arguments(made: type[Any]) -> dict[str, Any]:
    """
    :param made: A class
    :return: Its arguments that have a default, and these; with those of its parents as far as ``**kwargs`` go to them
    """
    defaults: dict[str, Any] = {}
    bases: Any = made.__mro__
    for base in bases:
        parameters = inspect.signature(base.__init__).parameters.values()
        own = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
        defaults = own | defaults
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return defaults


def explain_unexpected_argument(
    error: TypeError, policy_kwargs: Mapping[str, Any], policy_class: type[Any], algorithm: type[Any]
) -> None:
    """
    Python's word on an argument comes first: what a policy of one's own accepts is not in its signature.

    :param error: What the policy raised
    :param policy_kwargs: The keyword arguments that it was given
    :param policy_class: The policy
    :param algorithm: The algorithm, whose arguments do not belong there
    :raises ValueError: If ``error`` is about the name of one of them
    """
    said = re.search(r"(?:(\S+)\.__init__\(\) got an unexpected|got multiple values for) keyword argument '(\w+)'", str(error))
    makers = [None, *(base.__qualname__ for base in policy_class.__mro__)]
    if said is None or said[1] not in makers or said[2] not in policy_kwargs:
        return  # as where a features extractor does not know one of its own
    name, known, others = said[2], default_arguments(policy_class), inspect.signature(algorithm).parameters
    if name in others:
        raise ValueError(
            f"policy_kwargs has {name!r}, which is an argument of the algorithm: "
            f"pass it to the constructor instead, AAC(..., {name}=...)."
        ) from error
    if name not in known:
        offer = closest_names(name, known.keys() - others.keys() - {"aux_targets"})
        raise ValueError(f"policy_kwargs has {name!r}, which {policy_class.__name__} does not know; {offer}.") from error


def check_memory_options(policy_kwargs: Mapping[str, Any], policy_class: type[Any]) -> None:
    """
    Who switches memory off by name may leave the options of a memory actor: variants of one setting do.

    :param policy_kwargs: Keyword arguments of a policy that has no memory actor
    :param policy_class: The policy
    :raises ValueError: If there are options for a memory actor, and nothing says that there is none
    """
    defaults = default_arguments(policy_class)
    for name, without in (("share_encoder", False), ("local_window", 1)):
        given = policy_kwargs.get(name, without)
        if "memory_actor" not in policy_kwargs and given not in (without, defaults[name]):
            raise ValueError(
                f"{name}={given} was given, but it has no effect without a memory actor: "
                f"use policy_kwargs=dict(memory_actor=True, {name}={given}), or leave it out."
            )


def check_policy(policy_class: type[Any], base: type[Any]) -> None:
    """
    :param policy_class: The policy to use
    :param base: What it must be
    :raises ValueError: If it is not
    """
    if not issubclass(policy_class, base):
        raise ValueError(
            f"policy={policy_class.__name__} does not attend to trajectories: use 'MlpPolicy', 'CnnPolicy', "
            f"'MultiInputPolicy' or a subclass of {base.__name__}. Models of other algorithms cannot be loaded."
        )


def check_buffer_arguments(arguments: dict[str, Any], n_context: int) -> None:
    """
    :param arguments: ``rollout_buffer_kwargs``
    :param n_context: How many steps before a chunk the policy needs
    :raises ValueError: If the buffer would keep another number
    """
    if arguments.get("n_context", n_context) != n_context:
        raise ValueError(
            f"rollout_buffer_kwargs has n_context={arguments['n_context']}, but the policy reads {n_context} steps of "
            "context: leave it out, and set policy_kwargs=dict(context_length=...) instead."
        )


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
    if chunk_length is not None and batch_size % chunk_length != 0:
        warnings.warn(
            f"batch_size={batch_size} is not a multiple of the windows' {chunk_length} steps: "
            f"minibatches of {max(batch_size // chunk_length, 1) * chunk_length} transitions are used instead.",
            stacklevel=4,
        )
    elif batch_size > n_steps * n_envs:
        warnings.warn(
            f"batch_size={batch_size} is more than n_steps * n_envs = {n_steps * n_envs} "
            f"(n_steps={n_steps} and n_envs={n_envs}): each epoch has one minibatch with all of them.",
            stacklevel=4,
        )
    elif n_steps * n_envs % batch_size != 0:
        warnings.warn(
            f"batch_size={batch_size} is not a factor of n_steps * n_envs = {n_steps * n_envs} "
            f"(n_steps={n_steps} and n_envs={n_envs}): the last minibatch of each epoch will be smaller.",
            stacklevel=4,
        )


# What a policy is made of at first alone: parameters from a file replace it
FIRST_VALUES = ("log_std_init", "ortho_init", "optimizer_class", "optimizer_kwargs")


def stored_network(path: Any) -> dict[str, Any] | None:
    """
    :param path: A saved model: a path, or an open file, which is left where it was
    :return: The arguments that shape its network: ``policy_kwargs``, and ``aux_loss``, which adds heads. None if they cannot
        be read here, as those of classes that are not installed.
    """
    position = path.tell() if hasattr(path, "tell") else None
    data, _, _ = load_from_zip_file(path, device="cpu")
    if position is not None:
        path.seek(position)
    if data is None or "policy_kwargs" not in data:
        return None
    return {**data["policy_kwargs"], "aux_loss": data.get("aux_loss")}


def _comparable(value: Any) -> Any:
    """
    As a file keeps it: no tuples, and a class is the same by its name, whichever process or module it was defined in. Of other
    objects (arrays, functions) only the kind is compared: they need not be equal to what they are read back as.
    """
    if isinstance(value, (list, tuple)):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, Number)):
        return value
    return (value if isinstance(value, type) else type(value)).__qualname__


def check_same_network(stored: dict[str, Any] | None, given: dict[str, Any], policy_class: type[Any]) -> None:
    """
    :param stored: Network arguments in a file; None if they are not known, then nothing is checked
    :param given: Network arguments here
    :param policy_class: The policy, whose defaults those are that are not set
    :raises ValueError: If they make different networks; the message says which differ
    """
    if stored is None:
        return
    defaults, differences = default_arguments(policy_class), []
    for name in sorted({*stored, *given} - set(FIRST_VALUES)):
        old, new = (arguments.get(name, defaults.get(name)) for arguments in (stored, given))
        meanings = [resolve_aux_loss(value) if name == "aux_loss" else _comparable(value) for value in (old, new)]
        if meanings[0] != meanings[1]:
            differences.append(f"{name}: {old!r} in the file, {new!r} here")
    if differences:
        raise ValueError(f"The network arguments differ: {'; '.join(differences)}. Use those of the file.")
