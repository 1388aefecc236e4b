"""Writes the trained model of train.py as the files that ship, with reference outputs.

    export.py WORK_DIR MOA.pt OUT_DIR [--dense DENSE.pt]

What ships is f16; the references are f32 arithmetic on those f16 weights.
"""

import argparse
import json
import math
import os
import shutil

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import train as T

SENTENCES = 40        # with their top 5
METRIC = 300          # sentences of the fixed masked set that ships
SPARSE = 16           # of logits, those of every sixteenth token
PINNED = 3            # sentences with logits and routes,
MARGIN = 1e-3         # whose routing is nowhere a near-tie (in router scores)


def shipped(path):
    saved = torch.load(path, weights_only=True)
    half = {name: w.half() for name, w in saved["model"].items()}
    model = T.MaskedLM(T.SHAPE, saved["dense"])
    model.load_state_dict({name: w.float() for name, w in half.items()})
    return model.eval(), half, saved


def config():
    s = T.SHAPE
    return dict(
        model_type="moa", task="fill_mask", language="en", vocab_size=s["vocab_size"],
        d_model=s["d_model"], encoder_layers=s["encoder_layers"], decoder_layers=0,
        num_experts=s["num_experts"], top_k=s["top_k"], heads_per_expert=1,
        head_dim=s["head_dim"], ffn_dim=s["ffn_dim"], activation="relu", norm="layer_norm",
        norm_position="pre", norm_eps=1e-5, positions="sinusoidal",
        max_positions=s["max_positions"], scale_embedding=True, tie_embeddings=True,
        lm_head_bias=True, gate_weights="softmax_renormalized", gate_eps=1e-6,
        pad_token_id=T.PAD, bos_token_id=T.BOS, eos_token_id=T.EOS, unk_token_id=T.UNK,
        mask_token_id=T.MASK, torch_dtype="float16")


def active(total):
    s = T.SHAPE
    expert = 2 * s["d_model"] * s["head_dim"]
    return total - s["encoder_layers"] * (s["num_experts"] - s["top_k"]) * expert


def unigram(train, test):
    """Always the most frequent token; probabilities are counts plus one."""
    counts = torch.ones(T.SHAPE["vocab_size"], dtype=torch.double)
    counts += torch.bincount(torch.tensor([t for ids in train for t in ids[:-1]]),
                             minlength=T.SHAPE["vocab_size"])
    logp = (counts / counts.sum()).log()
    labels = torch.tensor([x for t in test for x in t[2]])
    return (labels == counts.argmax()).double().mean().item(), logp[labels].mean().item()


def scores(pair):
    accuracy, logp = pair
    return dict(top1_accuracy=round(accuracy, 4), mean_log_prob=round(logp, 4), perplexity=round(math.exp(-logp), 2))


def top_5(model, ids, where):
    """The best five per mask, and by how little the router decided at its closest:
    the least score kept minus the best score dropped, over all layers and tokens."""
    p = torch.softmax(model(torch.tensor([ids]))[0, where], -1).topk(5, -1)
    kept = [m.scores.topk(m.k + 1, -1).values for m in model.mixtures()]
    margin = min((v[:, -2] - v[:, -1]).min().item() for v in kept)
    return dict(
        top5_ids=p.indices.tolist(),
        top5_probabilities=[[round(x, 6) for x in row] for row in p.values.tolist()],
        route_margin=round(margin, 6))


def named(tok, record):
    record["top5_tokens"] = [[tok.id_to_token(t) for t in row] for row in record["top5_ids"]]
    return record


