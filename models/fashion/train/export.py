"""Writes the trained models of train.py as the files that ship, with reference outputs.

    export.py DATA_DIR MOH.pt OUT_DIR [--dense DENSE.pt]

What ships is f16; the references are f32 arithmetic on those f16 weights.
"""

import argparse
import json
import os
import struct
import zlib

import torch
from safetensors.torch import save_file

import train as T

EXAMPLES = [9, 6, 8]      # boot, shirt, bag: of each the first after the 64 that the model gets right


def shipped(path):
    """The model with its weights rounded to f16, and those weights."""
    saved = torch.load(path, weights_only=True)
    half = {name: w.half() for name, w in saved["model"].items()}
    model = T.ViT(T.SHAPE, not saved["dense"])
    model.load_state_dict({name: w.float() for name, w in half.items()})
    return model.eval(), half, saved


def config(moh):
    s = T.SHAPE
    c = dict(
        model_type="vit_moh" if moh else "vit", task="image_classification",
        image_size=s["image_size"], patch_size=s["patch_size"], num_channels=1,
        hidden_size=s["hidden_size"], num_hidden_layers=s["num_hidden_layers"],
        num_attention_heads=s["num_attention_heads"], head_dim=s["head_dim"],
        intermediate_size=s["intermediate_size"], hidden_act="gelu", layer_norm_eps=1e-6)
    if moh:
        c["moh"] = dict(shared_heads=s["shared_heads"], routed_heads=s["routed_heads"], two_stage=True)
    c.update(image_mean=[T.MEAN], image_std=[T.STD],
             id2label={str(i): n for i, n in enumerate(T.LABELS)}, torch_dtype="float16")
    return c


def save(tensors, path):
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def write_model(folder, half, moh):
    os.makedirs(folder, exist_ok=True)
    save(half, f"{folder}/model.safetensors")
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config(moh), f, indent=1)
        f.write("\n")


def write_png(path, image):
    """8-bit grey, no filter."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(row) for row in image.tolist())
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 0, 0, 0, 0)
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def main():
    a = argparse.ArgumentParser()
    a.add_argument("data")
    a.add_argument("moh")
    a.add_argument("out")
    a.add_argument("--dense")
    a = a.parse_args()
    torch.set_num_threads(1)
    images, labels = T.load(a.data, "t10k")
    first, first_labels = images[:64], labels[:64]
    tensors = {"images": first.contiguous(), "labels": first_labels.int()}
    facts = {"test_images": len(images)}

    def record(name, path, prefix):
        model, half, saved = shipped(path)
        write_model(a.out if not prefix else f"{a.out}/dense", half, not prefix)
        with torch.no_grad():
            tensors[prefix + "logits"] = model(first).contiguous()
        hits = round(T.accuracy(model, images, labels) * len(images))
        facts[name] = dict(
            correct=hits, accuracy=hits / len(images),
            correct_of_first_64=(tensors[prefix + "logits"].argmax(-1) == first_labels).sum().item(),
            parameters=sum(w.numel() for w in half.values()), steps=saved["step"],
            epochs=round(saved["step"] * saved["batch"] / 55000, 1), cpu_minutes=round(saved["cpu"] / 60, 1))
        return model

    model = record("moh", a.moh, "")
    with torch.no_grad():
        model(first[:4])
    attention = [b.attn for b in model.blocks]
    head_gates = torch.stack([m.head_gates for m in attention])                  # [layers, 4, 17, 8]
    routes = torch.stack([m.routes for m in attention]) + T.SHAPE["shared_heads"]  # head numbers, 2 to 7
    tensors["routes"] = routes.int()
    tensors["gates"] = head_gates.gather(-1, routes).contiguous()
    tensors["head_gates"] = head_gates.contiguous()
    with torch.no_grad():
        model(first)
    # Per image the least probability kept minus the best one dropped, over layers and tokens:
    # where it is tiny, other rounding may choose another head.
    tensors["route_margins"] = torch.stack([m.margins.amin(1) for m in attention]).amin(0)

    # How often each head is used over the whole test set.
    loads = 0
    with torch.no_grad():
        for part in images.split(500):
            model(part)
            loads = loads + torch.stack([m.load for m in attention]) * len(part) / len(images)
    facts["moh"]["share_of_tokens_per_routed_head"] = [[round(4 * x, 3) for x in row] for row in loads.tolist()]
    if a.dense:
        record("dense", a.dense, "dense.")
    save(tensors, f"{a.out}/reference.safetensors")

    os.makedirs(f"{a.out}/examples", exist_ok=True)
    with torch.no_grad():
        guesses = model(images[64:1000]).argmax(-1)
    facts["examples"] = {}
    for label in EXAMPLES:
        n = 64 + next(i for i, (g, l) in enumerate(zip(guesses, labels[64:1000])) if g == l == label)
        name = T.LABELS[label].lower().replace(" ", "-").replace("/", "-") + ".png"
        write_png(f"{a.out}/examples/{name}", images[n])
        facts["examples"][name] = dict(test_image=n, label=label)
    with open(f"{a.out}/reference.json", "w") as f:
        f.write("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in facts.items()) + "\n}\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
