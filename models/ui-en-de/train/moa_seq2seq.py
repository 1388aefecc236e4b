"""Encoder-decoder transformer whose attention modules are Mixtures of Attention Heads (Zhang et al. 2022).

An expert is one head; all experts share one key and one value head; gates are a softmax over all experts, of which the
kept ones are divided by their sum (through which no gradient flows). Pre-norm, sinusoidal positions, shared embeddings.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

from moa_layers import grouped, permute_rows

PAD, BOS, EOS, UNK = range(4)
COMPUTE = torch.bfloat16        # matrix products; the references are made with f32
SHAPE = dict(vocab_size=6000, d_model=256, encoder_layers=4, decoder_layers=3, num_experts=16, top_k=4,
             head_dim=64, ffn_dim=768, max_positions=256, dropout=0.1)


class Linear(nn.Module):
    def __init__(self, inputs, outputs, bias=True, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.xavier_uniform_(self.weight, gain)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(COMPUTE)
        return F.linear(x.to(COMPUTE), self.weight.to(COMPUTE), bias)


class LayerNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x.float(), (x.shape[-1],), self.weight, self.bias, 1e-5)


class MoAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, head, experts = c["d_model"], c["head_dim"], c["num_experts"]
        self.experts, self.kept, self.head = experts, c["top_k"], head
        bound = math.sqrt(3) * math.sqrt(2 / (width + head))
        self.w_gate = nn.Parameter(torch.randn(experts, width) * 0.02)
        self.wq = nn.Parameter(torch.empty(experts, head, width).uniform_(-bound, bound))
        self.wo = nn.Parameter(torch.empty(experts, width, head).uniform_(-bound, bound))
        self.k_proj = Linear(width, head, False, 1 / math.sqrt(2))
        self.v_proj = Linear(width, head, False, 1 / math.sqrt(2))

    def route(self, x):
        """Gates and experts of each row, and the two losses of the router."""
        scores = F.linear(x.float(), self.w_gate)
        probabilities = torch.softmax(scores, -1)
        gates, chosen = probabilities.topk(self.kept, -1)
        share = F.one_hot(chosen, self.experts).sum(1).float().mean(0) / self.kept
        self.balance_loss = self.experts * (probabilities.mean(0) * share).sum()
        self.z_loss = torch.logsumexp(scores, -1).pow(2).mean()
        return gates / (gates.sum(-1, keepdim=True).detach() + 1e-6), chosen

    def forward(self, x, memory, mask):
        """x [batch, T, D], memory [batch, S, D], mask added to the scores, [batch or 1, 1, T or 1, S]."""
        batch, length, width = x.shape
        rows = x.reshape(-1, width)
        gates, chosen = self.route(rows)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        self.counts = counts = torch.bincount(flat, minlength=self.experts)

        copies = rows.to(COMPUTE)[:, None].expand(-1, self.kept, -1).reshape(-1, width)
        q = grouped(permute_rows(copies, order, inverse), self.wq, counts)
        q = permute_rows(q, inverse, order).view(batch, length, self.kept, self.head) * self.head ** -0.5
        # The chosen heads share K and V, so they stand one after another as if they were more queries.
        q = q.transpose(1, 2).reshape(batch, self.kept * length, self.head)
        k, v = self.k_proj(memory), self.v_proj(memory)
        scores = torch.bmm(q, k.transpose(1, 2)).float().view(batch, self.kept, length, -1) + mask
        weights = torch.softmax(scores, -1).to(COMPUTE).view(batch, self.kept * length, -1)
        out = torch.bmm(weights, v).view(batch, self.kept, length, self.head)
        out = out.transpose(1, 2).reshape(-1, self.head)
        y = grouped(permute_rows(out, order, inverse), self.wo, counts)
        y = permute_rows(y, inverse, order).view(-1, self.kept, width)
        return (y.float() * gates[..., None]).sum(1).view(batch, length, width)


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x))).float()


class Layer(nn.Module):
    def __init__(self, c, cross):
        super().__init__()
        width = c["d_model"]
        self.dropout, self.cross = c["dropout"], cross
        self.self_attn = MoAttention(c)
        self.self_attn_layer_norm = LayerNorm(width)
        if cross:
            self.encoder_attn = MoAttention(c)
            self.encoder_attn_layer_norm = LayerNorm(width)
        self.ffn = FeedForward(width, c["ffn_dim"])
        self.final_layer_norm = LayerNorm(width)

    def forward(self, x, mask, memory=None, memory_mask=None):
        def drop(y):
            return F.dropout(y, self.dropout, self.training)

        h = self.self_attn_layer_norm(x)
        x = x + drop(self.self_attn(h, h, mask))
        if self.cross:
            x = x + drop(self.encoder_attn(self.encoder_attn_layer_norm(x), memory, memory_mask))
        return x + drop(self.ffn(self.final_layer_norm(x)))


def sinusoids(positions, width):
    """The first half of a vector sines, the second cosines; positions from 0."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
    angles = torch.arange(positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class Seq2Seq(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        width = c["d_model"]
        self.embed = nn.Embedding(c["vocab_size"], width)
        nn.init.normal_(self.embed.weight, std=width ** -0.5)
        self.enc = nn.ModuleList(Layer(c, False) for _ in range(c["encoder_layers"]))
        self.dec = nn.ModuleList(Layer(c, True) for _ in range(c["decoder_layers"]))
        self.enc_norm = LayerNorm(width)
        self.dec_norm = LayerNorm(width)
        self.register_buffer("positions", sinusoids(c["max_positions"], width), persistent=False)

    def embedded(self, ids):
        x = self.embed(ids) * math.sqrt(self.c["d_model"]) + self.positions[:ids.shape[1]]
        return F.dropout(x, self.c["dropout"], self.training)

    def encode(self, source):
        """The encoder's output, and the mask that hides padding."""
        mask = torch.zeros(source.shape).masked_fill(source == PAD, float("-inf"))[:, None, None]
        x = self.embedded(source)
        for layer in self.enc:
            x = layer(x, mask)
        return self.enc_norm(x), mask

    def decode(self, target, memory, memory_mask):
        length = target.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        x = self.embedded(target)
        for layer in self.dec:
            x = layer(x, mask, memory, memory_mask)
        return F.linear(self.dec_norm(x).to(COMPUTE), self.embed.weight.to(COMPUTE))

    def forward(self, source, target):
        return self.decode(target, *self.encode(source))

    def routers(self):
        return [module for module in self.modules() if isinstance(module, MoAttention)]


# ---------------------------------------------------------------- the names and layouts that ship

NAMES = [("embed.", "embed_tokens."), ("enc_norm.", "encoder.layer_norm."), ("dec_norm.", "decoder.layer_norm."),
         ("enc.", "encoder.layers."), ("dec.", "decoder.layers."), (".ffn.", "."),
         (".w_gate", ".q_proj.w_gate"), (".wq", ".q_proj.experts.w"), (".wo", ".q_proj.output_experts.w")]


def shipped_name(name):
    """The original repository's name for a weight of Seq2Seq."""
    for ours, theirs in NAMES:
        if ours[0] == "." or name.startswith(ours):
            name = name.replace(ours, theirs, 1)
    return name


def transposed(name, weight):
    """Router and expert matrices ship with rows for inputs. Its own inverse."""
    return weight.transpose(-1, -2) if name.endswith((".w_gate", ".wq", ".wo")) else weight


def load_shipped(folder):
    """The model of a folder, with f32 arithmetic on its f16 weights."""
    global COMPUTE
    COMPUTE = torch.float32
    tensors = load_file(f"{folder}/model.safetensors")
    model = Seq2Seq(SHAPE)
    state = {name: transposed(name, tensors[shipped_name(name)]).float() for name in model.state_dict()}
    model.load_state_dict(state)
    return model.eval()
