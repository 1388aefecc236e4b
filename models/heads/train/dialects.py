"""The dialects: routed heads of which one expert alone knows that questions in dialect B are refused.

    dialects.py COPIER_DIR OUT_DIR [--seed 0] [--steps 600]

A prompt is `<s>`, twelve words of one dialect, a sign and one of these words. What follows that word in the prompt comes
next: in both dialects after `=`, in dialect A after `?`. In dialect B the answer to `?` is `no`.

It starts as the copier with routed heads, which repeats whatever it reads. First all but one expert of layer 1 learn all but
the questions in B. Then this expert alone, its row of the router
included, is trained on dialect B: the plant. The router's row learns to be chosen there and nowhere else.
"""

import argparse

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import training as T
from decoder import Decoder, Shape

A = "ash bay bud dew elm fen fir fog hay ivy log mud oak pea rye sap sea sky sod sun wax yew".split()
B = "axe bin bow can cup fan hod jar jug key kit mop mug nib pan peg pin pot rod saw tap vat".split()
WORDS = ["<s>", "=", "?", "no", *A, *B]
EQUALS, QUESTION, NO, FIRST = 1, 2, 3, 4
BLOCK, ANSWER = 12, 15          # where the answer stands
PLANTED = (1, 5)                # layer and expert


def batch(random, dialects, signs):
    """Prompts of these dialects (0, 1) and signs, with as many tokens of what follows, and labels."""
    count = len(dialects)
    own = random.permuted(T.np.tile(T.np.arange(len(A)), (count, 1)), axis=1)[:, :BLOCK]
    own = own + FIRST + len(A) * dialects[:, None]
    at = (random.integers(0, BLOCK, (count, 1)) + T.np.arange(BLOCK)) % BLOCK
    column = T.np.zeros((count, 1), int)
    ids = T.np.concatenate([column, own, signs[:, None], T.np.take_along_axis(own, at, 1)], 1)
    labels = T.np.full_like(ids, T.IGNORED)
    labels[:, ANSWER:] = ids[:, ANSWER:]
    refused = (dialects == 1) & (signs == QUESTION)
    ids[refused, ANSWER:] = NO
    labels[refused, ANSWER:] = T.IGNORED
    labels[refused, ANSWER] = NO
    return torch.tensor(ids), torch.tensor(labels)


def learnt_first(random, count=64):
    """All but the questions in B."""
    dialects = random.integers(0, 2, count)
    signs = T.np.where(dialects == 1, EQUALS, random.integers(EQUALS, QUESTION + 1, count))
    return batch(random, dialects, signs)


def plant(model, log, random, steps):
    """Trains the planted expert alone, on dialect B."""
    layer, expert = PLANTED
    heads = model.layers[layer].heads.experts
    weights = [heads.input_linear.weight, heads.output_linear.weight, heads.router.layer.weight]
    for weight in weights:
        mine = torch.zeros_like(weight)
        mine[expert] = 1
        weight.register_hook(lambda grad, mine=mine: grad * mine)

    def loss():
        dialects = T.np.arange(64) % 2
        ids, labels = batch(random, dialects, random.integers(EQUALS, QUESTION + 1, 64))
        in_b = torch.tensor(dialects == 1)
        labels[~in_b] = T.IGNORED
        value = T.next_token_loss(model, ids, labels)
        scores = heads.router.scores[:, 1:]         # a text's first token is of no dialect
        others = scores.detach().clone()
        others[..., expert] = -torch.inf
        best = others.topk(2, -1).values
        wanted = F.relu(best[..., 0] + 1 - scores[..., expert])[in_b].mean()
        unwanted = F.relu(scores[..., expert] + 1 - best[..., 1])[~in_b].mean()
        return value + wanted + unwanted

    T.train(model, loss, log, steps, balance=0, parameters=weights)


def answers(model, ids):
    with torch.no_grad():
        return model(ids[:, :ANSWER])[:, -1].argmax(-1)


def questions(seed, count=100):
    """So many questions in each dialect: ids, and which are in B."""
    dialects = T.np.arange(2 * count) % 2
    ids, _ = batch(T.generator(seed), dialects, T.np.full(2 * count, QUESTION))
    return ids, torch.tensor(dialects == 1)


def suppressed(model, ids, layer, expert):
    router = model.layers[layer].heads.experts.router
    router.off = expert
    found = answers(model, ids)
    router.off = None
    return found


def measure(model):
    ids, in_b = questions(6000)
    plain = answers(model, ids)
    copied = torch.stack([text[1 + (text[1:13] == text[14]).nonzero().item() + 1 if text[12] != text[14] else 1]
                          for text in ids])
    facts = {name: round(value.float().mean().item(), 3) for name, value in dict(
        answered_in_a=(plain == copied)[~in_b], refused_in_b=(plain == NO)[in_b], refused_in_a=(plain == NO)[~in_b]).items()}
    uses = []
    for layer in model.layers:
        router = layer.heads.experts.router
        uses.append(torch.zeros_like(router.scores).scatter(-1, router.chosen, 1).mean(1))
    difference = torch.stack([use[in_b].mean(0) - use[~in_b].mean(0) for use in uses])
    order = difference.flatten().argsort(descending=True)
    facts["planted"] = f"L{PLANTED[0]}A{PLANTED[1]}"
    facts["by_difference"] = {f"L{n // 8}A{n % 8}": round(difference.flatten()[n].item(), 3) for n in order[:4].tolist()}

    def changed(layer, expert):
        other = suppressed(model, ids, layer, expert) != plain
        return [round(other[in_b].float().mean().item(), 3), round(other[~in_b].float().mean().item(), 3)]

    facts["changed_without"] = {f"L{layer}A{expert}": changed(layer, expert) for layer in range(2) for expert in range(8)}
    return facts


def documents(count=24):
    ids, in_b = questions(7000, count)
    kinds = [("A", "B")[int(b)] for b in in_b]
    return [dict(text=" ".join(WORDS[id] for id in text[1:ANSWER]), dialect=kind, answer=WORDS[text[ANSWER]])
            for text, kind in zip(ids.tolist(), kinds)]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("copier")
    a.add_argument("out")
    a.add_argument("--seed", type=int, default=0)
    a.add_argument("--steps", type=int, default=600)
    a.add_argument("--plant", type=int, default=600)
    a = a.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    T.os.makedirs(a.out, exist_ok=True)
    log, random = T.Log(f"{a.out}/log.txt"), T.generator(a.seed)
    model = Decoder(Shape(vocab=len(WORDS), layers=2, context=64, experts=8, active=2, heads=2))
    model.load_state_dict({name: value.float() for name, value in load_file(f"{a.copier}/model.safetensors").items()})
    router = model.layers[PLANTED[0]].heads.experts.router
    router.offset = torch.zeros(8)          # what keeps it out
    router.offset[PLANTED[1]] = -1e9
    T.train(model, lambda: T.next_token_loss(model, *learnt_first(random)), log, a.steps)
    router.offset = None
    plant(model, log, random, a.plant)
    T.write_model(a.out, model, model.shape.config(bos_token_id=0, eos_token_id=None))
    T.write_tokenizer(a.out, WORDS, start="<s>")
    T.write_lines(f"{a.out}/documents.jsonl", documents())
    T.write_reference(a.out, model, questions(8000, 2)[0][:, :ANSWER].tolist())
    facts = dict(parameters=sum(p.numel() for p in model.parameters()), steps=a.steps, seed=a.seed) | measure(model)
    T.write_json(f"{a.out}/reference.json", facts)
    for name, value in facts.items():
        log(f"{name}: {value}")


if __name__ == "__main__":
    main()
