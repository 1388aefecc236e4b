"""The small decoders of models/heads: dense in Llama's layout, or with routed heads in JetMoE's.

Attention only where `hidden` is 0. Norms have no gain of their own: the files hold ones. What modules are called is
what headwise reads.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

EPS = 1e-6


@dataclasses.dataclass
class Shape:
    vocab: int
    layers: int
    context: int = 64
    width: int = 64
    heads: int = 4          # of the layer; of each expert where heads are routed
    dim: int = 16
    hidden: int = 0         # of the MLP, of each expert where it is routed
    experts: int = 1        # head experts, and MLP experts where there are such
    active: int = 1         # that a token chooses

    @property
    def routed(self):
        return self.experts > 1

    def config(self, **more):
        """What config.json says."""
        both = dict(vocab_size=self.vocab, hidden_size=self.width, num_hidden_layers=self.layers,
                    max_position_embeddings=self.context, rms_norm_eps=EPS, rope_theta=10000.0, hidden_act="silu",
                    intermediate_size=self.hidden, tie_word_embeddings=False, torch_dtype="float16")
        if self.routed:
            kind = dict(model_type="jetmoe", num_key_value_heads=self.heads, kv_channels=self.dim,
                        num_attention_heads=self.heads * self.active, moe_num_experts=self.experts,
                        moe_top_k=self.active)
        else:
            kind = dict(model_type="llama", num_attention_heads=self.heads, head_dim=self.dim)
        return kind | both | more


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("weight", torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


class Experts(nn.Module):
    """[experts, outputs, inputs]. They start equal, as upcycled ones do: apart from the start they learn to copy much later."""

    def __init__(self, experts, outputs, inputs):
        super().__init__()
        bound = max(outputs, inputs) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound).repeat(experts, 1, 1))


class Router(nn.Module):
    """Gates [batch, tokens, experts] of the k best, 0 elsewhere: softmax over the kept."""

    def __init__(self, s):
        super().__init__()
        self.layer = nn.Linear(s.width, s.experts, bias=False)
        self.active = s.active
        self.offset = None      # added to the scores before the choice: how an expert is kept out or let in
        self.off = None         # an expert whose gate is dropped after the choice; the others are renormalised

    def forward(self, x):
        self.scores = self.layer(x)
        scores = self.scores if self.offset is None else self.scores + self.offset
        kept, self.chosen = scores.topk(self.active, -1)
        gates = torch.zeros_like(scores).scatter(-1, self.chosen, kept.softmax(-1))
        used = (gates > 0).float().mean((0, 1))
        self.balance = (used * scores.softmax(-1).mean((0, 1))).sum() * len(used) / self.active
        if self.off is not None:
            gates[..., self.off] = 0
            gates = gates / gates.sum(-1, keepdim=True).clamp_min(1e-9)
        return gates


def rotated(x):
    """Rotary positions; x [batch, tokens, ..., dim]."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    angle = angle.view(x.shape[1], *[1] * (x.dim() - 3), half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Attending(nn.Module):
    """What both kinds of attention share: rows, and what is changed in them or kept of them."""

    edit = None     # rows [batch, heads, queries, keys] -> rows
    change = None   # z [batch, tokens, heads, dim] -> z
    keep = False

    def attend(self, q, k, v):
        """q [batch, tokens, experts, heads, dim], k and v [batch, tokens, heads, dim] -> z as q."""
        q, k = rotated(q), rotated(k)
        tokens = q.shape[1]
        scores = torch.einsum("bqejd,bkjd->bejqk", q, k) * q.shape[-1] ** -0.5
        rows = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -torch.inf).softmax(-1)
        flat = rows.flatten(1, 2)
        if self.keep:
            self.rows = flat.detach()
        if self.edit:
            rows = self.edit(flat).view(rows.shape)
        z = torch.einsum("bejqk,bkjd->bqejd", rows, v)
        if self.keep:
            self.z = z.flatten(2, 3).detach()
        return self.change(z.flatten(2, 3)).view(z.shape) if self.change else z


class Dense(Attending):
    def __init__(self, s):
        super().__init__()
        inner = s.heads * s.dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(s.width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, s.width, bias=False)
        self.dim = s.dim

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (-1, self.dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(self.attend(q.unsqueeze(2), k, v).flatten(2))


class RoutedHeads(Attending):
    """Of all experts, computed for every token; the gates are 0 where a token did not choose one."""

    def __init__(self, s):
        super().__init__()
        inner = s.heads * s.dim
        self.experts = nn.Module()
        self.experts.router = Router(s)
        self.experts.input_linear = Experts(s.experts, inner, s.width)
        self.experts.output_linear = Experts(s.experts, s.width, inner)
        self.experts.bias = nn.Parameter(torch.zeros(s.width))
        self.kv_proj = nn.Linear(s.width, 2 * inner, bias=False)
        self.dim = s.dim

    def forward(self, x):
        q = torch.einsum("btd,eid->btei", x, self.experts.input_linear.weight).unflatten(-1, (-1, self.dim))
        k, v = (part.unflatten(-1, (-1, self.dim)) for part in self.kv_proj(x).chunk(2, -1))
        z = self.attend(q, k, v).flatten(3) * self.experts.router(x).unsqueeze(-1)
        return torch.einsum("btei,edi->btd", z, self.experts.output_linear.weight) + self.experts.bias


class Gated(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(s.width, s.hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(s.hidden, s.width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RoutedGated(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.router = Router(s)
        self.input_linear = Experts(s.experts, 2 * s.hidden, s.width)
        self.output_linear = Experts(s.experts, s.width, s.hidden)
        self.bias = nn.Parameter(torch.zeros(s.width))

    def forward(self, x):
        gate, up = torch.einsum("btd,eid->btei", x, self.input_linear.weight).chunk(2, -1)
        hidden = F.silu(gate) * up * self.router(x).unsqueeze(-1)
        return torch.einsum("bteh,edh->btd", hidden, self.output_linear.weight) + self.bias


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.input_layernorm = Norm(s.width)
        self.attention = "self_attention" if s.routed else "self_attn"
        self.add_module(self.attention, RoutedHeads(s) if s.routed else Dense(s))
        self.mlp = None
        if s.hidden:
            self.post_attention_layernorm = Norm(s.width)
            self.mlp = RoutedGated(s) if s.routed else Gated(s)

    @property
    def heads(self):
        return getattr(self, self.attention)

    def forward(self, x):
        x = x + self.heads(self.input_layernorm(x))
        return x if self.mlp is None else x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab, shape.width)
        self.model.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.model.norm = Norm(shape.width)
        self.lm_head = nn.Linear(shape.width, shape.vocab, bias=False)

    @property
    def layers(self):
        return self.model.layers

    @property
    def routers(self):
        return [module for module in self.modules() if isinstance(module, Router)]

    def forward(self, ids):
        x = self.model.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))
