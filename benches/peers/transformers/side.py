"""PyTorch on the CPU with transformers' JetMoe classes, default threads, f32: answers requests, one JSON a line.

    {"op": "load", "model": FOLDER}                        -> {"what": ...}
    {"op": "generate", "prompt": [ids], "new": N}          -> {"ids": [...], "first_s": ..., "rest_s": ...}
    {"op": "matmul", "n": N}                               -> {"gflops": ...}
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file
from transformers import JetMoeConfig, JetMoeForCausalLM

# The names that jetmoe-8b's own config has, and transformers' names for them.
OLD_NAMES = {
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "moe_num_experts": "num_local_experts",
    "moe_top_k": "num_experts_per_tok",
}
FIELDS = [
    "vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "kv_channels", "intermediate_size",
    "num_local_experts", "num_experts_per_tok", "max_position_embeddings", "rms_norm_eps", "rope_theta",
]


def load(request):
    global model
    folder = request["model"]
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    for old, new in OLD_NAMES.items():
        if old in config:
            config[new] = config[old]
    model = JetMoeForCausalLM(JetMoeConfig(**{name: config[name] for name in FIELDS}, tie_word_embeddings=True))
    weights = {name: tensor.float() for name, tensor in load_file(os.path.join(folder, "model.safetensors")).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"{folder}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.eval()
    return {"what": f"PyTorch {torch.__version__}, transformers {transformers.__version__}, f32, {torch.get_num_threads()} threads"}


@torch.inference_mode()
def generate(request):
    """A plain greedy loop: quicker than `model.generate`, whose checks cost a few per cent at this size."""
    ids, past = [], None
    feed = torch.tensor([request["prompt"]])
    start = first = time.perf_counter()
    for i in range(request["new"]):
        out = model(input_ids=feed, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        feed = out.logits[:, -1:].argmax(-1)
        ids.append(int(feed))
        if i == 0:
            first = time.perf_counter()
    return {"ids": ids, "first_s": first - start, "rest_s": time.perf_counter() - first}


@torch.inference_mode()
def matmul(request):
    n = request["n"]
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    count = max(1, round(4e9 / (2 * n**3)))
    start = time.perf_counter()
    for _ in range(count):
        a @ b
    return {"gflops": 2 * n**3 * count / (time.perf_counter() - start) / 1e9}


OPS = {"load": load, "generate": generate, "matmul": matmul}
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what libraries print must not mix with the answers
for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = OPS[request["op"]](request)
    except Exception as error:  # noqa: BLE001: it becomes the table's "cannot"
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
