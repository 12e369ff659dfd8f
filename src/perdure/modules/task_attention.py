"""A task's own classifier of tokens: its class token attends to them once, and a small MLP follows.

Source: Touvron et al., "Going Deeper with Image Transformers" (CaiT), ICCV 2021, section 3, in the form of Wang et al.,
"Isolation and Impartial Aggregation" (ESN), AAAI 2023.

The query is the same for every image. So the keys' layer can be folded into it, and the values' layer applied to the
weighted mean of the tokens: no product with every token is left that is larger than (heads, d).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perdure.modules.heads import float64
from perdure.modules.stack import GrowingStack

EPS = 1e-5  # of both layer norms


def normalised(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Tokens of mean 0 and variance 1: what all tasks' first layer norms have in common.

    Args:
        tokens: of any scale.
    """
    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)


class TaskAttention(nn.Module):
    """e' = e + proj(attention of LN1 e to LN1 [e; x]), then e' + MLP(LN2 e'); e is the task's token.

    Args:
        token: initial value of e; copied.
        heads: of the attention; they divide d.
        rng: where new weights come from: truncated N(0, 0.02²), biases 0.
    """

    def __init__(self, token: Float[Tensor, " d"], heads: int, rng: torch.Generator) -> None:
        super().__init__()
        d, self.heads = len(token), heads
        self.token = nn.Parameter(token.detach().cpu().clone())
        self.norm1, self.norm2 = nn.LayerNorm(d, EPS), nn.LayerNorm(d, EPS)
        self.query, self.key, self.value, self.proj = (_linear(d, d, rng) for _ in range(4))
        self.fc1, self.fc2 = _linear(d, d // 2, rng), _linear(d // 2, d, rng)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The token behind the block.

        Args:
            x: :func:`normalised` tokens of the images.
        """
        h, norm, e = self.heads, self.norm1, self.token
        own = normalised(e[None, None])[0]  # (1, d)
        query = self.query(own * norm.weight + norm.bias).view(h, 1, -1)
        keys = query @ self.key.weight.unflatten(0, (h, -1))  # (h, 1, d): of the layer norm's output
        level = keys @ norm.bias + (query @ self.key.bias.view(h, -1, 1))[..., 0]  # alike for all tokens
        keys, scale = (keys * norm.weight)[:, 0], query.shape[-1] ** -0.5
        scores = torch.cat([(own @ keys.T).expand(len(x), -1, -1), x @ keys.T], 1)  # (b, 1 + n, h)
        attention = ((scores + level[:, 0]) * scale).softmax(1)
        mean = attention[:, :1].mT * own + attention[:, 1:].mT @ x  # (b, h, d)
        mean = mean * norm.weight + norm.bias
        values = torch.einsum("bhd,hkd->bhk", mean, self.value.weight.unflatten(0, (h, -1))).flatten(1)
        e = e + self.proj(values + self.value.bias)
        out: Tensor = e + self.fc2(F.gelu(self.fc1(self.norm2(e))))
        return out


class TaskAttentions(GrowingStack):
    """One block per task. Only the newest is ever trained.

    Args:
        token: initial value of every task's token.
        heads: of the attention.
    """

    def __init__(self, token: Float[Tensor, " d"], heads: int) -> None:
        super().__init__()
        self.register_buffer("start", token.detach().clone(), persistent=False)
        self.start: Tensor
        self.heads = heads

    @torch.no_grad()
    def exact(self, tokens: Float[Tensor, "b n d"]) -> list[Float[Tensor, "b d"]]:
        """What each block gives, in float64: rounded to float32, it does not depend on the other images.

        Args:
            tokens: of any scale.
        """
        x = normalised(float64(tokens))
        return [copy.deepcopy(part).to(x.device, x.dtype)(x) for part in self.parts]

    def _new(self, rng: torch.Generator) -> TaskAttention:
        return TaskAttention(self.start, self.heads, rng)


def _linear(n_in: int, n_out: int, rng: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)  # its own values would come from the global generator
    nn.init.trunc_normal_(layer.weight, std=0.02, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer
