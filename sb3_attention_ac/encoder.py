"""
The transformer encoder over trajectories: pre-norm blocks over ``scaled_dot_product_attention`` with rotary positions.

Written in one page after Vaswani et al. 2017 (https://arxiv.org/abs/1706.03762), with pre-norm (Xiong et al. 2020,
https://arxiv.org/abs/2002.04745) and rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864), so that only the
distance between two steps matters.
"""

from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_attention_ac.trajectory import attention_mask, kept


@kept
def rotary_turns(n_positions: int, n_heads: int, head_dim: int, base: float, device: th.device) -> th.Tensor:
    """
    Rotary positions turn pairs of neighbouring coordinates of queries and keys by an angle proportional to their position.
    A pair is taken as a complex number, so that turning all of them is one multiplication; values are multiplied by one.

    :param n_positions: T
    :param n_heads: Number of attention heads
    :param head_dim: Width of one head
    :param base: The slowest pair turns once in about ``2 * pi * base`` steps. A base far beyond the steps that are attended to
        leaves most pairs all but still, with little left to tell one step from the next
    :param device: Device of the result
    :return: Complex numbers of length one, [T, 3, n_heads, head_dim // 2]
    """
    pairs = head_dim // 2
    frequencies = base ** (-th.arange(pairs, device=device).float() / max(pairs, 1))
    turned = th.tensor([1, 1, 0], device=device)  # queries, keys, values
    angles = th.arange(n_positions, device=device)[:, None, None, None] * turned[:, None, None] * frequencies
    return th.polar(th.ones_like(angles), angles).repeat(1, 1, n_heads, 1)  # as a whole: a broadcast multiplies slowly


def rotate(x: th.Tensor, turns: th.Tensor) -> th.Tensor:
    """
    :param x: Queries, keys and values, [N, T, 3, n_heads, head_dim]; an odd last coordinate is left alone
    :param turns: See :func:`rotary_turns`, [T, 3, n_heads, head_dim // 2]
    :return: Same shape
    """
    x, width = x.float() if x.element_size() < 4 else x, 2 * turns.shape[-1]  # bfloat16 has no complex numbers
    if width < x.shape[-1]:
        return th.cat([rotate(x[..., :width], turns), x[..., width:]], dim=-1)
    return th.view_as_real(th.view_as_complex(x.contiguous().unflatten(-1, (-1, 2))) * turns).flatten(-2)


class Block(nn.Module):
    """
    One pre-norm transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    :param d_model: Width of a token
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the hidden layer of the feed-forward part
    :param dropout: Dropout probability after attention and feed-forward
    """

    def __init__(self, d_model: int, n_heads: int, dim_feedforward: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention = nn.LayerNorm(d_model)
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.project = nn.Linear(d_model, d_model)
        self.norm_feedforward = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, dim_feedforward)
        self.contract = nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def queries_keys_values(self, x: th.Tensor, turns: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        What these tokens ask, and what other tokens can read of them.

        :param x: [N, T, d_model]
        :param turns: Of the T positions, see :func:`rotary_turns`
        :return: queries, keys and values, [N, n_heads, T, head_dim] each
        """
        projected = self.query_key_value(self.norm_attention(x)).reshape(*x.shape[:2], 3, self.n_heads, -1)
        queries, keys, values = rotate(projected, turns).transpose(1, 3).unbind(2)
        return queries, keys, values

    def forward(self, x: th.Tensor, queries: th.Tensor, keys: th.Tensor, values: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """
        :param x: The tokens that ask, [N, n_queries, d_model]
        :param queries: Their queries, [N, n_heads, n_queries, head_dim]
        :param keys: [N, n_heads, W, head_dim]
        :param values: [N, n_heads, W, head_dim]
        :param mask: True where attention is allowed, [N, 1, n_queries, W]
        :return: [N, n_queries, d_model]
        """
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        x = x + self.dropout(self.project(attended.transpose(1, 2).flatten(2)))
        out: th.Tensor = x + self.dropout(self.contract(F.relu(self.expand(self.norm_feedforward(x)))))
        return out


class TrajectoryEncoder(nn.Module):
    """
    A transformer encoder over the steps of a trajectory.

    :param latent_dim: Width of the latent of one step, as it comes out of an MLP
    :param event_dim: Width of the encoding of what happened between two steps (previous action, previous reward), may be 0
    :param d_model: Width of a token
    :param n_layers: Number of blocks, at least 1
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the hidden layer of the feed-forward part
    :param dropout: Dropout probability
    :param reach: About how many steps back it attends: the base of the rotary positions
    """

    def __init__(
        self,
        latent_dim: int,
        event_dim: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        dim_feedforward: int,
        dropout: float,
        reach: int,
    ):
        super().__init__()
        self.read = nn.Linear(latent_dim, d_model)
        self.event = nn.Linear(event_dim, d_model, bias=False) if event_dim > 0 else None
        self.reach = reach
        self.blocks: Any = nn.ModuleList(Block(d_model, n_heads, dim_feedforward, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)

    def turns(self, n_positions: int, device: th.device) -> th.Tensor:
        """:return: See :func:`rotary_turns`"""
        n_heads, d_model = self.blocks[0].n_heads, self.norm.normalized_shape[0]
        return rotary_turns(n_positions, n_heads, d_model // n_heads, self.reach, device)

    def tokens(self, latent: th.Tensor, events: th.Tensor) -> th.Tensor:
        """
        :param latent: [N, T, latent_dim]
        :param events: [N, T, event_dim]
        :return: [N, T, d_model]
        """
        tokens: th.Tensor = self.read(latent)
        return tokens if self.event is None else tokens + self.event(events)

    def forward(self, x: th.Tensor, episode_ids: th.Tensor, n_queries: int, causal: bool = True) -> th.Tensor:
        """
        One pass over whole windows.

        :param x: Tokens, [N, W, d_model]
        :param episode_ids: [N, W]
        :param n_queries: How many of the last steps to return; the steps before them are context
        :param causal: False to attend to the whole episode (for the masked prediction only)
        :return: What the last steps have gathered, [N, n_queries, d_model]
        """
        width, depth = x.shape[1], len(self.blocks)
        turns = self.turns(width, x.device)
        mask = attention_mask(episode_ids, n_queries if depth == 1 else width, causal)
        for i, block in enumerate(self.blocks):
            queries, keys, values = block.queries_keys_values(x, turns)
            if i == depth - 1:
                # Context steps are only read by the last block: their own pass through it is not needed
                x, queries, mask = x[:, -n_queries:], queries[:, :, -n_queries:], mask[:, :, -n_queries:]
            x = block(x, queries, keys, values, mask)
        gathered: th.Tensor = self.norm(x)
        return gathered

    def all_keys_values(self, x: th.Tensor, episode_ids: th.Tensor) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        What later steps can read of these tokens, for each block.

        :param x: Tokens, [N, W, d_model]
        :param episode_ids: [N, W]
        :return: Keys and values of each block, [N, n_heads, W, head_dim]
        """
        turns = self.turns(x.shape[1], x.device)
        mask = attention_mask(episode_ids, x.shape[1])
        readable = []
        for i, block in enumerate(self.blocks):
            queries, keys, values = block.queries_keys_values(x, turns)
            readable.append((keys, values))
            if i < len(self.blocks) - 1:
                x = block(x, queries, keys, values, mask)
        return readable
