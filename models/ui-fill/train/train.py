"""Trains a small masked language model on English interface strings.

    train.py DATA_DIR WORK_DIR OUT.pt [--dense] [--steps N] [--resume]

DATA_DIR holds en-de.tsv.gz, en-de.dev.json and en-de.test.json; only the
English side is read. WORK_DIR gets tokenizer.json and strings.json (written
once, then read).

The encoder is the one of the Mixture of Attention Heads paper (Zhang et al.
2022, MoA): an expert is one head, all experts share one key and one value head,
the gates are a softmax over all experts whose kept ones are renormalised. With
--dense the attention is ordinary multi-head attention with about as many
parameters as MoA has active ones; steps, batches and masks stay the same.
"""

import argparse
import gzip
import json
import math
import os
import random
import re
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, BOS, EOS, UNK, MASK = range(5)
FIRST_TEXT_ID = 5 + 256           # special tokens, then one token per byte
SHAPE = dict(
    vocab_size=4000, d_model=192, encoder_layers=4, num_experts=12, top_k=3,
    head_dim=64, ffn_dim=640, max_positions=256, dropout=0.1,
    dense_heads=4, dense_head_dim=32,      # the twin: 4*192*4*32 weights, as many as MoA's active ones
)
LENGTHS = [4, 6, 8, 12, 16, 24, 32, 48, 64]   # few shapes: oneDNN compiles one kernel per shape
ROWS = 128                                   # rows per expert are padded to a multiple of this
BATCH_TOKENS = 3072
COMPUTE = torch.bfloat16                     # matrix products; masters, norms and sums are f32


# ---------------------------------------------------------------- data

def folded(text):
    return re.sub(r"[\W_]+", "", text.lower())


def prepare(data, work):
    """Splits off the English strings and trains the tokenizer on the training part."""
    if os.path.exists(f"{work}/strings.json"):
        return
    held = {}
    for split in ("dev", "test"):
        pairs = json.load(open(f"{data}/en-de.{split}.json", encoding="utf8"))
        held[split] = list(dict.fromkeys(p[0] for p in pairs))
    unseen = {folded(s) for s in held["dev"] + held["test"]}
    lines = gzip.open(f"{data}/en-de.tsv.gz", "rt", encoding="utf8").read().split("\n")[1:]
    english = dict.fromkeys(line.split("\t")[0] for line in lines if line)
    train = [s for s in english if len(s) <= 200 and folded(s) not in unseen]

    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tok.normalizer = normalizers.NFC()
    # "first": only the start of the text gets a "▁" of its own, so that what
    # follows a [MASK] is cut as it would be in the whole string.
    # Punctuation is cut off, so that "[MASK]." asks for the word alone.
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation("isolated")])
    tok.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback()])
    names = ["<pad>", "<s>", "</s>", "<unk>", "[MASK]"]
    tok.train_from_iterator(train, trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], limit_alphabet=150,
        special_tokens=names + [f"<0x{i:02X}>" for i in range(256)]))
    raw = json.loads(tok.to_str())
    # The bytes are plain vocabulary, not special tokens. [MASK] swallows the
    # blank before it, for that blank belongs to the token it stands for.
    raw["added_tokens"] = [
        dict(id=i, content=n, single_word=False, lstrip=n == "[MASK]", rstrip=False,
             normalized=False, special=True) for i, n in enumerate(names)]
    json.dump(raw, open(f"{work}/tokenizer.json", "w", encoding="utf8"), ensure_ascii=False, separators=(",", ":"))
    json.dump(dict(train=train, **held), open(f"{work}/strings.json", "w", encoding="utf8"), ensure_ascii=False)


def encode(tok, strings, least=2):
    """Token ids with </s>; only strings of at least `least` text tokens that fit."""
    out = [tok.encode(s).ids + [EOS] for s in strings]
    return [ids for ids in out if least < len(ids) <= LENGTHS[-1]]


def batches(data, seed):
    """[(length, indices)]: one epoch in buckets of fixed shape, shuffled."""
    rng = random.Random(seed)
    buckets = {n: [] for n in LENGTHS}
    for i, ids in enumerate(data):
        buckets[next(n for n in LENGTHS if len(ids) <= n)].append(i)
    out = []
    for length, items in buckets.items():
        rng.shuffle(items)
        size = BATCH_TOKENS // length
        while len(items) % size:
            items.append(rng.choice(items))
        out += [(length, items[j:j + size]) for j in range(0, len(items), size)]
    rng.shuffle(out)
    return out


def padded(rows, length=None):
    length = length or max(map(len, rows))
    return torch.tensor([r + [PAD] * (length - len(r)) for r in rows])


def masked(ids, seed, mixed=True):
    """Masks 15 % of each row's text tokens, at least one: (input, bool mask).

    mixed: of the masked ones 10 % become random tokens and 10 % stay."""
    rng = torch.Generator().manual_seed(seed)
    text = (ids != PAD) & (ids != EOS)
    wanted = (text.sum(1) * 0.15 + torch.rand(len(ids), generator=rng)).long().clamp(min=1)
    rank = torch.rand(ids.shape, generator=rng).masked_fill(~text, 2.0).argsort(1).argsort(1)
    chosen = rank < wanted[:, None]
    given = torch.full_like(ids, MASK)
    if mixed:
        kind = torch.rand(ids.shape, generator=rng)
        other = torch.randint(FIRST_TEXT_ID, SHAPE["vocab_size"], ids.shape, generator=rng)
        given = torch.where(kind < 0.8, given, torch.where(kind < 0.9, other, ids))
    return torch.where(chosen, given, ids), chosen


def fixed_test(data, seed=20):
    """The masking of the measurements: every masked token is [MASK]. [(input, positions, labels)]"""
    out = []
    for n, ids in enumerate(data):
        given, chosen = masked(torch.tensor([ids]), seed * 100003 + n, mixed=False)
        where = chosen[0].nonzero().flatten().tolist()
        out.append((given[0].tolist(), where, [ids[p] for p in where]))
    return out


# ---------------------------------------------------------------- model

def padded_rows(x, start, count):
    size = -(-count // ROWS) * ROWS
    if size == count:
        return x[start:start + count]
    out = x.new_zeros(size, x.shape[1])
    out[:count] = x[start:start + count]
    return out


class GroupedLinear(torch.autograd.Function):
    """x [N, in] sorted by expert, w [E, in, out] f32, counts per expert -> [N, out]."""

    @staticmethod
    def forward(ctx, x, w, counts):
        ctx.save_for_backward(x, w)
        ctx.counts = counts
        small, y, start = w.to(x.dtype), x.new_empty(len(x), w.shape[2]), 0
        for e, n in enumerate(counts):
            if n:
                y[start:start + n] = (padded_rows(x, start, n) @ small[e])[:n]
            start += n
        return y

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        small, gx, gw, start = w.to(x.dtype), torch.empty_like(x), torch.zeros_like(w), 0
        for e, n in enumerate(ctx.counts):
            if n:
                g = padded_rows(grad, start, n)
                gx[start:start + n] = (g @ small[e].t())[:n]
                gw[e] = padded_rows(x, start, n).t() @ g
            start += n
        return gx, gw, None


class Permute(torch.autograd.Function):
    """Rows in another order; the gradient is the order undone (no atomic adds)."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.inverse = inverse
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.inverse), None, None


class Linear(nn.Module):
    def __init__(self, n_in, n_out, bias=True, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        nn.init.xavier_uniform_(self.weight, gain)
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(COMPUTE)
        return F.linear(x.to(COMPUTE), self.weight.to(COMPUTE), bias)


class Queries(nn.Module):
    """The router and the experts of MoA; names and layouts of the original code."""

    def __init__(self, width, experts, head):
        super().__init__()
        bound = math.sqrt(3) * math.sqrt(2 / (width + head))
        self.w_gate = nn.Parameter(torch.randn(width, experts) * 0.02)
        self.experts = nn.Module()
        self.experts.w = nn.Parameter(torch.empty(experts, width, head).uniform_(-bound, bound))
        self.output_experts = nn.Module()
        self.output_experts.w = nn.Parameter(torch.empty(experts, head, width).uniform_(-bound, bound))


class MixtureAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, self.n, self.k, self.d = c["d_model"], c["num_experts"], c["top_k"], c["head_dim"]
        self.q_proj = Queries(width, self.n, self.d)
        self.k_proj = Linear(width, self.d, bias=False, gain=1 / math.sqrt(2))
        self.v_proj = Linear(width, self.d, bias=False, gain=1 / math.sqrt(2))

    def forward(self, x, mask):
        b, t, width = x.shape
        rows = x.reshape(-1, width)
        scores = rows.float() @ self.q_proj.w_gate
        p = torch.softmax(scores, -1)
        gates, routes = p.topk(self.k, -1)
        gates = gates / (gates.sum(-1, keepdim=True).detach() + 1e-6)
        self.routes, self.gates = routes.view(b, t, -1), gates.detach().view(b, t, -1)
        self.scores = scores.detach()

        flat = routes.flatten()
        order = flat.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(len(order))
        counts = torch.bincount(flat, minlength=self.n)
        self.load = counts / len(flat)
        self.balance = self.n * (p.mean(0) * self.load).sum()
        self.z = scores.logsumexp(-1).pow(2).mean()

        counts = counts.tolist()
        copies = rows.to(COMPUTE)[:, None].expand(-1, self.k, -1).reshape(-1, width)
        q = GroupedLinear.apply(Permute.apply(copies, order, inverse), self.q_proj.experts.w, counts)
        q = Permute.apply(q, inverse, order).view(b, t, self.k, self.d) * self.d ** -0.5
        key, value = self.k_proj(x), self.v_proj(x)
        q = q.transpose(1, 2).reshape(b, self.k * t, self.d)      # all heads share K and V
        a = torch.bmm(q, key.transpose(1, 2)).float().view(b, self.k, t, t) + mask
        a = torch.softmax(a, -1).to(COMPUTE).view(b, self.k * t, t)
        o = torch.bmm(a, value).view(b, self.k, t, self.d).transpose(1, 2).reshape(-1, self.d)
        y = GroupedLinear.apply(Permute.apply(o, order, inverse), self.q_proj.output_experts.w, counts)
        y = Permute.apply(y, inverse, order).view(-1, self.k, width)
        return (y.float() * gates[..., None]).sum(1).view(b, t, width)


class DenseAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        width, self.h, self.d = c["d_model"], c["dense_heads"], c["dense_head_dim"]
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, Linear(width, self.h * self.d, bias=False, gain=1 / math.sqrt(2)))
        self.out_proj = Linear(self.h * self.d, width, bias=False)

    def forward(self, x, mask):
        b, t, _ = x.shape
        q, k, v = (p(x).view(b, t, self.h, self.d).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        a = (q * self.d ** -0.5 @ k.transpose(2, 3)).float() + mask
        o = torch.softmax(a, -1).to(COMPUTE) @ v
        return self.out_proj(o.transpose(1, 2).reshape(b, t, -1)).float()


class LayerNorm(nn.LayerNorm):
    def __init__(self, width):
        super().__init__(width, eps=1e-5)


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        width = c["d_model"]
        self.self_attn_layer_norm = LayerNorm(width)
        self.self_attn = DenseAttention(c) if dense else MixtureAttention(c)
        self.final_layer_norm = LayerNorm(width)
        self.fc1 = Linear(width, c["ffn_dim"])
        self.fc2 = Linear(c["ffn_dim"], width)
        self.dropout = nn.Dropout(c["dropout"])

    def forward(self, x, mask):
        x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), mask))
        h = F.relu(self.fc1(self.final_layer_norm(x)))
        return x + self.dropout(self.fc2(h).float())


def sinusoid(n, width):
    """First half sines, second half cosines, positions from 0."""
    half = width // 2
    rate = torch.exp(torch.arange(half) * -(math.log(10000.0) / (half - 1)))
    angle = torch.arange(n)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


class MaskedLM(nn.Module):
    def __init__(self, c, dense=False):
        super().__init__()
        self.width = c["d_model"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], self.width)
        nn.init.normal_(self.embed_tokens.weight, std=self.width ** -0.5)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Layer(c, dense) for _ in range(c["encoder_layers"]))
        self.encoder.layer_norm = LayerNorm(self.width)
        self.lm_head = nn.Module()
        self.lm_head.bias = nn.Parameter(torch.zeros(c["vocab_size"]))
        self.dropout = nn.Dropout(c["dropout"])
        self.register_buffer("positions", sinusoid(c["max_positions"], self.width), persistent=False)

    def forward(self, ids, rows=None):
        """Logits [B, T, V]; with `rows` (indices into B*T) only of these rows."""
        mask = torch.zeros(ids.shape).masked_fill(ids == PAD, float("-inf"))[:, None, None]
        x = self.embed_tokens(ids) * math.sqrt(self.width) + self.positions[:ids.shape[1]]
        x = self.dropout(x)
        for layer in self.encoder.layers:
            x = layer(x, mask)
        if rows is not None:
            x = x.reshape(-1, self.width).index_select(0, rows)
        x = self.encoder.layer_norm(x).to(COMPUTE)
        return F.linear(x, self.embed_tokens.weight.to(COMPUTE)).float() + self.lm_head.bias

    def mixtures(self):
        return [m for m in self.modules() if isinstance(m, MixtureAttention)]


@torch.no_grad()
def measure(model, test, batch=50):
    """(top-1 accuracy, mean log-probability) over all masked tokens of `test`."""
    was_training = model.training
    model.eval()
    hits, logp, count = 0, 0.0, 0
    for i in range(0, len(test), batch):
        part = test[i:i + batch]
        lp = torch.log_softmax(model(padded([x[0] for x in part])).float(), -1)
        for row, (_, where, labels) in zip(lp, part):
            picked = row[where]
            hits += (picked.argmax(-1) == torch.tensor(labels)).sum().item()
            logp += picked.gather(1, torch.tensor(labels)[:, None]).sum().item()
            count += len(where)
    model.train(was_training)
    return hits / count, logp / count


# ---------------------------------------------------------------- training

def main():
    a = argparse.ArgumentParser()
    a.add_argument("data")
    a.add_argument("work")
    a.add_argument("out")
    a.add_argument("--dense", action="store_true")
    a.add_argument("--steps", type=int, default=10000)
    a.add_argument("--decay", type=float, default=0.5, help="last part of the steps, rate falling to 0")
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--resume", action="store_true", help="go on from OUT.pt; --steps may differ")
    a = a.parse_args()

    torch.set_num_threads(1)
    prepare(a.data, a.work)
    tok = Tokenizer.from_file(f"{a.work}/tokenizer.json")
    strings = json.load(open(f"{a.work}/strings.json", encoding="utf8"))
    train = encode(tok, strings["train"])
    dev = fixed_test(encode(tok, strings["dev"]))
    torch.manual_seed(0)
    model = MaskedLM(SHAPE, a.dense)
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    step, seen, cpu_before = 0, 0, 0.0
    if a.resume:
        saved = torch.load(a.out, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        step, seen, cpu_before = saved["step"], saved["seen"], saved["cpu"]
    per_epoch = len(batches(train, 0))
    total = sum(p.numel() for p in model.parameters())
    print(f"{'dense' if a.dense else 'MoA'} {total:,} parameters, {len(train):,} strings of "
          f"{sum(map(len, train)):,} tokens, {per_epoch} batches an epoch, steps {step} to {a.steps}", flush=True)

    wall, cpu, seen_then, epoch_no, epoch = time.time(), time.process_time(), seen, -1, []
    hits = count = 0

    def save():
        used = cpu_before + time.process_time() - cpu
        torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), step=step, seen=seen,
                        cpu=used, dense=a.dense), a.out + ".new")
        os.replace(a.out + ".new", a.out)
        return used

    while step < a.steps:
        left = (a.steps - step) / (a.decay * a.steps)
        for group in opt.param_groups:
            group["lr"] = a.lr * min(1.0, (step + 1) / 400, left)
        if step // per_epoch != epoch_no:
            epoch_no = step // per_epoch
            epoch = batches(train, epoch_no)
        length, items = epoch[step % per_epoch]
        ids = padded([train[i] for i in items], length)
        given, chosen = masked(ids, seed=step)
        rows = chosen.flatten().nonzero().flatten()
        labels = ids.flatten()[rows]
        extra = -len(rows) % ROWS
        logits = model(given, F.pad(rows, (0, extra)))
        loss = F.cross_entropy(logits, F.pad(labels, (0, extra), value=-100))
        routers = model.mixtures()
        extra_loss = sum(0.01 * r.balance + 0.001 * r.z for r in routers) / max(1, len(routers))
        (loss + extra_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + int((ids != PAD).sum())
        hits += (logits[:len(rows)].argmax(-1) == labels).sum().item()
        count += len(rows)
        if step % 500 == 0 or step in (20, a.steps):
            used = save()
            acc, logp = measure(model, dev)
            busiest = "" if a.dense else " most-used expert %.2f" % max(r.load.max().item() for r in routers)
            print(f"step {step} epoch {step / per_epoch:.1f} tokens {seen / 1e6:.2f}M cpu {used / 60:.1f} min "
                  f"loss {loss.item():.3f} train acc {hits / count:.3f} dev acc {acc:.4f} "
                  f"dev ppl {math.exp(-logp):.1f}{busiest} "
                  f"tok/s {(seen - seen_then) / (time.time() - wall):.0f}", flush=True)
            wall, seen_then, hits, count = time.time(), seen, 0, 0


if __name__ == "__main__":
    main()
