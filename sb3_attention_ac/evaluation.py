"""What a policy says of the steps of a minibatch, of transitions or of windows."""

import torch as th

from sb3_attention_ac.policies import AttentionActorCriticPolicy
from sb3_attention_ac.type_aliases import ActionParameters, Obs, WindowOutput, WindowSamples, map_obs


def evaluate_transitions(
    policy: AttentionActorCriticPolicy,
    obs: Obs,
    actions: th.Tensor,
    masks: th.Tensor | None = None,
    offsets: th.Tensor | None = None,
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None, ActionParameters]:
    """
    The MLP actor and the MLP critic, as in SB3.

    :param policy: A policy with an MLP actor
    :param obs: Observations, [N, *obs_shape]
    :param actions: As the buffer stores them, [N, action_dim]
    :param masks: True where an action was allowed, [N, mask_dim]
    :param offsets: What was added to logits or means, [N, n_parameters]
    :return: V_mlp(s) [N], log probabilities of the actions [N], entropy of the action distributions [N] and their parameters
    """
    features = policy.extract_features(obs)
    pi_features, vf_features = (features, features) if policy.share_features_extractor else features
    values: th.Tensor = policy.value_net(policy.mlp_extractor.forward_critic(vf_features)).squeeze(-1)
    given = policy.action_parameters(policy.mlp_extractor.forward_actor(pi_features), None, masks, offsets)
    return values, *policy.distribution.log_prob_and_entropy(given, actions), given


def evaluate_actions(
    policy: AttentionActorCriticPolicy, encoded: WindowOutput, batch: WindowSamples
) -> tuple[th.Tensor, th.Tensor | None, ActionParameters]:
    """
    :param policy: A policy with a memory actor
    :param encoded: What its networks made of the last n steps of N windows
    :param batch: These windows
    :return: log probabilities of the actions taken and entropy of their distributions (None for squashed gSDE), [N, n] each,
        and the parameters of these N * n distributions
    """
    assert encoded.actor is not None
    steps = encoded.actor.latent, encoded.actor.mlp_latent, batch.action_masks, batch.logit_offsets
    latent_pi, latent_sde, masks, offsets = (None if x is None else x.flatten(0, 1) for x in steps)  # [N, n, .] -> [N * n, .]
    assert latent_pi is not None
    given = policy.action_parameters(latent_pi, latent_sde, masks, offsets)
    actions = batch.actions.flatten(0, 1)
    log_prob, entropy = policy.distribution.log_prob_and_entropy(given, actions)
    shape = batch.actions.shape[:2]
    return log_prob.reshape(shape), None if entropy is None else entropy.reshape(shape), given


def evaluate_action_advantages(policy: AttentionActorCriticPolicy, encoded: WindowOutput, batch: WindowSamples) -> th.Tensor:
    """
    :param policy: A policy with ``attention_q``
    :param encoded: What its networks made of the last n steps of N windows
    :param batch: These windows
    :return: A_att of the actions taken (Q_att), [N, n]
    """
    assert policy.attention_q is not None
    n = batch.actions.shape[1]
    with th.no_grad():
        if encoded.actor is not None:
            latent_pi = encoded.actor.latent.flatten(0, 1)  # [N, n, H] -> [N * n, H]
        else:
            last: Obs = map_obs(lambda obs: obs[:, -n:].flatten(0, 1), batch.windows.observations)
            latent_pi = policy.mlp_actor_latent(last)
        masks, offsets = (None if x is None else x.flatten(0, 1) for x in (batch.action_masks, batch.logit_offsets))
        given = policy.action_parameters(latent_pi, None, masks, offsets)
    latent, actions = encoded.stepped.latent.flatten(0, 1), batch.actions.flatten(0, 1)
    return policy.attention_q.advantages(latent, given, actions).reshape(batch.actions.shape[:2])
