"""How the models of models/heads are trained and written."""

import json
import math
import os
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

IGNORED = -100


class Log:
    """Lines to the screen and to a file, with the time."""

    def __init__(self, path):
        self.file, self.start = open(path, "w"), time.time()

    def __call__(self, line):
        line = f"{time.time() - self.start:6.1f} s  {line}"
        print(line, file=self.file, flush=True)
        print(line, flush=True)


def next_token_loss(model, ids, labels=None):
    """Mean cross-entropy of what follows; of `labels` where they are not IGNORED."""
    labels = ids[:, 1:] if labels is None else labels[:, 1:]
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def train(model, loss, log, steps=3000, rate=3e-3, last=1e-4, warm_up=100, balance=0.001, parameters=None):
    """Adam; the rate rises over `warm_up` steps and falls as a cosine. `loss()` is of a fresh batch."""
    parameters = list(parameters or model.parameters())
    adam = torch.optim.Adam(parameters, lr=rate)
    for step in range(steps):
        done = step / steps
        now = last + (rate - last) * (1 + math.cos(math.pi * done)) / 2
        adam.param_groups[0]["lr"] = now * min(1, (step + 1) / warm_up)
        value = loss()
        routers = getattr(model, "routers", [])
        total = value + balance * sum(router.balance for router in routers)
        adam.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()
        if step % 250 == 249 or step == 0:
            log(f"step {step + 1}: loss {value.item():.4f}")


def rounded(model):
    """Rounds the model's weights to what ships, in place, and returns them in f16."""
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    model.eval()
    return half


def write_json(path, value):
    """One line for each field."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
    with open(path, "w") as file:
        file.write("{\n" + lines + "\n}\n")


def write_lines(path, rows):
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_tensors(path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    os.chmod(path, 0o644)


def write_model(folder, model, config):
    """config.json and model.safetensors; from here on the model has the weights that ship."""
    os.makedirs(folder, exist_ok=True)
    write_tensors(f"{folder}/model.safetensors", rounded(model))
    write_json(f"{folder}/config.json", config)


def write_reference(folder, model, texts):
    """The logits of some texts, in f32 arithmetic on the weights that ship."""
    tensors = {}
    with torch.no_grad():
        for number, ids in enumerate(texts):
            tensors[f"{number}.ids"] = torch.tensor(ids, dtype=torch.int32)
            tensors[f"{number}.logits"] = model(torch.tensor([ids]))[0]
    write_tensors(f"{folder}/reference.safetensors", tensors)


def write_tokenizer(folder, words, start=None):
    """A word between blanks is a token; a text begins with `start`, if there is one."""
    special = [] if start is None else [start]
    added = [dict(id=words.index(word), content=word, single_word=False, lstrip=False, rstrip=False,
                  normalized=False, special=True) for word in special]
    template = None if start is None else dict(
        type="TemplateProcessing",
        single=[{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        pair=[{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"Sequence": {"id": "B", "type_id": 1}}],
        special_tokens={start: dict(id=start, ids=[words.index(start)], tokens=[start])})
    tokenizer = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                     pre_tokenizer=dict(type="WhitespaceSplit"), post_processor=template,
                     decoder=None,
                     model=dict(type="WordLevel", vocab={word: id for id, word in enumerate(words)},
                                unk_token=words[0]))
    with open(f"{folder}/tokenizer.json", "w") as file:
        json.dump(tokenizer, file, separators=(",", ":"))
        file.write("\n")


def generator(seed):
    """Random numbers that are the same everywhere."""
    return np.random.Generator(np.random.PCG64(seed))
