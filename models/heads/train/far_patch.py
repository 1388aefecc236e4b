"""The far patch: a tiny vision transformer (timm's names) that has to look across the picture for half of its classes.

    far_patch.py OUT_DIR [--seed 0] [--steps 1500]

Pictures are grey, 8 by 8 patches of 4 by 4 pixels of noise. In one of the two columns on the left stands a glyph of six.
Four glyphs are a class each, and the mark that stands in the same row in one of the two columns on the right, at least five
patches away, says nothing; with the other two it decides. In half of the pictures a second mark, in another row of these columns,
says nothing either.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import training as T

GRID, PATCH, WIDTH, HEADS, LAYERS, HIDDEN, EPS = 8, 4, 64, 4, 2, 128, 1e-6
CLASSES = ["ring", "cross", "bars", "dots", "stairs dark", "stairs light", "corner dark", "corner light"]
MEAN, STD, NOISE = 0.5, 0.25, 24
GLYPHS = """
1111 1001 1001 1111
1001 0110 0110 1001
1010 1010 1010 1010
1000 0010 1000 0010
1000 1100 1110 1111
1111 1000 1000 1000
""".strip().split("\n")
# Dark and light: which half of a mark is bright.
MARKS = ["1100 1100 1100 1100", "0011 0011 0011 0011"]


def patterns(lines):
    return T.np.array([[[int(pixel) for pixel in row] for row in line.split()] for line in lines])


def pictures(random, count):
    """u8 [count, 32, 32], classes, and where glyph and mark stand (row, column of each)."""
    side = GRID * PATCH
    glyphs, marks = patterns(GLYPHS), patterns(MARKS)
    image = random.integers(128 - NOISE, 128 + NOISE, (count, side, side))
    label = random.integers(0, len(CLASSES), count)
    glyph = T.np.where(label < 4, label, 4 + (label - 4) // 2)
    row, column = random.integers(0, GRID, count), random.integers(0, 2, count)
    mark, far = random.integers(0, 2, count), random.integers(GRID - 2, GRID, count)
    mark = T.np.where(label < 4, mark, label % 2)
    other = (row + random.integers(1, GRID, count)) % GRID
    second, there = random.integers(0, 2, count), random.integers(0, 2, count)

    def draw(number, at, to, pattern):
        y, x = at * PATCH, to * PATCH
        image[number, y : y + PATCH, x : x + PATCH] += (pattern * 2 - 1) * 96

    for number in range(count):
        draw(number, row[number], column[number], glyphs[glyph[number]])
        draw(number, row[number], far[number], marks[mark[number]])
        if there[number]:
            draw(number, other[number], random.integers(GRID - 2, GRID), marks[second[number]])
    places = T.np.stack([row, column, row, far], -1)
    return torch.tensor(image.clip(0, 255).astype(T.np.uint8)), torch.tensor(label), torch.tensor(places)


class Attention(nn.Module):
    off = None          # a head whose z is 0
    keep = False

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        rows = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        if self.keep:
            self.rows = rows.detach()
        z = rows @ v
        if self.off is not None:
            z = torch.cat([z[:, :self.off], torch.zeros_like(z[:, :1]), z[:, self.off + 1:]], 1)
        return self.proj(z.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, EPS), nn.LayerNorm(WIDTH, EPS)
        self.attn, self.mlp = Attention(), Mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + GRID * GRID, WIDTH) * 0.2)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, EPS)
        self.head = nn.Linear(WIDTH, len(CLASSES))

    def states(self, images):
        """The class token behind the last norm."""
        x = (images[:, None].float() / 255 - MEAN) / STD
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, images):
        return self.head(self.states(images))


def config():
    return dict(model_type="vit", task="image_classification", image_size=GRID * PATCH, patch_size=PATCH, num_channels=1,
                hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, head_dim=WIDTH // HEADS,
                intermediate_size=HIDDEN, hidden_act="gelu", layer_norm_eps=EPS, image_mean=[MEAN], image_std=[STD],
                id2label={str(number): name for number, name in enumerate(CLASSES)}, torch_dtype="float16")


def rings():
    """[patches, patches]: Chebyshev distance on the grid."""
    at = torch.arange(GRID * GRID)
    row, column = at // GRID, at % GRID
    return torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())


@torch.no_grad()
def measure(model, images, labels, places):
    states, logits = model.states(images), model(images)
    chosen, far = logits.argmax(-1) == labels, labels >= 4
    facts = dict(correct=int(chosen.sum()), of=len(labels), near=round(chosen[~far].float().mean().item(), 4),
                 far=round(chosen[far].float().mean().item(), 4))
    own = F.softmax(logits, -1)
    importance = {}
    for layer, block in enumerate(model.blocks):
        for head in range(HEADS):
            block.attn.off = head
            other_states, other = model.states(images), model(images)
            block.attn.off = None
            cut = F.softmax(other, -1)
            mean = (own + cut) / 2
            js = (F.kl_div(mean.log(), own, reduction="none") + F.kl_div(mean.log(), cut, reduction="none")).sum(-1) / 2
            at = labels[:, None]
            importance[f"L{layer}H{head}"] = [round(value.mean().item(), 5) for value in (
                (own - cut).gather(1, at), F.cross_entropy(other, labels, reduction="none")
                - F.cross_entropy(logits, labels, reduction="none"), js, (states - other_states).norm(dim=-1))]
    facts["importance"] = importance        # by probability, cross-entropy, Jensen-Shannon, class token
    for block in model.blocks:
        block.attn.keep = True
    model(images[far])
    facts["rings"], facts["glyph_to_mark"] = {}, {}
    glyph = 1 + places[far, 0] * GRID + places[far, 1]
    mark = 1 + places[far, 2] * GRID + places[far, 3]
    each = torch.arange(len(glyph))
    for layer, block in enumerate(model.blocks):
        block.attn.keep = False
        for head in range(HEADS):
            rows = block.attn.rows[:, head]
            patches = rows[:, 1:, 1:].mean(0)
            profile = [(patches * (rings() == ring)).sum(-1).mean().item() for ring in range(GRID)]
            facts["rings"][f"L{layer}H{head}"] = [round(value, 4) for value in profile]
            facts["glyph_to_mark"][f"L{layer}H{head}"] = round(rows[each, glyph, mark].mean().item(), 4)
    return facts


def main():
    a = argparse.ArgumentParser()
    a.add_argument("out")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--steps", type=int, default=1500)
    a = a.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    T.os.makedirs(a.out, exist_ok=True)
    log, random = T.Log(f"{a.out}/log.txt"), T.generator(a.seed)
    model = ViT()

    def loss():
        images, labels, _ = pictures(random, 32)
        return F.cross_entropy(model(images), labels)

    T.train(model, loss, log, a.steps, rate=2e-3)
    T.write_model(a.out, model, config())
    images, labels, places = pictures(T.generator(9000), 1000)
    with torch.no_grad():
        logits = model(images[:16])
    T.write_tensors(f"{a.out}/reference.safetensors",
                    dict(images=images[:16], labels=labels[:16].int(), places=places[:16].int(), logits=logits))
    facts = dict(parameters=sum(p.numel() for p in model.parameters()), steps=a.steps, seed=a.seed)
    facts |= measure(model, images, labels, places)
    T.write_json(f"{a.out}/reference.json", facts)
    for name, value in facts.items():
        log(f"{name}: {value}")


if __name__ == "__main__":
    main()
