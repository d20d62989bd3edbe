"""The peer's GPT: `tfmp.models.gpt` without dropout, in plain PyTorch. Imports no tfmp.

Attention is `scaled_dot_product_attention`, which has fused kernels; the logits' matrix is that of
the embedding, as there.
"""

import torch
import torch.utils.data
from torch import nn
from torch.nn import functional

# (width, depth, heads)
SIZES = {
    "gpt_micro": (96, 2, 4),
    "gpt2_small": (768, 12, 12),
    "gpt2_medium": (1024, 24, 16),
}
POOL_TOKENS = 2**22  # as many as tfmp's synthetic data have


class Block(nn.Module):
    """Attention and two dense layers, each normalized at its begin and added to what it took."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        """[batch, tokens, width] to the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, 3, self.heads, -1)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(y)
        return x + self.mlp(self.mlp_norm(x))


class Loss(nn.Module):
    """From tokens and labels to the loss: what torch.compile gets."""

    def __init__(self, spec, dtype):
        super().__init__()
        width, depth, heads = SIZES[spec["model"]]
        self.dtype = dtype
        self.tokens = nn.Embedding(spec["sizes"]["vocabulary"], width)
        self.positions = nn.Embedding(spec["sizes"]["context"], width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                last = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(weight, std=0.02 * ((2 * depth) ** -0.5 if last else 1.0))
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens, labels):
        """Tokens and labels are int64 [batch, context]."""
        with torch.autocast(tokens.device.type, self.dtype, enabled=self.dtype is not None):
            places = torch.arange(tokens.shape[1], device=tokens.device)
            x = self.tokens(tokens) + self.positions(places)
            for block in self.blocks:
                x = block(x)
            logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


class Pool(torch.utils.data.Dataset):
    """Random tokens in the host's memory; an item is a whole batch of windows and labels."""

    def __init__(self, spec):
        self.context = spec["sizes"]["context"]
        self.text = torch.randint(0, spec["sizes"]["vocabulary"], (POOL_TOKENS,))

    def __len__(self):
        return (len(self.text) - 1) // self.context

    def __getitem__(self, chosen):
        starts = torch.as_tensor(chosen)[:, None] * self.context
        windows = self.text[starts + torch.arange(self.context + 1)]
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
