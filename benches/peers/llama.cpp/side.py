"""llama.cpp's Vulkan backend, through llama-cpp-python: answers requests, one JSON a line.

    side.py CACHE
    {"op": "load", "model": FOLDER}                -> {"what": ..., "adapter": ...}
    {"op": "generate", "prompt": [ids], "new": N}  -> {"ids": [...], "first_s": ..., "rest_s": ...}

It runs a random mixture of the same active size as the folder's model (write_mixture.py), so its ids are its own.
"""

import ctypes
import json
import os
import re
import sys
import time

import llama_cpp
import numpy as np
from write_mixture import write

said = []


@llama_cpp.llama_log_callback
def log(level, text, data):
    said.append(text.decode(errors="replace"))
    sys.stderr.write(said[-1])


def load(request):
    global model, context, vocab
    folder = request["model"]
    path = os.path.join(sys.argv[1], os.path.basename(folder.rstrip("/")) + ".gguf")
    if not os.path.exists(path):
        os.makedirs(sys.argv[1], exist_ok=True)
        write(folder, path + ".partial")
        os.replace(path + ".partial", path)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_default_params()
    options.n_gpu_layers = 999
    model = llama_cpp.llama_model_load_from_file(path.encode(), options)
    if not model:
        raise RuntimeError("".join(said).strip().splitlines()[-1])
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = min(1024, llama_cpp.llama_model_n_ctx_train(model))
    options.n_batch = options.n_ubatch = 512
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("".join(said).strip().splitlines()[-1])
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    devices = re.findall(r"ggml_vulkan: \d+ = (.*?) \|", "".join(said))
    return {
        "what": f"llama-cpp-python {llama_cpp.__version__}, f16, a random Mixtral of the same active size",
        "adapter": ", ".join(devices) or "none",
    }


def next_id(ids):
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))):
        raise RuntimeError("llama_decode failed")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, (vocab,)).argmax())


def generate(request):
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    start = time.perf_counter()
    ids = [next_id(request["prompt"])]
    first = time.perf_counter()
    while len(ids) < request["new"]:
        ids.append(next_id(ids[-1:]))
    return {"ids": ids, "first_s": first - start, "rest_s": time.perf_counter() - first}


OPS = {"load": load, "generate": generate}
answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)  # what libraries print must not mix with the answers
for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = OPS[request["op"]](request)
    except Exception as error:  # noqa: BLE001: it becomes the table's "cannot"
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
