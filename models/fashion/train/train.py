"""Trains a small vision transformer on Fashion-MNIST, with or without routed heads.

    train.py DATA_DIR OUT.pt [--dense] [--steps N] [--resume]

DATA_DIR holds the four .gz files of Fashion-MNIST (Debian: the package
dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist).

With routed heads (the default) every attention module is a Mixture of Heads
(MoH): 8 heads, the first 2 always on, and of the other 6 each token keeps 4.
With --dense it is ordinary multi-head attention; all else (steps, order of the
data, learning rate) stays the same.

The last 5,000 training images are kept out to watch the training; the test set
is not looked at here.
"""

import argparse
import gzip
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

MEAN, STD = 0.286, 0.353
LABELS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
          "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
SHAPE = dict(
    image_size=28, patch_size=7, hidden_size=96, num_hidden_layers=4,
    num_attention_heads=8, head_dim=16, intermediate_size=288,
    shared_heads=2, routed_heads=4,
)
VALIDATION = 5000


# ---------------------------------------------------------------- data

def read_idx(folder, name):
    """One idx file: images as [n, 28, 28] bytes, labels as [n] bytes."""
    raw = gzip.open(os.path.join(folder, name + ".gz")).read()
    if "images" in name:
        return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    return np.frombuffer(raw, np.uint8, offset=8)


def load(folder, split):
    """split is "train" or "t10k"."""
    images = torch.from_numpy(read_idx(folder, f"{split}-images-idx3-ubyte").copy())
    labels = torch.from_numpy(read_idx(folder, f"{split}-labels-idx1-ubyte").astype(np.int64))
    return images, labels


def pixels(images):
    """Bytes to the model's input; bright is ink, as in the data set."""
    return (images.float() / 255 - MEAN) / STD


def augment(images, rng):
    """Each image: mirrored with probability 1/2, moved by up to 2 pixels, and
    half of them with a random rectangle blanked."""
    n = len(images)
    mirrored = torch.rand(n, generator=rng) < 0.5
    images = torch.where(mirrored[:, None, None], images.flip(2), images)
    padded = F.pad(images, (2, 2, 2, 2))
    move = torch.randint(0, 5, (2, n, 1), generator=rng)
    rows = move[0] + torch.arange(28)
    cols = move[1] + torch.arange(28)
    images = padded[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]]
    size = torch.randint(4, 13, (2, n, 1), generator=rng)
    start = (torch.rand(2, n, 1, generator=rng) * (29 - size)).long()
    line = torch.arange(28)
    inside = (line >= start) & (line < start + size)
    blank = inside[0][:, :, None] & inside[1][:, None, :]
    blank &= (torch.rand(n, 1, 1, generator=rng) < 0.5)
    return images.masked_fill(blank, 0)


# ---------------------------------------------------------------- model

