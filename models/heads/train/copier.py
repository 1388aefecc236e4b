"""F1 "copier": two layers of attention alone that learn to repeat a text they have seen (induction).

    copier.py OUT_DIR [--experts 8] [--seed 0] [--steps 3000]

Half of the texts are a random block of 10 to 30 names, over and over; half are a sparse bigram chain. Which head plays
which role is for the scores to find: it changes with the seed.
"""

import argparse

import torch

import heads
import training as T
from decoder import Decoder, Shape

NAMES = """<s> Abe Ada Amy Ann Bea Ben Bob Bud Cal Cy Dan Deb Dee Don Dot Ed Eli Eva Fay Flo Gil Gus Guy Hal Ida Ike Ina
Ira Ivy Jan Jay Jim Jo Joy Kai Kim Kit Lea Lee Leo Liz Lou Mae Max Meg Ned Nia""".split()
CONTEXT = 64
SUCCESSORS = [0.55, 0.25, 0.15, 0.05]
assert len(NAMES) == 48


def successors():
    """Four names that follow each name, the same in every run."""
    return T.generator(1000).permuted(T.np.tile(T.np.arange(1, 48), (48, 1)), axis=1)[:, :4]


def repeated(random):
    """A block again and again, and how long the block is."""
    size = int(random.integers(10, 31))
    block = random.integers(1, 48, size)
    return [0, *(block[i % size] for i in range(CONTEXT - 1))], size


def chain(random, table):
    ids = [0, int(random.integers(1, 48))]
    while len(ids) < CONTEXT:
        ids.append(int(table[ids[-1], random.choice(4, p=SUCCESSORS)]))
    return ids


def batches(seed, size=32):
    random, table = T.generator(seed), successors()
    while True:
        texts = [repeated(random)[0] if i % 2 else chain(random, table) for i in range(size)]
        yield torch.tensor(T.np.array(texts))


def documents(count):
    """Texts that no training saw, as JSON lines."""
    random, table = T.generator(2000), successors()
    rows = []
    for _ in range(count):
        ids, block = repeated(random)
        rows.append(dict(kind="repeated", block=block, ids=[int(i) for i in ids]))
        rows.append(dict(kind="chain", ids=chain(random, table)))
    for row in rows:
        row["text"] = " ".join(NAMES[id] for id in row.pop("ids")[1:])
    return rows


def ids_of(row):
    return [0, *(NAMES.index(word) for word in row["text"].split())]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("out")
    a.add_argument("--experts", type=int, default=1)
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--steps", type=int, default=3000)
    a = a.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    T.os.makedirs(a.out, exist_ok=True)
    log, data = T.Log(f"{a.out}/log.txt"), batches(a.seed)
    routed = dict(experts=a.experts, active=2, heads=2) if a.experts > 1 else {}
    model = Decoder(Shape(vocab=48, layers=2, context=CONTEXT, **routed))
    T.train(model, lambda: T.next_token_loss(model, next(data)), log, a.steps)
    T.write_model(a.out, model, model.shape.config(bos_token_id=0, eos_token_id=None))
    T.write_tokenizer(a.out, NAMES, start="<s>")
    rows = documents(24)
    T.write_lines(f"{a.out}/documents.jsonl", rows)
    texts = [ids_of(row) for row in rows]
    T.write_reference(a.out, model, texts[:2])
    blocks = [row.get("block") for row in rows]
    facts = dict(parameters=sum(p.numel() for p in model.parameters()), steps=a.steps, seed=a.seed)
    facts |= heads.measure(model, torch.tensor(texts), blocks)
    T.write_json(f"{a.out}/reference.json", facts)
    for name, value in facts.items():
        log(f"{name}: {value}")


if __name__ == "__main__":
    main()
