"""Measures the reference decoder: sentences per second, greedy, on the held-out strings, in batches as the export has
them. Needs torch, tokenizers and safetensors.

    time_reference.py [--sentences N] [--threads N]
"""

import argparse
import json
import os
import time

import torch
from tokenizers import Tokenizer

import reference_decoder as decoder
from moa_seq2seq import EOS, load_shipped

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reference = json.load(open(f"{FOLDER}/reference.json", encoding="utf8"))
    tokenizer = Tokenizer.from_file(f"{FOLDER}/tokenizer.json")
    model = load_shipped(FOLDER)
    sources = [tokenizer.encode(pair["en"]).ids + [EOS] for pair in reference["test"][:args.sentences]]
    decoder.greedy(model, sources[:decoder.BATCH])      # compiles kernels
    start = time.time()
    texts = [decoder.text(tokenizer, ids) for ids in decoder.greedy_in_batches(model, sources)]
    seconds = time.time() - start
    same = sum(found == expected for found, expected in zip(texts, reference["greedy_text"]))
    print(f"greedy: {len(texts) / seconds:.1f} sentences/s ({len(texts)} in {seconds:.1f} s, torch {torch.__version__}, "
          f"f32, {args.threads} threads), {same} identical to reference.json")


if __name__ == "__main__":
    main()
