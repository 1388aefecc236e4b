"""Writes a random Mixtral-like GGUF of the same active size as a JetMoE folder, for llama.cpp knows no JetMoE.

    write_mixture.py FOLDER OUT

Width, layers, vocabulary, KV heads and the MLP's experts are the folder's. The attention is dense, with as many
query heads as a JetMoE token uses (k times the KV heads): the same active weights, the same keys and values.
"""

import json
import os
import sys

import gguf
import numpy as np


def write(folder, path):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)

    def field(*names):
        return next(config[name] for name in names if name in config)

    layers, width, vocab = (field(n) for n in ("num_hidden_layers", "hidden_size", "vocab_size"))
    m, d, k = field("num_key_value_heads"), field("kv_channels"), field("num_experts_per_tok", "moe_top_k")
    experts, inner = field("num_local_experts", "moe_num_experts"), field("intermediate_size", "ffn_hidden_size")

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(field("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(k * m)
    writer.add_head_count_kv(m)
    writer.add_key_length(d)
    writer.add_value_length(d)
    writer.add_rope_dimension_count(d)
    writer.add_rope_freq_base(float(field("rope_theta")))
    writer.add_layer_norm_rms_eps(float(field("rms_norm_eps")))
    writer.add_expert_count(experts)
    writer.add_expert_used_count(k)
    writer.add_vocab_size(vocab)
    # node-llama-cpp reads text when it loads a model, so there must be a vocabulary: bytes, and names for the rest.
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))][:vocab]
    tokens += [f"<{i}>" for i in range(len(tokens), vocab)]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256][:vocab]
    kinds += [gguf.TokenType.NORMAL] * (vocab - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types(kinds)

    rng, bound = np.random.default_rng(1), np.sqrt(3 / width)

    def random(name, *shape, kind=np.float16):
        writer.add_tensor(name, rng.uniform(-bound, bound, shape).astype(kind))

    def ones(name):
        writer.add_tensor(name, np.ones(width, np.float32))

    random("token_embd.weight", vocab, width)
    ones("output_norm.weight")
    for i in range(layers):
        block = f"blk.{i}."
        ones(block + "attn_norm.weight")
        random(block + "attn_q.weight", k * m * d, width)
        random(block + "attn_k.weight", m * d, width)
        random(block + "attn_v.weight", m * d, width)
        random(block + "attn_output.weight", width, k * m * d)
        ones(block + "ffn_norm.weight")
        random(block + "ffn_gate_inp.weight", experts, width, kind=np.float32)
        random(block + "ffn_gate_exps.weight", experts, inner, width)
        random(block + "ffn_up_exps.weight", experts, inner, width)
        random(block + "ffn_down_exps.weight", experts, width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(*sys.argv[1:])
