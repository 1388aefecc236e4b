"""PyTorch on the same card, in the same run: one JSON object a line, as soon as it is known.

    torch_side.py yardsticks                 copies, products, and the matrix-vector products of a decoded token in a CUDA graph
    torch_side.py transformers --model DIR   transformers' JetMoe on the same weights: decoding and prompts

--small: small sizes, on a CPU where there is no CUDA. Where something is missing, `missing` names it, and the exit code is 2.
"""

import argparse
import json
import os
import statistics
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
# What libraries print must not mix with the answers.
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

# Rounds of a measurement, of which the median counts, and the seconds of each; with --small, fewer.
ROUNDS, SECONDS = 5, 0.1
SMALL_ROUNDS, SMALL_SECONDS = 2, 0.01


def tell(**values):
    print(json.dumps(values), file=answers, flush=True)


def lacks(what):
    tell(missing=what)
    sys.exit(2)


try:
    import torch
except ImportError as why:
    lacks(f"{sys.executable} has no PyTorch: {why}")


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work, device, small):
    """Median, least and most of one turn."""
    rounds, seconds = (SMALL_ROUNDS, SMALL_SECONDS) if small else (ROUNDS, SECONDS)
    work()
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    turns = max(1, min(1000, round(seconds / max(1e-6, time.perf_counter() - start))))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(turns):
            work()
        wait(device)
        found.append((time.perf_counter() - start) / turns)
    return statistics.median(found), min(found), max(found)


def rate(amount, work, device, small):
    middle, least, most = seconds_of(work, device, small)
    return {"median": amount / middle, "least": amount / most, "most": amount / least}


@torch.inference_mode()
def yardsticks(device, small):
    copies = [1 << 20, 1 << 22] if small else [64 << 20, 1 << 30]
    for count in copies:
        source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        # Bytes read and bytes written both count, as in `headwise bench`.
        tell(**{f"copy {count >> 20} MiB": rate(2 * count, lambda: target.copy_(source), device, small)})
    del source, target

    kinds = [("f32", torch.float32, False), ("tf32", torch.float32, True), ("f16", torch.float16, False)]
    for n in [256] if small else [4096, 8192]:
        for name, dtype, tf32 in kinds:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            tell(**{f"matmul {name} {n}": rate(2 * n**3, lambda: a @ b, device, small)})
    torch.backends.cuda.matmul.allow_tf32 = False
    decoded_token(device, small)


def decoded_token(device, small):
    """The matrix-vector products of one token of 8 layers of JetMoE-8B, f16, all in one graph: a floor for decoding."""
    width, mlp, vocab, layers = (256, 512, 2048, 2) if small else (2048, 5632, 32000, 8)
    attention = [(2 * width, width)] + 2 * [(width, width), (width, width)]
    shapes = layers * (attention + 2 * [(2 * mlp, width), (width, mlp)]) + [(vocab, width)]
    matrices = [torch.randn(shape, device=device, dtype=torch.float16) for shape in shapes]
    inputs = {columns: torch.randn(columns, device=device, dtype=torch.float16) for _, columns in shapes}
    amount = 2 * sum(rows * columns for rows, columns in shapes)

    def work():
        for matrix in matrices:
            torch.mv(matrix, inputs[matrix.shape[1]])

    if device == "cuda":
        work()
        wait(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        run, how = graph.replay, "CUDA graph"
    else:
        run, how = work, "no graph: a CPU"
    found = rate(amount, run, device, small)
    tell(**{"matvecs of a token": found | {"bytes": amount, "tokens_per_second": found["median"] / amount, "how": how}})


# The names that jetmoe-8b's own config has, and transformers' names for them.
OLD_NAMES = {
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "moe_num_experts": "num_local_experts",
    "moe_top_k": "num_experts_per_tok",
    "layer_norm_epsilon": "rms_norm_eps",
}
FIELDS = [
    "vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "kv_channels", "intermediate_size",
    "num_local_experts", "num_experts_per_tok", "max_position_embeddings", "rms_norm_eps", "rope_theta",
]


def load(folder, device, dtype):
    from safetensors.torch import load_file
    from transformers import JetMoeConfig, JetMoeForCausalLM

    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    for old, new in OLD_NAMES.items():
        config[new] = config.get(new, config.get(old))
    config = JetMoeConfig(**{name: config[name] for name in FIELDS}, tie_word_embeddings=True)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = JetMoeForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    weights = load_file(os.path.join(folder, "model.safetensors"), device=device)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval(), config


@torch.inference_mode()
def generate(model, prompt, new, device):
    """A plain greedy loop: quicker than `model.generate`, whose checks take longer than a small step."""
    ids, past = [], None
    feed = torch.tensor([prompt], device=device)
    wait(device)
    start = first = time.perf_counter()
    for i in range(new):
        out = model(input_ids=feed, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        feed = out.logits[:, -1:].argmax(-1)
        ids.append(int(feed))
        if i == 0:
            first = time.perf_counter()
    return ids, first - start, time.perf_counter() - first


def run_transformers(folder, device, small):
    try:
        import transformers
    except ImportError as why:
        lacks(f"{sys.executable} has no transformers: {why}")
    start = time.perf_counter()
    # A CPU multiplies 16-bit floats slowly.
    dtype = torch.float16 if device == "cuda" else torch.float32
    model, config = load(folder, device, dtype)
    tell(transformers=transformers.__version__, dtype=str(dtype), load_seconds=time.perf_counter() - start)
    vocab = config.vocab_size
    new, rounds = (8, 2) if small else (64, 3)
    for length in [16, 128] if small else [16, 128, 512]:
        prompt = [3 + (7919 * place) % (vocab - 3) for place in range(length)]
        generate(model, prompt, 2, device)
        found = [generate(model, prompt, new if length == 16 else 1, device) for _ in range(rounds)]
        first = statistics.median(seconds for _, seconds, _ in found)
        tell(**{f"prefill {length}": {"seconds": first, "tokens_per_second": length / first}})
        if length == 16:
            rest = statistics.median(seconds for _, _, seconds in found)
            tell(decode={"seconds": rest, "tokens": new - 1, "tokens_per_second": (new - 1) / rest})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["yardsticks", "transformers"])
    parser.add_argument("--model")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.small:
        lacks("PyTorch sees no CUDA device")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    tell(torch=torch.__version__, device=name)
    if options.what == "yardsticks":
        yardsticks(device, options.small)
    else:
        run_transformers(options.model, device, options.small)


if __name__ == "__main__":
    main()
