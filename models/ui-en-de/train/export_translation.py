"""Writes the trained model of train_translation.py as the files that ship, with reference outputs.

    export_translation.py WORK_DIR MODEL.pt OUT_DIR [--pairs N]

What ships is f16; the references are f32 arithmetic on those f16 weights. Needs sacrebleu too.
"""

import argparse
import json
import os
import shutil

import sacrebleu
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import reference_decoder as decoder
from moa_seq2seq import BOS, EOS, PAD, UNK, load_shipped, shipped_name, transposed

BEAMED = 100        # sentences decoded with beams too
PINNED = 3          # sentences with the encoder's output and logits
SPARSE = 16         # of their logits, those of every sixteenth token


def config(c):
    return dict(
        model_type="moa", task="translation", source_language="en", target_language="de",
        vocab_size=c["vocab_size"], d_model=c["d_model"], encoder_layers=c["encoder_layers"],
        decoder_layers=c["decoder_layers"], num_experts=c["num_experts"], top_k=c["top_k"], heads_per_expert=1,
        head_dim=c["head_dim"], ffn_dim=c["ffn_dim"], activation="relu", norm="layer_norm", norm_position="pre",
        norm_eps=1e-5, positions="sinusoidal", max_positions=c["max_positions"], scale_embedding=True,
        tie_embeddings=True, gate_weights="softmax_renormalized", gate_eps=1e-6, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS, unk_token_id=UNK, torch_dtype="float16")


def write_model(work, checkpoint, out):
    saved = torch.load(checkpoint, weights_only=True)
    tensors = {shipped_name(name): transposed(name, weight).half().contiguous()
               for name, weight in saved["model"].items()}
    os.makedirs(out, exist_ok=True)
    save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
    with open(f"{out}/config.json", "w") as file:
        json.dump(config(saved["shape"]), file, indent=1)
    shutil.copy(f"{work}/tokenizer.json", f"{out}/tokenizer.json")


def reference_text(model, tokenizer, pairs, sources):
    """What reference.json holds."""
    greedy = decoder.greedy_in_batches(model, sources)
    beamed = [decoder.beam(model, source) for source in sources[:BEAMED]]
    texts = [decoder.text(tokenizer, ids) for ids in greedy]
    beamed_texts = [decoder.text(tokenizer, ids) for ids in beamed]
    german = [pair[1] for pair in pairs]

    def bleu(found):
        return sacrebleu.corpus_bleu(found, [german[:len(found)]]).score

    return dict(
        test=[dict(en=english, de=german, source=source) for english, german, source in pairs],
        greedy_ids=greedy[:200], greedy_text=texts, beam4_ids=beamed,
        bleu_greedy=bleu(texts), chrf_greedy=sacrebleu.corpus_chrf(texts, [german]).score,
        bleu_beam4_first100=bleu(beamed_texts), bleu_greedy_first100=bleu(texts[:BEAMED]),
        sacrebleu=sacrebleu.__version__, signature="BLEU 13a, case sensitive, exp smoothing")


@torch.no_grad()
def reference_numbers(model, sources, greedy):
    """What reference.safetensors holds."""
    numbers = {}
    for i in range(PINNED):
        source, target = sources[i], [BOS] + greedy[i][:-1]
        memory, mask = model.encode(torch.tensor([source]))
        numbers[f"{i}.encoder"] = memory[0].contiguous()
        numbers[f"{i}.logits"] = model.decode(torch.tensor([target]), memory, mask)[0, :, ::SPARSE].contiguous()
        numbers[f"{i}.source"] = torch.tensor(source, dtype=torch.int32)
        numbers[f"{i}.target"] = torch.tensor(target, dtype=torch.int32)
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work")
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("--pairs", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_model(args.work, args.checkpoint, args.out)
    model = load_shipped(args.out)
    tokenizer = Tokenizer.from_file(f"{args.out}/tokenizer.json")
    pairs = json.load(open(f"{args.work}/pairs.json", encoding="utf8"))["test"][:args.pairs]
    sources = [tokenizer.encode(english).ids + [EOS] for english, _, _ in pairs]
    reference = reference_text(model, tokenizer, pairs, sources)
    with open(f"{args.out}/reference.json", "w", encoding="utf8") as file:
        json.dump(reference, file, ensure_ascii=False, indent=0)
    save_file(reference_numbers(model, sources, reference["greedy_ids"]), f"{args.out}/reference.safetensors")
    for name in ("bleu_greedy", "chrf_greedy", "bleu_greedy_first100", "bleu_beam4_first100"):
        print(f"{name} {reference[name]:.2f}")


if __name__ == "__main__":
    main()
