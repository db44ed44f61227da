"""What a policy is made of: the options of its networks, and what differs between an MLP actor and a memory actor."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

from gymnasium import spaces
from torch import nn

from sb3_attention_ac.networks.history_network import HistoryNetwork, widened
from sb3_attention_ac.networks.preprocessing import AgeEncoder, PreviousStepEncoder
from sb3_attention_ac.networks.transformer import TrajectoryEncoder
from sb3_attention_ac.value_gate import ValueGate

SHORTEST_CHUNK = 32  # steps, of a memory actor: with shorter ones most of a minibatch's steps are context
# Beside an MLP actor attention learns from minibatches twice as large (neighbouring steps say much the same), with steps of
# Adam that are longer by the root of that (Malladi et al. 2022, https://arxiv.org/abs/2205.10287)
ATTENTION_MINIBATCH_FACTOR = 2
ATTENTION_LR_SCALE = ATTENTION_MINIBATCH_FACTOR**0.5


class Networks(NamedTuple):
    """
    :param actor: A memory actor's history network; None for an MLP actor
    :param critic: The critic's
    :param value_gate: How far an MLP actor's critic trusts its attention; None without attention and for a memory actor
    """

    actor: HistoryNetwork | None
    critic: HistoryNetwork
    value_gate: ValueGate | None


@dataclass(frozen=True)
class Architecture(ABC):
    """
    Options of the networks, see :class:`~sb3_attention_ac.policies.AttentionActorCriticPolicy`.
    """

    memory_actor: ClassVar[bool]  # whether the actor attends to the trajectory
    default_batch_size: ClassVar[int]  # transitions in a minibatch where none are asked for
    default_targets: ClassVar[tuple[str, ...]]  # what is predicted where nothing is asked for

    context_length: int
    d_model: int
    n_layers: int
    n_heads: int
    dim_feedforward: int | None
    dropout: float
    local_window: int
    share_encoder: bool
    attention_q: bool
    age_input: bool | str
    n_landmarks: int
    landmark_rule: str
    use_sde: bool

    @property
    @abstractmethod
    def longest_chunk(self) -> int:
        """How many consecutive steps follow the context in a window, at most"""

    @abstractmethod
    def build(self, mlp_extractor: nn.Module, features_dims: tuple[int, int], action_space: spaces.Space[Any]) -> Networks:
        """
        :param mlp_extractor: SB3's MLPs; a memory actor's are widened for stacked frames
        :param features_dims: Widths of the features that actor and critic read
        :param action_space: The action space
        :return: The networks around them
        """

    @abstractmethod
    def parameter_groups(self, parameters: Sequence[nn.Parameter], attention: Sequence[nn.Module | None]) -> Any:
        """
        :param parameters: All parameters of the policy
        :param attention: Modules that learn from windows
        :return: The same, as an optimizer takes them
        """

    @property
    def n_context(self) -> int:
        """How many steps before a chunk its windows need"""
        return self.context_length if self.n_layers > 0 else 0

    @property
    def hidden_dim(self) -> int:
        """Width of the encoder's hidden states; 0 without attention"""
        return self.d_model if self.n_layers > 0 else 0

    def arguments(self) -> dict[str, Any]:
        """:return: The policy's keyword arguments that give this"""
        return {name: value for name, value in asdict(self).items() if name != "use_sde"} | {"memory_actor": self.memory_actor}

    def previous_step_encoder(self, action_space: spaces.Space[Any], reads_rewards: bool) -> PreviousStepEncoder:
        """
        :param action_space: The action space
        :param reads_rewards: Whether previous rewards are known: not while acting, as ``predict`` is given none
        :return: Encodes what a step knows beside its observation. With gSDE neither action nor reward: its noise is held
            over several steps, so they reveal the next action's noise, and a value that knows it leaves no advantage
        """
        return PreviousStepEncoder(
            action_space, not self.use_sde, reads_rewards and not self.use_sde, AgeEncoder(self.age_input)
        )

    def encoder(self, latent_dim: int, previous_dim: int, dropout: float = 0.0) -> TrajectoryEncoder | None:
        """
        :param latent_dim: Width of the MLP's latent
        :param previous_dim: Width of encoded previous actions, rewards and ages
        :param dropout: Dropout probability
        :return: A trajectory encoder; None without attention
        """
        if self.n_layers == 0:
            return None
        feedforward = self.dim_feedforward or 2 * self.d_model
        base = 2.0 * self.context_length
        return TrajectoryEncoder(
            latent_dim, previous_dim, self.d_model, self.n_layers, self.n_heads, feedforward, dropout, base
        )


