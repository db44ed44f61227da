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

from sb3_attention_ac.trajectory import attention_mask


class Rotary(nn.Module):
    """
    Rotary positions: rotates pairs of query and key coordinates by an angle proportional to their position.

    :param head_dim: Width of one head; an odd last coordinate is left alone
    :param base: The slowest pair turns once in about ``2 * pi * base`` steps
    """

    frequencies: th.Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        pairs = head_dim // 2
        self.register_buffer("frequencies", base ** (-th.arange(pairs).float() / max(pairs, 1)), persistent=False)

    def forward(self, positions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param positions: [T] or [N, 1, T]
        :return: cosine and sine of the angles, [..., T, head_dim // 2]
        """
        angles = positions.unsqueeze(-1) * self.frequencies
        return angles.cos(), angles.sin()

    @staticmethod
    def rotate(x: th.Tensor, angles: tuple[th.Tensor, th.Tensor]) -> th.Tensor:
        """
        :param x: [N, n_heads, T, head_dim]
        :param angles: Cosine and sine for each position
        :return: Same shape
        """
        cos, sin = angles
        pairs = cos.shape[-1]
        a, b, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
        return th.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


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
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.project = nn.Linear(d_model, d_model)
        self.norm_feedforward = nn.LayerNorm(d_model)
        self.expand = nn.Linear(d_model, dim_feedforward)
        self.contract = nn.Linear(dim_feedforward, d_model)
        self.dropout = nn.Dropout(dropout)

    def split_heads(self, x: th.Tensor) -> th.Tensor:
        """[N, T, d_model] -> [N, n_heads, T, head_dim]"""
        return x.reshape(*x.shape[:2], self.n_heads, -1).transpose(1, 2)

    def keys_values(self, x: th.Tensor, angles: tuple[th.Tensor, th.Tensor]) -> tuple[th.Tensor, th.Tensor]:
        """
        What other tokens can read of these tokens.

        :param x: [N, T, d_model]
        :param angles: Rotary angles of the T positions
        :return: keys and values, [N, n_heads, T, head_dim] each
        """
        key, value = self.key_value(self.norm_attention(x)).chunk(2, dim=-1)
        return Rotary.rotate(self.split_heads(key), angles), self.split_heads(value)

    def forward(
        self,
        x: th.Tensor,
        angles: tuple[th.Tensor, th.Tensor],
        keys: th.Tensor,
        values: th.Tensor,
        mask: th.Tensor,
    ) -> th.Tensor:
        """
        :param x: The tokens that ask, [N, n_queries, d_model]
        :param angles: Their rotary angles
        :param keys: [N, n_heads, W, head_dim]
        :param values: [N, n_heads, W, head_dim]
        :param mask: True where attention is allowed, [N, 1, n_queries, W]
        :return: [N, n_queries, d_model]
        """
        query = Rotary.rotate(self.split_heads(self.query(self.norm_attention(x))), angles)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        x = x + self.dropout(self.project(attended.transpose(1, 2).flatten(2)))
        out: th.Tensor = x + self.dropout(self.contract(F.gelu(self.expand(self.norm_feedforward(x)))))
        return out


class TrajectoryEncoder(nn.Module):
    """
    A transformer encoder over the steps of a trajectory.

    :param latent_dim: Width of the latent of one step, as it comes out of an MLP
    :param event_dim: Width of the encoding of what happened between two steps (previous action, previous reward)
    :param d_model: Width of a token
    :param n_layers: Number of blocks, at least 1
    :param n_heads: Number of attention heads
    :param dim_feedforward: Width of the hidden layer of the feed-forward part
    :param dropout: Dropout probability
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
    ):
        super().__init__()
        self.read = nn.Linear(latent_dim, d_model)
        self.event = nn.Linear(event_dim, d_model, bias=False)
        self.rotary = Rotary(d_model // n_heads)
        self.blocks: Any = nn.ModuleList(Block(d_model, n_heads, dim_feedforward, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)

    def tokens(self, latent: th.Tensor, events: th.Tensor) -> th.Tensor:
        """
        :param latent: [N, T, latent_dim]
        :param events: [N, T, event_dim]
        :return: [N, T, d_model]
        """
        tokens: th.Tensor = self.read(latent) + self.event(events)
        return tokens

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
        angles = self.rotary(th.arange(width, device=x.device))
        mask = attention_mask(episode_ids, n_queries if depth == 1 else width, causal)
        for i, block in enumerate(self.blocks):
            keys, values = block.keys_values(x, angles)
            if i == depth - 1:
                # Context steps are only read by the last block: their own pass through it is not needed
                x, mask = x[:, -n_queries:], mask[:, :, -n_queries:]
                angles = angles[0][-n_queries:], angles[1][-n_queries:]
            x = block(x, angles, keys, values, mask)
        gathered: th.Tensor = self.norm(x)
        return gathered

    def all_keys_values(self, x: th.Tensor, episode_ids: th.Tensor) -> list[tuple[th.Tensor, th.Tensor]]:
        """
        What later steps can read of these tokens, for each block.

        :param x: Tokens, [N, W, d_model]
        :param episode_ids: [N, W]
        :return: Keys and values of each block, [N, n_heads, W, head_dim]
        """
        angles = self.rotary(th.arange(x.shape[1], device=x.device))
        mask = attention_mask(episode_ids, x.shape[1])
        readable = []
        for i, block in enumerate(self.blocks):
            readable.append(block.keys_values(x, angles))
            if i < len(self.blocks) - 1:
                x = block(x, angles, *readable[-1], mask)
        return readable