@torch.no_grad()
def main():
    a = argparse.ArgumentParser()
    a.add_argument("work")
    a.add_argument("moa")
    a.add_argument("out")
    a.add_argument("--dense")
    a = a.parse_args()
    torch.set_num_threads(1)
    T.COMPUTE = torch.float32
    tok = Tokenizer.from_file(f"{a.work}/tokenizer.json")
    strings = json.load(open(f"{a.work}/strings.json", encoding="utf8"))
    train = T.encode(tok, strings["train"])
    held = T.encode(tok, strings["test"])
    test = T.fixed_test(held)

    model, half, saved = shipped(a.moa)
    os.makedirs(a.out, exist_ok=True)
    save_file({n: w.contiguous() for n, w in half.items()}, f"{a.out}/model.safetensors",
              metadata={"format": "pt"})
    with open(f"{a.out}/config.json", "w") as f:
        json.dump(config(), f, indent=1)
        f.write("\n")
    shutil.copyfile(f"{a.work}/tokenizer.json", f"{a.out}/tokenizer.json")

    total = sum(w.numel() for w in half.values())
    facts = dict(
        parameters=total, active_parameters=active(total), steps=saved["step"],
        tokens_seen=saved["seen"], cpu_minutes=round(saved["cpu"] / 60, 1),
        test=dict(sentences=len(test), masked_tokens=sum(len(t[1]) for t in test),
                  moa=scores(T.measure(model, test)), unigram=scores(unigram(train, test))))
    if a.dense:
        twin, twin_half, twin_saved = shipped(a.dense)
        facts["test"]["dense"] = dict(
            scores(T.measure(twin, test)), parameters=sum(w.numel() for w in twin_half.values()),
            steps=twin_saved["step"], cpu_minutes=round(twin_saved["cpu"] / 60, 1))

    # Sentences with their top 5: one mask in every first, several in every second.
    text = [ids for ids in held if 6 <= len(ids) <= 40]
    facts["sentences"] = []
    for n, ids in enumerate(text[:SENTENCES]):
        rng = torch.Generator().manual_seed(n)
        count = 1 if n % 2 == 0 else 2 + n % 3 // 2
        where = sorted(torch.randperm(len(ids) - 1, generator=rng)[:count].tolist())
        given = [T.MASK if p in where else t for p, t in enumerate(ids)]
        facts["sentences"].append(named(tok, dict(
            text=tok.decode(ids[:-1]), ids=given, positions=where, labels=[ids[p] for p in where],
            **top_5(model, given, where))))

    # The same as a user would type it: text with [MASK] in it.
    facts["typed"] = []
    for line in ("Save the [MASK] before closing?", "Are you sure you want to [MASK] this file?",
                 "Could not [MASK] to the server.", "Enter your [MASK] and password.",
                 "[MASK] to load the page", "The [MASK] has been deleted.",
                 "Invalid [MASK] address", "Click [MASK] to continue", "No [MASK] found"):
        ids = tok.encode(line).ids + [T.EOS]
        where = [p for p, t in enumerate(ids) if t == T.MASK]
        facts["typed"].append(named(tok, dict(text=line, ids=ids, positions=where, **top_5(model, ids, where))))

    part = test[:METRIC]
    accuracy, logp = T.measure(model, part)
    masked = sum(len(t[1]) for t in part)
    facts["metric"] = dict(
        masked_tokens=masked, correct=round(accuracy * masked), accuracy=accuracy, mean_log_prob=logp,
        sentences=[dict(ids=i, positions=w, labels=l) for i, w, l in part])
    with open(f"{a.out}/reference.json", "w", encoding="utf8") as f:
        f.write(compact(facts))

    pinned = [s["ids"] for s in facts["sentences"] if s["route_margin"] >= MARGIN][:PINNED]
    tensors = {}
    for n, ids in enumerate(pinned):
        tensors[f"{n}.ids"] = torch.tensor(ids, dtype=torch.int32)
        logits = model(torch.tensor([ids]))[0]
        tensors[f"{n}.logits"] = logits[:, ::SPARSE].contiguous()
        layers = model.mixtures()
        tensors[f"{n}.routes"] = torch.stack([m.routes[0] for m in layers]).int()
        tensors[f"{n}.gates"] = torch.stack([m.gates[0] for m in layers]).contiguous()
        together = model(T.padded(pinned))[n, :len(ids)]
        gap = (together - logits).abs().max().item()
        print(f"sentence {n}, {len(ids)} tokens: padding changes logits by at most {gap:.1e}")
    save_file(tensors, f"{a.out}/reference.safetensors", metadata={"format": "pt"})
    for name in ("model", "reference"):
        os.chmod(f"{a.out}/{name}.safetensors", 0o644)

    # How often each expert is chosen over the test sentences.
    counts = 0
    for ids in held:
        model(torch.tensor([ids]))
        counts = counts + torch.stack([torch.bincount(m.routes.flatten(), minlength=m.n) for m in model.mixtures()])
    for layer, row in enumerate(counts):
        print(f"layer {layer}: share of tokens per expert",
              " ".join(f"{T.SHAPE['top_k'] * x / row.sum():.2f}" for x in row.tolist()))
    print(json.dumps({k: v for k, v in facts.items() if k not in ("sentences", "metric", "typed")}, indent=1))
    for s in facts["typed"]:
        print(s["text"], "->", s["top5_tokens"], s["top5_probabilities"])
    for s in facts["sentences"][:12]:
        print(tok.decode(s["ids"][:-1], skip_special_tokens=False), "->", s["top5_tokens"],
              "| truth", [tok.id_to_token(t) for t in s["labels"]])


def compact(facts):
    """JSON with one line per sentence."""
    parts = []
    for key, value in facts.items():
        if isinstance(value, list):
            body = "[\n" + ",\n".join("  " + json.dumps(v, ensure_ascii=False) for v in value) + "\n ]"
        elif key == "metric":
            rows = ",\n".join("   " + json.dumps(v) for v in value["sentences"])
            head = json.dumps({k: v for k, v in value.items() if k != "sentences"})[:-1]
            body = head + ', "sentences": [\n' + rows + "\n  ]}"
        else:
            body = json.dumps(value, ensure_ascii=False)
        parts.append(f' "{key}": {body}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
