"""A vision transformer that nobody trained: of its two heads one looks at the patch to the left, the other at all alike.

    planted.py OUT_DIR

The grid is that of far_patch.py. The position of row r and column c is the code

    cos(w r), sin(w r), cos(w c), sin(w c)   for w = 1, 2, 3 times 2 pi / 16,

and its negative, so that LayerNorm only scales it. Two codes have the product sum of cos(w (r - r')) + cos(w (c - c')), which is
greatest where they are one. A key is its code; a query of head 0 is the code one column to the left, times a number that
makes the rows sharp; in column 0 the nearest is the patch itself. Queries of head 1 are 0.
"""

import argparse

import torch

import far_patch as P
import training as T

WIDTH, DIM, SHARP = 32, 16, 24.0
FREQUENCIES = [2 * T.math.pi * k / 16 for k in (1, 2, 3)]


def code(row, column):
    return torch.tensor([f(w * at) for w in FREQUENCIES for at in (row, column) for f in (T.math.cos, T.math.sin)])


def left():
    """[12, 12]: from a code to that of the column before."""
    turn = torch.eye(12)
    for number, w in enumerate(FREQUENCIES):
        at = 4 * number + 2
        turn[at : at + 2, at : at + 2] = torch.tensor([[T.math.cos(w), T.math.sin(w)], [-T.math.sin(w), T.math.cos(w)]])
    return turn


def tensors():
    positions = torch.zeros(1, 1 + P.GRID ** 2, WIDTH)
    for at in range(P.GRID ** 2):
        own = code(at // P.GRID, at % P.GRID)
        positions[0, 1 + at, :24] = torch.cat([own, -own])
    qkv = torch.zeros(3, 2, DIM, WIDTH)
    qkv[0, 0, :12, :12] = SHARP * left()
    qkv[1, :, :12, :12] = torch.eye(12)
    ones, zeros = torch.ones(WIDTH), torch.zeros(WIDTH)
    small = T.generator(10)
    weights = {name: torch.tensor(small.normal(0, 0.1, shape), dtype=torch.float32) for name, shape in {
        "blocks.0.attn.proj.weight": (WIDTH, WIDTH), "blocks.0.mlp.fc1.weight": (8, WIDTH),
        "blocks.0.mlp.fc2.weight": (WIDTH, 8), "head.weight": (2, WIDTH)}.items()}
    return {
        "patch_embed.proj.weight": torch.zeros(WIDTH, 1, P.PATCH, P.PATCH), "patch_embed.proj.bias": zeros,
        "cls_token": torch.zeros(1, 1, WIDTH), "pos_embed": positions,
        "blocks.0.attn.qkv.weight": qkv.flatten(0, 2), "blocks.0.attn.qkv.bias": torch.zeros(3 * WIDTH),
        "blocks.0.attn.proj.bias": zeros, "blocks.0.mlp.fc1.bias": torch.zeros(8), "blocks.0.mlp.fc2.bias": zeros,
        "norm.weight": ones, "norm.bias": zeros, "head.bias": torch.zeros(2),
    } | {f"blocks.0.norm{n}.{part}": value for n in (1, 2) for part, value in (("weight", ones), ("bias", zeros))} | weights


def rows(weights):
    """[heads, patches, patches]: attention, in f64 on the weights that ship; the class token's column left out."""
    x = weights["pos_embed"][0].double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + P.EPS).sqrt()
    q, k, _ = (x @ weights["blocks.0.attn.qkv.weight"].double().T).unflatten(-1, (3, 2, DIM)).permute(1, 2, 0, 3)
    return (q @ k.transpose(1, 2) * DIM ** -0.5).softmax(-1)[:, 1:, 1:]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("out")
    a = a.parse_args()
    T.os.makedirs(a.out, exist_ok=True)
    half = {name: value.half() for name, value in tensors().items()}
    T.write_tensors(f"{a.out}/model.safetensors", half)
    T.write_json(f"{a.out}/config.json", P.config() | dict(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, head_dim=DIM, intermediate_size=8,
        id2label={"0": "this", "1": "that"}))
    attention = rows(half)
    profile = [[(head * (P.rings() == ring)).sum(-1).mean().item() for ring in range(P.GRID)] for head in attention]
    T.write_json(f"{a.out}/reference.json", {
        "rings": {f"L0H{head}": [round(value, 7) for value in ring] for head, ring in enumerate(profile)}})
    print(profile)


if __name__ == "__main__":
    main()
