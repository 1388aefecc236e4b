"""F2 "in-context tasks": eight hidden permutations of 24 symbols; five examples in the prompt tell which one is asked for.

    tasks.py OUT_DIR [--experts 8] [--seed 0] [--steps 3000]

A prompt is `<s>`, then for each example a symbol, `>`, what it becomes, `;`, and last a symbol and `>`.
"""

import argparse

import torch

import training as T
from decoder import Decoder, Shape

SYMBOLS = """ant ape bat bee cat cod cow cub dog elk emu ewe fly fox gnu hen jay koi owl pig ram rat sow yak""".split()
WORDS = ["<s>", ">", ";", *SYMBOLS]
TASKS, SHOTS, FIRST = 8, 5, 3


def permutations():
    """[tasks, symbols], the same in every run."""
    random = T.generator(3000)
    return T.np.stack([random.permutation(len(SYMBOLS)) for _ in range(TASKS)])


def prompts(random, tasks, count, shots=SHOTS):
    """`count` prompts with their answers: ids [count, 4 · (shots + 1)], and the task of each."""
    task = random.integers(0, TASKS, count)
    asked = random.permuted(T.np.tile(T.np.arange(len(SYMBOLS)), (count, 1)), axis=1)[:, : shots + 1]
    parts = [FIRST + asked, T.np.full_like(asked, 1), FIRST + T.np.take_along_axis(tasks[task], asked, 1),
             T.np.full_like(asked, 2)]
    ids = T.np.stack(parts, -1).reshape(count, -1)[:, :-1]
    return torch.tensor(T.np.concatenate([T.np.zeros((count, 1), int), ids], 1)), task


def loss(model, ids):
    """Of the answers alone, those of the examples included."""
    labels = torch.full_like(ids, T.IGNORED)
    labels[:, 3::4] = ids[:, 3::4]
    return T.next_token_loss(model, ids, labels)


def right(model, ids):
    """[prompts]: whether the last token is what the model says there."""
    with torch.no_grad():
        return (model(ids[:, :-1])[:, -1].argmax(-1) == ids[:, -1]).float()


def zero_shot(ids):
    """The same question without examples."""
    return torch.cat([ids[:, :1], ids[:, -3:]], 1)


def z_of_last(model, ids):
    """z of every head at the last token of the prompt, [layers][prompts, heads, dim]; where heads are routed, of those too
    that the token did not choose."""
    for layer in model.layers:
        layer.heads.keep = True
    with torch.no_grad():
        model(ids[:, :-1])
    for layer in model.layers:
        layer.heads.keep = False
    return [layer.heads.z[:, -1] for layer in model.layers]


def injected(model, ids, means, share):
    """How often a question without examples is answered right when its last z is mixed with the mean of prompts that
    have some."""
    for layer, mean in zip(model.layers, means):
        def change(z, mean=mean):
            last = (1 - share) * z[:, -1:] + share * mean
            return torch.cat([z[:, :-1], last], 1)
        layer.heads.change = change
    value = right(model, zero_shot(ids)).mean().item()
    for layer in model.layers:
        layer.heads.change = None
    return value


def measure(model, tasks):
    random = T.generator(4000)
    facts = {"five_shot": [], "zero_shot": [], "injected_half": [], "injected_whole": []}
    ids, task = prompts(random, tasks, 1600)
    for number in range(TASKS):
        mine = ids[torch.tensor(task == number)]
        means = [z.mean(0) for z in z_of_last(model, mine[:50])]
        facts["five_shot"].append(right(model, mine).mean().item())
        facts["zero_shot"].append(right(model, zero_shot(mine)).mean().item())
        facts["injected_half"].append(injected(model, mine[50:], means, 0.5))
        facts["injected_whole"].append(injected(model, mine[50:], means, 1.0))
    return {name: [round(value, 3) for value in values] for name, values in facts.items()}


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
    log, random, tasks = T.Log(f"{a.out}/log.txt"), T.generator(a.seed), permutations()
    kind = dict(experts=a.experts, active=2, heads=2, hidden=16) if a.experts > 1 else dict(hidden=128)
    model = Decoder(Shape(vocab=len(WORDS), layers=3, context=64, **kind))
    T.train(model, lambda: loss(model, prompts(random, tasks, 64)[0]), log, a.steps)
    T.write_model(a.out, model, model.shape.config(bos_token_id=0, eos_token_id=None))
    T.write_tokenizer(a.out, WORDS, start="<s>")
    ids, _ = prompts(T.generator(5000), tasks, 4)
    T.write_reference(a.out, model, ids.tolist())
    # As SNU-DRL/Soft_Injection has its tasks: pairs of an input and its output. The same for both models.
    for number, task in enumerate(tasks if a.experts == 1 else []):
        pairs = [dict(input=symbol, output=SYMBOLS[task[at]]) for at, symbol in enumerate(SYMBOLS)]
        T.write_json(f"{a.out}/task-{number}.json", dict(train=pairs[:12], test=pairs[12:]))
    facts = dict(parameters=sum(p.numel() for p in model.parameters()), steps=a.steps, seed=a.seed)
    facts |= measure(model, tasks)
    T.write_json(f"{a.out}/reference.json", facts)
    for name, value in facts.items():
        log(f"{name}: {value}")


if __name__ == "__main__":
    main()