class Attention(nn.Module):
    """Multi-head attention; with `routed` each head's output is gated per token."""

    def __init__(self, c, routed):
        super().__init__()
        self.heads, self.width = c["num_attention_heads"], c["head_dim"]
        self.shared, self.kept, self.routed = c["shared_heads"], c["routed_heads"], routed
        hidden, inner = c["hidden_size"], c["num_attention_heads"] * c["head_dim"]
        self.qkv = nn.Linear(hidden, 3 * inner)
        self.proj = nn.Linear(inner, hidden)
        if routed:
            self.wg = nn.Linear(hidden, self.heads - self.shared, bias=False)
            self.wg_0 = nn.Linear(hidden, 2, bias=False)
            self.wg_1 = nn.Linear(hidden, self.shared, bias=False)

    def gates(self, x):
        """[B, T, heads], the shared heads first; also sets routes and balance."""
        p = torch.softmax(self.wg(x), -1)
        best = p.topk(self.kept + 1, -1)
        self.routes = best.indices[..., :-1]
        self.margins = (best.values[..., -2] - best.values[..., -1]).detach()   # how near to a tie
        chosen = torch.zeros_like(p).scatter(-1, self.routes, 1.0)
        total = (p * chosen).sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)
        g_routed = self.kept * p * chosen / total
        g_shared = self.shared * torch.softmax(self.wg_1(x), -1)
        alpha = 2 * torch.softmax(self.wg_0(x), -1)
        self.load = chosen.mean((0, 1)).detach() / self.kept
        self.balance = p.shape[-1] * (p.mean((0, 1)) * chosen.mean((0, 1))).sum() / self.kept
        return torch.cat([alpha[..., :1] * g_shared, alpha[..., 1:] * g_routed], -1)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        if self.routed:
            self.head_gates = self.gates(x)
            o = o * self.head_gates[..., None]
        return self.proj(o.reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.fc2 = nn.Linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, c, routed):
        super().__init__()
        self.norm1 = nn.LayerNorm(c["hidden_size"], eps=1e-6)
        self.attn = Attention(c, routed)
        self.norm2 = nn.LayerNorm(c["hidden_size"], eps=1e-6)
        self.mlp = Mlp(c)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A 7x7 convolution of stride 7, done as a matrix product."""

    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv2d(1, c["hidden_size"], c["patch_size"], c["patch_size"])

    def forward(self, x):
        p = self.proj.kernel_size[0]
        b, n = x.shape[0], x.shape[1] // p
        x = x.view(b, n, p, n, p).transpose(2, 3).reshape(b, n * n, p * p)
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class ViT(nn.Module):
    def __init__(self, c, routed):
        super().__init__()
        hidden = c["hidden_size"]
        patches = (c["image_size"] // c["patch_size"]) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + patches, hidden) * 0.02)
        self.patch_embed = PatchEmbed(c)
        self.blocks = nn.ModuleList(Block(c, routed) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.head = nn.Linear(hidden, 10)

    def forward(self, images):
        x = self.patch_embed(pixels(images))
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    hits = sum((model(i).argmax(-1) == l).sum().item()
               for i, l in zip(images.split(500), labels.split(500)))
    model.train()
    return hits / len(images)


# ---------------------------------------------------------------- training

def main():
    a = argparse.ArgumentParser()
    a.add_argument("data")
    a.add_argument("out")
    a.add_argument("--dense", action="store_true")
    a.add_argument("--steps", type=int, default=20000)
    a.add_argument("--decay", type=float, default=0.6, help="last part of the steps, rate falling to 0")
    a.add_argument("--batch", type=int, default=128)
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--resume", action="store_true", help="go on from OUT.pt; --steps may differ")
    a = a.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    images, labels = load(a.data, "train")
    train_x, train_y = images[:-VALIDATION], labels[:-VALIDATION]
    held_x, held_y = images[-VALIDATION:], labels[-VALIDATION:]
    model = ViT(SHAPE, not a.dense)
    total = sum(p.numel() for p in model.parameters())
    matrices = [p for n, p in model.named_parameters() if p.dim() >= 2 and "_embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() < 2 or "_embed" in n]
    opt = torch.optim.AdamW([dict(params=matrices, weight_decay=0.05),
                             dict(params=others, weight_decay=0.0)],
                            lr=a.lr, betas=(0.9, 0.98), fused=True)
    step, order, cpu_before = 0, torch.empty(0, dtype=torch.long), 0.0
    if a.resume:
        saved = torch.load(a.out, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        rng.set_state(saved["rng"])
        step, order, cpu_before = saved["step"], saved["order"], saved["cpu"]
    print(f"{'dense' if a.dense else 'MoH'} {total:,} parameters, steps {step} to {a.steps}, "
          f"batch {a.batch}, lr {a.lr}", flush=True)

    wall, cpu = time.time(), time.process_time()

    def save():
        used = cpu_before + time.process_time() - cpu
        torch.save(dict(model=model.state_dict(), opt=opt.state_dict(), rng=rng.get_state(),
                        order=order, step=step, cpu=used, dense=a.dense, batch=a.batch), a.out + ".new")
        os.replace(a.out + ".new", a.out)
        return used

    while step < a.steps:
        left = (a.steps - step) / (a.decay * a.steps)
        for group in opt.param_groups:
            group["lr"] = a.lr * min(1.0, (step + 1) / 300, left)
        if len(order) < a.batch:
            order = torch.randperm(len(train_x), generator=rng)
        pick, order = order[:a.batch], order[a.batch:]
        logits = model(augment(train_x[pick], rng))
        loss = F.cross_entropy(logits, train_y[pick], label_smoothing=0.05)
        balance = sum(b.attn.balance for b in model.blocks) / len(model.blocks) if not a.dense else 0.0
        (loss + 0.01 * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        if step % 500 == 0 or step == a.steps:
            used = save()
            load_text = "" if a.dense else " most-used head %.2f" % max(
                b.attn.load.max().item() for b in model.blocks)
            print(f"step {step} epoch {step * a.batch / len(train_x):.1f} cpu {used / 60:.1f} min "
                  f"loss {loss.item():.3f} held-out {accuracy(model, held_x, held_y):.4f}{load_text} "
                  f"img/s {a.batch * 500 / max(1e-9, time.time() - wall):.0f}", flush=True)
            wall = time.time()


if __name__ == "__main__":
    main()
