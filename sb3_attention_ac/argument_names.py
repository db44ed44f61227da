"""Names of arguments: which exist, and which was meant by one that does not."""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ParamSpec

from stable_baselines3.common.policies import ActorCriticPolicy

P = ParamSpec("P")

SB3_ARGUMENTS = list(inspect.signature(ActorCriticPolicy.__init__).parameters)[4:]  # after the learning rate's schedule

LSTM_ARGUMENTS = {  # arguments of RecurrentPPO's policy, and what does the same here
    "lstm_hidden_size": "d_model (the width) and context_length (how far back it sees)",
    "n_lstm_layers": "n_layers",
    "shared_lstm": "share_encoder",
    "enable_critic_lstm": "share_encoder",
}

MOST_NAMES = 40  # in a message


def closest_names(name: str, known: Iterable[str]) -> str:
    """
    :param name: A name that is not known
    :param known: All names that are
    :return: Part of a sentence that offers the closest known names, or the first of all where none is close
    """
    names = sorted(known)
    lower = {candidate.lower(): candidate for candidate in names}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=5, cutoff=0.6)]
    if close:
        return f"the closest known names are: {', '.join(close)}"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"known names: {', '.join(names[:MOST_NAMES])}{more}"


def default_arguments(made: type[Any]) -> dict[str, Any]:
    """
    :param made: A class
    :return: Default by name of its arguments that have one, those of its parents included as far as it takes ``**kwargs``
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
    Called after Python's own error, as a user-defined policy may accept arguments that its signature does not show.

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
    name, known, others = said[2], default_arguments(policy_class), inspect.signature(algorithm.__init__).parameters
    if name in others:
        raise ValueError(
            f"policy_kwargs has {name!r}, which is an argument of the algorithm: "
            f"pass it to the constructor instead, AAC(..., {name}=...)."
        ) from error
    if name not in known:
        offer = closest_names(name, known.keys() - others.keys() - {"aux_targets"})
        if name in LSTM_ARGUMENTS:
            offer = f"it is RecurrentPPO's: use memory_actor=True, and {LSTM_ARGUMENTS[name]}"
        raise ValueError(f"policy_kwargs has {name!r}, which {policy_class.__name__} does not know; {offer}.") from error


def check_constructor_names(given: Mapping[str, Any], constructor: Any, policy_class: type[Any]) -> None:
    """
    :param given: Keyword arguments of the algorithm's constructor
    :param constructor: The constructor
    :param policy_class: The policy, whose arguments do not belong there
    :raises TypeError: If it does not know one of them
    """
    known = [name for name in inspect.signature(constructor).parameters if name != "self"]
    for name, value in given.items():
        if name in known:
            continue
        if name in default_arguments(policy_class):
            raise TypeError(f"{name} is an argument of the policy: pass it as policy_kwargs=dict({name}={value!r}).")
        offer = closest_names(name, [name for name in known if not name.startswith("_")])
        raise TypeError(f"The algorithm does not know the argument {name!r}; {offer}.")


def with_checked_names(policy_class: type[Any]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """
    :param policy_class: The policy, whose arguments do not belong to the algorithm
    :return: A decorator of the algorithm's constructor, which then says in words which argument it does not know
    """

    def decorate(constructor: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(constructor)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            check_constructor_names(kwargs, constructor, policy_class)
            constructor(*args, **kwargs)

        return checked

    return decorate


def with_positional(kwargs: dict[str, Any], args: Sequence[Any]) -> dict[str, Any]:
    """
    :param kwargs: Keyword arguments of the policy
    :param args: Arguments without a name, in the order of :class:`stable_baselines3.common.policies.ActorCriticPolicy`
    :return: All of them by name
    :raises TypeError: If there are too many, or one is given twice
    """
    if len(args) > len(SB3_ARGUMENTS):
        raise TypeError(
            f"The policy takes at most {3 + len(SB3_ARGUMENTS)} positional arguments, SB3's, but {3 + len(args)} were given: "
            "give the others by name."
        )
    named = dict(zip(SB3_ARGUMENTS, args, strict=False))
    # A policy for images has a default of its own for the features extractor
    for name in named.keys() & kwargs.keys() - {"features_extractor_class"}:
        raise TypeError(f"The policy was given {name} twice, by position and by name.")
    return kwargs | named