@dataclass(frozen=True)
class MlpActorArchitecture(Architecture):
    """SB3's MLP actor and MLP critic, which learn as in PPO; what attention adds to the values passes a gate."""

    memory_actor = False
    default_batch_size = 64  # PPO's
    default_targets = ()

    @property
    def longest_chunk(self) -> int:
        return 2 * self.context_length  # for a critic alone more, so that less is overlap

    def build(self, mlp_extractor: Any, features_dims: tuple[int, int], action_space: spaces.Space[Any]) -> Networks:
        previous_dim = self.previous_step_encoder(action_space, reads_rewards=not self.attention_q).dim
        encoder = self.encoder(mlp_extractor.latent_dim_vf, previous_dim, self.dropout)
        critic = HistoryNetwork(mlp_extractor.latent_dim_vf, 1, encoder, self.hidden_dim, detach_mlp=True)
        return Networks(None, critic, ValueGate() if self.n_layers > 0 else None)

    def parameter_groups(self, parameters: Sequence[nn.Parameter], attention: Sequence[nn.Module | None]) -> Any:
        learned_from_windows = {p for module in attention if module is not None for p in module.parameters()}
        groups: list[list[nn.Parameter]] = [[], []]
        for parameter in parameters:
            groups[parameter in learned_from_windows].append(parameter)
        return [{"params": groups[0]}, {"params": groups[1], "lr_scale": ATTENTION_LR_SCALE}]


@dataclass(frozen=True)
class MemoryActorArchitecture(Architecture):
    """An actor that attends to the trajectory; MLP and attention learn as one."""

    memory_actor = True
    default_batch_size = 256
    default_targets = ("next_step",)

    @property
    def longest_chunk(self) -> int:
        return max(self.context_length, SHORTEST_CHUNK)

    def build(self, mlp_extractor: Any, features_dims: tuple[int, int], action_space: spaces.Space[Any]) -> Networks:
        n, age_encoder = self.local_window, AgeEncoder(self.age_input)
        self._widen(mlp_extractor, features_dims, age_encoder.dim)
        latent_dims = mlp_extractor.latent_dim_pi, mlp_extractor.latent_dim_vf
        # The policy that learns has to be the one that acted: no dropout in its encoder
        encoder = self.encoder(latent_dims[0], self.previous_step_encoder(action_space, reads_rewards=False).dim)
        actor = HistoryNetwork(latent_dims[0], n, encoder, self.hidden_dim, age_encoder=age_encoder)
        own = None
        if not self.share_encoder:
            own = self.encoder(latent_dims[1], self.previous_step_encoder(action_space, reads_rewards=True).dim, self.dropout)
        return Networks(actor, HistoryNetwork(latent_dims[1], n, own, self.hidden_dim, age_encoder=age_encoder), None)

    def _widen(self, mlp_extractor: Any, features_dims: tuple[int, int], age_dim: int) -> None:
        """Let the MLPs read the frames before the current one, and the age of the episode."""
        n = self.local_window
        wide = {f"local_window={n}": "local_window=1"} if n > 1 else {}
        wide |= {f"age_input={self.age_input!r}": "age_input=False"} if self.age_input else {}
        if not wide:
            return
        for name, features_dim in zip(("policy_net", "value_net"), features_dims, strict=True):
            mlp = getattr(mlp_extractor, name, None)
            if not isinstance(mlp, nn.Sequential):
                raise ValueError(
                    f"{' and '.join(wide)} was given, which needs a wider first layer in mlp_extractor.{name}: that must be a "
                    f"torch.nn.Sequential, not {type(mlp).__name__}. Use {' and '.join(wide.values())}."
                )
            setattr(mlp_extractor, name, widened(mlp, features_dim, features_dim * n + age_dim))

    def parameter_groups(self, parameters: Sequence[nn.Parameter], attention: Sequence[nn.Module | None]) -> Any:
        return parameters


def resolve_keys(
    space: spaces.Space[Any], actor_keys: Sequence[str] | None, critic_keys: Sequence[str] | None, memory_actor: bool
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """
    :param space: The observation space
    :param actor_keys: Which entries the actor reads, None for all
    :param critic_keys: Which entries the critic reads, None for all
    :param memory_actor: Whether the actor attends to the trajectory
    :return: The entries of actor and critic, in the space's order; None for both where the space has none
    """
    if not isinstance(space, spaces.Dict):
        return None, None
    actor, critic = (
        tuple(key for key in space.spaces if given is None or key in given) for given in (actor_keys, critic_keys)
    )
    unseen = [key for key in actor if key not in critic]
    if memory_actor and unseen:
        warnings.warn(
            f"critic_keys={list(critic)} leaves out {unseen}, which the actor reads: a critic that does not see the history "
            "on which the actor acts is biased (Baisero & Amato 2022). Add them to critic_keys.",
            stacklevel=8,  # who made the algorithm, with a MultiInputPolicy
        )
    return actor, critic
