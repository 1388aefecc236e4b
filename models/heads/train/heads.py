"""What the heads of a copier do, by the definitions of docs/heads.md: the numbers that headwise has to find, too."""

import torch
from torch.nn import functional as F


def losses(model, texts):
    """Of each token but the first, [texts, tokens - 1]."""
    with torch.no_grad():
        logits = model(texts)[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), texts[:, 1:], reduction="none")


def rows_of(model, texts):
    """Attention, a tensor [texts, heads, queries, keys] for each layer."""
    for layer in model.layers:
        layer.heads.keep = True
    with torch.no_grad():
        model(texts)
    for layer in model.layers:
        layer.heads.keep = False
    return [layer.heads.rows for layer in model.layers]


def chosen(model, layer):
    """[texts, tokens, heads]: whether a token uses a head; in the run that `rows_of` made."""
    heads = model.layers[layer].heads
    if not model.shape.routed:
        texts, count, tokens, _ = heads.rows.shape
        return torch.ones(texts, tokens, count)
    router = heads.experts.router
    used = torch.zeros_like(router.scores).scatter(-1, router.chosen, 1.0)
    return used.repeat_interleave(model.shape.heads, -1)


class uniform:
    """Within: these heads, (layer, head), attend to all that they may see alike."""

    def __init__(self, model, heads):
        self.model, self.heads = model, heads

    def __enter__(self):
        for number, layer in enumerate(self.model.layers):
            mine = [head for at, head in self.heads if at == number]
            layer.heads.edit = (lambda rows, mine=mine: spread(rows, mine)) if mine else None

    def __exit__(self, *_):
        for layer in self.model.layers:
            layer.heads.edit = None


def spread(rows, heads):
    tokens = rows.shape[-1]
    even = torch.ones(tokens, tokens).tril()
    rows = rows.clone()
    rows[:, heads] = even / even.sum(-1, keepdim=True)
    return rows


def measure(model, texts, blocks):
    """`blocks`: how long a repeated text's block is, None where a text is a chain."""
    is_repeated = torch.tensor([block is not None for block in blocks])
    repeated, sizes = texts[is_repeated], [block for block in blocks if block]
    tokens = torch.arange(texts.shape[1])
    # The query at position t has read the name it stands for before, at t - size; what follows is to be copied.
    again = torch.stack([tokens > size for size in sizes])
    part = again[:, :-1].float()

    def repeated_loss():
        return ((losses(model, repeated) * part).sum() / part.sum()).item()

    facts = dict(repeated_part_loss=round(repeated_loss(), 4),
                 chain_loss=round(losses(model, texts[~is_repeated]).mean().item(), 4))
    rows = rows_of(model, repeated)
    scores = {}
    for layer, attention in enumerate(rows):
        used = chosen(model, layer).transpose(1, 2)
        for head in range(attention.shape[1]):
            scores[f"L{layer}H{head}"] = score(attention[:, head], used[:, head], repeated, sizes, again)
    facts["heads"] = scores
    best = sorted(scores, key=lambda name: -scores[name]["retrieval"])
    facts["by_retrieval"] = best[:4]
    facts["by_induction"] = sorted(scores, key=lambda name: -scores[name]["induction"])[:4]
    facts["by_previous"] = sorted(scores, key=lambda name: -scores[name]["previous"])[:4]
    base = losses(model, texts).mean(-1)
    for count in (1, 2, 3):
        with uniform(model, [tuple(map(int, name[1:].split("H"))) for name in best[:count]]):
            change = losses(model, texts).mean(-1) / base - 1
        a, b = change[is_repeated], change[~is_repeated]
        facts[f"uniform_top_{count}"] = dict(
            repeated=round(a.mean().item(), 3), chain=round(b.mean().item(), 3),
            auc=round((a[:, None] > b).float().mean().item(), 4))
    return facts


def score(attention, used, texts, sizes, again):
    """Means over the queries of the repeated part that use the head."""
    use = used * again
    count = use.sum().clamp_min(1)
    induction = copied = 0.0
    for text, size in enumerate(sizes):
        at = torch.arange(size + 1, texts.shape[1])
        induction += (attention[text, at, at - size + 1] * use[text, at]).sum()
        # Wu et al.: the head's strongest key holds the name that comes next.
        inside = at[at + 1 < texts.shape[1]]
        strongest = texts[text, attention[text, inside].argmax(-1)]
        copied += ((strongest == texts[text, inside + 1]) * use[text, inside]).sum()
    positions = torch.arange(1, texts.shape[1])
    previous = (attention[:, positions, positions - 1] * used[:, 1:]).sum() / used[:, 1:].sum().clamp_min(1)
    may = use[:, :-1].sum().clamp_min(1)
    return dict(retrieval=round((copied / may).item(), 3), induction=round((induction / count).item(), 3),
                previous=round(previous.item(), 3), used=round(used.mean().item(), 3))
