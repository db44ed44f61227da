"""What passes between the modules: named tuples of tensors, with their shapes. N windows, W steps, n of them with losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

Obs = th.Tensor | dict[str, th.Tensor]


def map_obs(function: Callable[..., Any], *observations: Any) -> Any:
    """
    Apply a function to an observation, or to each entry of a Dict observation.

    :param function: Takes one array (or tensor) per observation given
    :param observations: Arrays (or tensors), or dictionaries of them, all of the same structure
    :return: The results, in the same structure
    """
    if isinstance(observations[0], dict):
        return {key: function(*(obs[key] for obs in observations)) for key in observations[0]}
    return function(*observations)


def n_observations(observations: Any) -> int:
    """:return: How many there are, in an array (or tensor) or a dictionary of them"""
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


class TrajectoryWindows(NamedTuple):
    """
    A batch of N windows of W consecutive steps of one environment each. A window may hold the end of one episode and the start
    of the next. What it holds at position t is known *before* action a_t is taken.

    :param observations: s_t, [N, W, *obs_shape]
    :param previous_actions: a_{t-1}, [N, W, action_dim], meaningless at the first step of an episode
    :param previous_rewards: r_{t-1}, [N, W], meaningless at the first step of an episode
    :param episode_starts: True at the first step of an episode, [N, W]
    :param episode_ids: A number that two steps share if and only if they belong to the same episode, [N, W]
    :param ages: Steps since the episode began, 0 at its first step, [N, W]
    :param noise_ids: With gSDE, a number that two steps share if and only if they were sampled with the same noise, [N, W]
    :param surprises: How unexpected each step was when it was taken, [N, W]; None where landmarks do not ask for it
    :param n_landmarks: How many of the W steps, the first ones, are landmarks: earlier steps, not next to each other
    """

    observations: Obs
    previous_actions: th.Tensor
    previous_rewards: th.Tensor
    episode_starts: th.Tensor
    episode_ids: th.Tensor
    ages: th.Tensor
    noise_ids: th.Tensor | None = None
    surprises: th.Tensor | None = None
    n_landmarks: int = 0

    @classmethod
    def of_single_steps(cls, observations: Obs, action_dim: int) -> "TrajectoryWindows":
        """
        Each row of a plain batch of observations as a trajectory of one step, without a past.

        :param observations: [N, *obs_shape]
        :param action_dim: Number of action dimensions in the buffer
        :return: Windows of length 1
        """
        observations = map_obs(lambda obs: obs.unsqueeze(1), observations)  # [N, 1, *obs_shape]
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        n, device = first.shape[0], first.device
        return cls(
            observations,
            th.zeros((n, 1, action_dim), device=device),
            th.zeros((n, 1), device=device),
            th.ones((n, 1), dtype=th.bool, device=device),
            th.zeros((n, 1), dtype=th.long, device=device),
            th.zeros((n, 1), device=device),
            th.zeros((n, 1), dtype=th.long, device=device),
        )

    def first(self, n: int) -> "TrajectoryWindows":
        """:return: The first n steps of each window"""
        return self.map(lambda part: part[:, :n])._replace(n_landmarks=self.n_landmarks)

    def last(self, n: int) -> "TrajectoryWindows":
        """:return: The last n steps of each window, without landmarks"""
        return self.map(lambda part: part[:, -n:])

    def after(self, landmarks: "TrajectoryWindows") -> "TrajectoryWindows":
        """:return: The same windows, with landmarks [N, K, ...] before their steps"""
        joined = landmarks.map(lambda *parts: th.cat(parts, dim=1), self)
        return joined._replace(n_landmarks=landmarks.episode_ids.shape[1])

    def map(self, function: Callable[..., th.Tensor], *others: "TrajectoryWindows") -> "TrajectoryWindows":
        """
        :param function: From one tensor of each of these windows to a new one
        :param others: More windows
        :return: Windows of the new ones, with ``n_landmarks=0``
        """
        parts: list[Any] = []
        for i, part in enumerate(self[:-1]):
            parts.append(None if part is None else map_obs(function, part, *(other[i] for other in others)))
        return TrajectoryWindows(*parts)

    def flat_observations(self) -> Obs:
        """:return: The observations as a plain batch, [N * W, *obs_shape]"""
        flat: Obs = map_obs(lambda obs: obs.flatten(0, 1), self.observations)
        return flat


class EncoderOutput(NamedTuple):
    """
    What a history network makes of steps.

    :param latent: What the MLP and attention say together, [..., latent_dim]
    :param mlp_latent: What the MLP says alone, [..., latent_dim]
    :param hidden: Output of the trajectory encoder, [..., d_model]; None without attention
    """

    latent: th.Tensor
    mlp_latent: th.Tensor
    hidden: th.Tensor | None

    def squeezed(self) -> "EncoderOutput":
        """:return: That of windows of one step, [N, 1, ...], without the axis of steps"""
        return EncoderOutput._make(None if part is None else part.squeeze(1) for part in self)


class ActionParameters(NamedTuple):
    """
    What an action distribution is made of.

    :param parameters: Logits, or means of a Box, [N, n_parameters]
    :param latent_sde: What gSDE makes its noise of, [N, latent_dim]; None for other distributions
    :param masks: True where an action is allowed, [N, mask_dim]; None where all are
    :param log_std: Logarithm of the standard deviations of a Box's actions; None for other spaces
    """

    parameters: th.Tensor
    latent_sde: th.Tensor | None = None
    masks: th.Tensor | None = None
    log_std: th.Tensor | None = None


class ActorOutput(NamedTuple):
    """
    One step of acting.

    :param actions: As sampled: not clipped, not rescaled, [N, *action_shape]
    :param log_prob: log pi(a_t | h_t) of the policy that acted, [N]
    :param logit_offsets: What Q_att added to logits or means, [N, n_parameters]; None for nothing
    :param surprise: How unexpected the observation was, [N]; None where landmarks do not ask for it
    """

    actions: th.Tensor
    log_prob: th.Tensor
    logit_offsets: th.Tensor | None = None
    surprise: th.Tensor | None = None


class CriticOutput(NamedTuple):
    """
    V(h_t) = V_mlp(s_t) + gate * residual(h_t).

    :param values: V(h_t), [N, n]
    :param mlp_values: V_mlp(s_t), [N, n]; a memory actor's critic has no such part, there it is V(h_t)
    :param residual: What attention adds at a gate of one, [N, n]; None with a memory actor or if attention was not asked
    """

    values: th.Tensor
    mlp_values: th.Tensor
    residual: th.Tensor | None


class WindowOutput(NamedTuple):
    """
    What the networks make of the last n steps of N windows.

    :param actor: A memory actor's, [N, n, ...]; None for an MLP actor
    :param critic: The critic's, [N, n, ...]; None where only the actor was asked
    :param features: Features of every step, as the stepped network has them (a memory actor's, else the critic's), [N, W, F]
    """

    actor: EncoderOutput | None
    critic: EncoderOutput | None
    features: th.Tensor

    @property
    def stepped(self) -> EncoderOutput:
        """Of the network that is stepped where acting needs a memory: a memory actor's, else the critic's"""
        output = self.actor or self.critic
        assert output is not None
        return output


class TransitionSamples(NamedTuple):
    """
    N shuffled transitions.

    :param observations: [N, *obs_shape]
    :param actions: [N, action_dim]
    :param old_values: V_mlp(s_t) before the update, [N]
    :param old_log_prob: [N]
    :param advantages: [N]
    :param returns: [N]
    :param action_masks: [N, mask_dim]; None without masks
    :param logit_offsets: What Q_att added to logits or means, [N, n_parameters]; None for nothing
    """

    observations: Obs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    action_masks: th.Tensor | None
    logit_offsets: th.Tensor | None


class WindowSamples(NamedTuple):
    """
    N windows with their context, and what the losses need of their last n steps.

    :param windows: Windows of n_landmarks + n_context + n steps
    :param actions: [N, n, action_dim]
    :param old_values: V(h_t) before the update, [N, n]
    :param old_log_prob: [N, n]
    :param advantages: [N, n]
    :param returns: [N, n]
    :param action_masks: [N, n, mask_dim]; None without masks
    :param logit_offsets: What Q_att added to logits or means, [N, n, n_parameters]; None for nothing
    """

    windows: TrajectoryWindows
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    action_masks: th.Tensor | None
    logit_offsets: th.Tensor | None


class AuxiliaryBatch(NamedTuple):
    """
    N windows of W steps to mask steps of.

    :param windows: The windows
    :param actions: a_t, [N, W, action_dim]
    :param rewards: r_t, [N, W]
    :param returns: Return-to-go from t, the TD(lambda) return of the rollout it comes from, [N, W]
    :param eligible: Whether step t may be masked, [N, W]
    """

    windows: TrajectoryWindows
    actions: th.Tensor
    rewards: th.Tensor
    returns: th.Tensor
    eligible: th.Tensor


class AuxiliaryLoss(NamedTuple):
    """
    :param loss: The loss of one target
    :param baseline: The same loss for a guess that has learned nothing
    """

    loss: th.Tensor
    baseline: th.Tensor


def split_batch(batch: Any, size: int) -> list[Any]:
    """
    Cut a batch into minibatches, without copying.

    :param batch: A tensor, or a dictionary or NamedTuple of batches, all with the same first axis; parts may be None
    :param size: Length of a minibatch; the last one may be shorter
    :return: Minibatches of the same structure
    """
    if isinstance(batch, th.Tensor):
        return list(batch.split(int(size)))  # an integer of NumPy is none of PyTorch's
    if isinstance(batch, dict):
        parts = zip(*(split_batch(value, size) for value in batch.values()), strict=True)
        return [dict(zip(batch, part, strict=True)) for part in parts]
    names = [name for name, value in batch._asdict().items() if value is not None and not isinstance(value, int)]
    parts = zip(*(split_batch(getattr(batch, name), size) for name in names), strict=True)
    return [batch._replace(**dict(zip(names, part, strict=True))) for part in parts]
