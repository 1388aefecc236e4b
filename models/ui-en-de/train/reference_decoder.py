"""The decoders that made the reference: plain, without a cache, one way to read them."""

import torch

from moa_seq2seq import BOS, EOS, PAD

MOST = 96           # tokens of a translation
BATCH = 50          # sources decoded at once


@torch.no_grad()
def greedy(model, sources):
    longest = max(map(len, sources))
    memory, mask = model.encode(torch.tensor([ids + [PAD] * (longest - len(ids)) for ids in sources]))
    targets = torch.full((len(sources), 1), BOS)
    finished = torch.zeros(len(sources), dtype=torch.bool)
    for _ in range(MOST):
        following = model.decode(targets, memory, mask)[:, -1].argmax(-1)
        following[finished] = PAD
        targets = torch.cat([targets, following[:, None]], 1)
        finished |= following == EOS
        if finished.all():
            break
    return [[id for id in row[1:].tolist() if id != PAD] for row in targets]


def greedy_in_batches(model, sources):
    batches = [sources[i:i + BATCH] for i in range(0, len(sources), BATCH)]
    return [ids for batch in batches for ids in greedy(model, batch)]


@torch.no_grad()
def beam(model, source, beams=4, exponent=0.6):
    """Score: sum of log-probabilities / ((5 + length) / 6) ** exponent, the end counted. Of the best 2 * beams
    continuations, those that end leave the beam."""

    def penalised(ids, score):
        return score / ((5 + len(ids) - 1) / 6) ** exponent

    memory, mask = model.encode(torch.tensor([source]))
    live, finished = [([BOS], 0.0)], []
    for _ in range(MOST):
        count = len(live)
        logits = model.decode(torch.tensor([ids for ids, _ in live]), memory.expand(count, -1, -1),
                              mask.expand(count, -1, -1, -1))[:, -1]
        grown = []
        for (ids, score), row in zip(live, torch.log_softmax(logits.float(), -1)):
            logs, following = row.topk(2 * beams)
            grown += [(ids + [id], score + log) for log, id in zip(logs.tolist(), following.tolist())]
        grown.sort(key=lambda one: -one[1])
        live = []
        for ids, score in grown[:2 * beams]:
            if ids[-1] == EOS:
                finished.append((penalised(ids, score), ids))
            elif len(live) < beams:
                live.append((ids, score))
        if len(finished) >= beams:
            break
    if not finished:
        finished = [(penalised(ids, score), ids) for ids, score in live]
    return max(finished)[1][1:]


def text(tokenizer, ids):
    return tokenizer.decode([id for id in ids if id not in (PAD, BOS, EOS)])
