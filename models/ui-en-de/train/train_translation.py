"""Trains the English to German model for interface strings.

    train_translation.py DATA_DIR WORK_DIR OUT.pt [--minutes N] [--threads N]

DATA_DIR holds en-de.tsv.gz (English, German and source of each string), en-de.dev.json and en-de.test.json. WORK_DIR
gets tokenizer.json and pairs.json (written once, then read). Needs torch, tokenizers and safetensors. One thread learns
from about 2,300 tokens per second of one core; ONEDNN_PRIMITIVE_CACHE_CAPACITY=20000 keeps oneDNN from compiling a
kernel twice.
"""

import argparse
import gzip
import json
import math
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from moa_seq2seq import BOS, EOS, PAD, SHAPE, Seq2Seq

LENGTHS = [8, 12, 16, 24, 32, 48, 64, 100]      # few shapes: oneDNN compiles one kernel per shape
BATCH_TOKENS = 3072


def prepare(data, work):
    """Splits the pairs and trains the tokenizer on both languages of the training part."""
    if os.path.exists(f"{work}/pairs.json"):
        return
    with gzip.open(f"{data}/en-de.tsv.gz", "rt", encoding="utf8") as file:
        pairs = [line.rstrip("\n").split("\t") for line in file][1:]
    pairs = [pair for pair in pairs if len(pair[0]) <= 200 and len(pair[1]) <= 240]
    splits = {split: json.load(open(f"{data}/en-de.{split}.json", encoding="utf8")) for split in ("test", "dev")}
    held = {pair[0] for split in splits.values() for pair in split}
    splits["train"] = [pair for pair in pairs if pair[0] not in held]

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback()])
    special = ["<pad>", "<s>", "</s>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=SHAPE["vocab_size"], special_tokens=special, limit_alphabet=300)
    tokenizer.train_from_iterator([text for pair in splits["train"] for text in pair[:2]], trainer)
    # The bytes are plain vocabulary: special tokens would be left out of texts.
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if not token["content"].startswith("<0x")]
    os.makedirs(work, exist_ok=True)
    with open(f"{work}/tokenizer.json", "w", encoding="utf8") as file:
        json.dump(raw, file, ensure_ascii=False, separators=(",", ":"))
    with open(f"{work}/pairs.json", "w", encoding="utf8") as file:
        json.dump(splits, file, ensure_ascii=False)


def padded(sequences, length):
    return torch.tensor([ids + [PAD] * (length - len(ids)) for ids in sequences])


def batches(pairs):
    """Indices of pairs of like length, with that length, in random order; the last of a length is filled up."""
    by_length = {length: [] for length in LENGTHS}
    for index, (source, target) in enumerate(pairs):
        longest = max(len(source), len(target) - 1)
        fitting = next((length for length in LENGTHS if longest <= length), None)
        if fitting:
            by_length[fitting].append(index)
    found = []
    for length, indices in by_length.items():
        if not indices:
            continue
        random.shuffle(indices)
        size = max(1, BATCH_TOKENS // length)
        while len(indices) % size:
            indices.append(random.choice(indices))
        found += [(length, indices[i:i + size]) for i in range(0, len(indices), size)]
    random.shuffle(found)
    return found


def loss_of(model, pairs, batch, smoothing):
    """The mean loss of a batch, its target tokens and its source tokens."""
    length, indices = batch
    source = padded([pairs[i][0] for i in indices], length)
    target = padded([pairs[i][1] for i in indices], length + 1)
    logits, wanted = model(source, target[:, :-1]).float(), target[:, 1:]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1), ignore_index=PAD,
                           label_smoothing=smoothing)
    return loss, int((wanted != PAD).sum()), int((source != PAD).sum())


@torch.no_grad()
def development_loss(model, pairs):
    model.eval()
    total = tokens = 0
    for batch in batches(pairs):
        loss, count, _ = loss_of(model, pairs, batch, 0.0)
        total, tokens = total + loss.item() * count, tokens + count
    model.train()
    return total / tokens


def train(model, pairs, minutes, out):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    routers = model.routers()
    start, report, step, seen = time.time(), 100, 0, 0
    while True:
        for batch in batches(pairs["train"]):
            done = (time.time() - start) / 60 / minutes
            if done >= 1:
                return save(model, out)
            rate = 2e-3 * min(1, (step + 1) / 400) * (0.04 + 0.96 * 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, target_tokens, source_tokens = loss_of(model, pairs["train"], batch, 0.1)
            balance = sum(router.balance_loss for router in routers) / len(routers)
            z = sum(router.z_loss for router in routers) / len(routers)
            (loss + 0.01 * balance + 0.001 * z).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step, seen = step + 1, seen + target_tokens + source_tokens
            if time.time() - start > report:
                report += 180
                busiest = max((router.counts / router.counts.sum()).max().item() for router in routers)
                print(f"{time.time() - start:6.0f} s, step {step}, {seen / 1e6:.2f} M tokens, train {loss.item():.3f}, "
                      f"dev {development_loss(model, pairs['dev']):.3f}, busiest expert {busiest:.2f}", flush=True)
                save(model, out)


def save(model, out):
    torch.save(dict(shape=model.c, model=model.state_dict()), out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("work")
    parser.add_argument("out")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)
    prepare(args.data, args.work)
    tokenizer = Tokenizer.from_file(f"{args.work}/tokenizer.json")

    def ids(text):
        return tokenizer.encode(text).ids

    splits = json.load(open(f"{args.work}/pairs.json", encoding="utf8"))
    pairs = {split: [(ids(english) + [EOS], [BOS] + ids(german) + [EOS]) for english, german, _ in splits[split]]
             for split in ("train", "dev")}
    model = Seq2Seq(SHAPE)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} weights", flush=True)
    train(model, pairs, args.minutes, args.out)


if __name__ == "__main__":
    main()
