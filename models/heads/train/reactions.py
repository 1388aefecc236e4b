"""The ALBERT of rxnmapper 0.4.3 (MIT), which nobody here trained, as a folder that headwise reads.

    reactions.py OUT_DIR

Needs that package with its dependencies (transformers below 5). What ships is f16, without the parts that fill no masks. The
reference is rxnmapper itself: its own maps of atoms, and the logits and attention of its network with the weights that
ship.
"""

import argparse
import pathlib

import rxnmapper
import torch
from rxnmapper.smiles_utils import SMI_REGEX_PATTERN, is_atom
from transformers import AlbertConfig, AlbertForMaskedLM

import training as T

SOURCE = pathlib.Path(rxnmapper.__file__).parent / "models/transformers/albert_heads_8_uspto_all_1310k"
LAYER, HEAD = 10, 5
REACTIONS = [
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "C1COCCO1.CC(C)(C)OC(=O)CONC(=O)NCc1cccc2ccccc12.Cl>>O=C(O)CONC(=O)NCc1cccc2ccccc12",
    "CC(=O)O.CCO>>CCOC(C)=O",
    "Brc1ccncc1.OB(O)c1ccccc1>>c1ccc(-c2ccncc2)cc1",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "O=Cc1ccc(Cl)cc1.[BH4-].[Na+]>>OCc1ccc(Cl)cc1",
    "CI.O=Cc1ccccc1O>>COc1ccccc1C=O",
]
KEPT = ["albert.embeddings.", "albert.encoder.", "predictions.LayerNorm.", "predictions.dense."]
ROWS = 2            # of logits, of each reaction
FIELDS = """vocab_size embedding_size hidden_size num_hidden_layers num_hidden_groups inner_group_num num_attention_heads
intermediate_size hidden_act max_position_embeddings type_vocab_size layer_norm_eps""".split()


def tokenizer(words):
    special = {name: words.index(name) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    added = [dict(id=id, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for name, id in special.items()]
    ends = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    text = [{"Sequence": {"id": part, "type_id": 0}} for part in "AB"]
    template = dict(type="TemplateProcessing", single=[ends[0], text[0], ends[1]],
                    pair=[ends[0], text[0], ends[1], text[1], ends[1]],
                    special_tokens={name: dict(id=name, ids=[special[name]], tokens=[name]) for name in ("[CLS]", "[SEP]")})
    split = dict(type="Split", pattern=dict(Regex=SMI_REGEX_PATTERN), behavior="Isolated", invert=False)
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=split,
                post_processor=template, decoder=dict(type="Fuse"),
                model=dict(type="WordLevel", vocab={word: id for id, word in enumerate(words)}, unk_token="[UNK]"))


def positions(tokens):
    """Where atoms of the reactants and of the products stand."""
    arrow = tokens.index(">>")
    atoms = [at for at, token in enumerate(tokens) if is_atom(token)]
    return [at for at in atoms if at < arrow], [at for at in atoms if at > arrow]


def share(attention, result):
    """[heads]: of how many product atoms the strongest reactant atom is the one that rxnmapper says."""
    reactants, products = result["reactant_atoms"], result["product_atoms"]
    strongest = attention[:, products][:, :, reactants].argmax(-1)
    wanted = torch.tensor(result["map"])
    return ((strongest == wanted) & (wanted >= 0)).float().sum(-1), (wanted >= 0).sum()


def filled(model, words):
    """What stands behind a mask: the likeliest three, with their probabilities."""
    text = "CC(=O)O.CCO>>CCOC(C)=[MASK]"
    tokens = ["[CLS]", *rxnmapper.smiles_utils.tokenize(text[:-6]), "[MASK]", "[SEP]"]
    with torch.no_grad():
        logits = model(torch.tensor([[words.index(token) for token in tokens]])).logits[0, -2]
    best = logits.softmax(-1).topk(3)
    return dict(text=text, tokens=[words[id] for id in best.indices.tolist()],
                probabilities=[round(value, 5) for value in best.values.tolist()])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("out")
    a = a.parse_args()
    torch.set_num_threads(1)
    T.os.makedirs(a.out, exist_ok=True)
    mapper = rxnmapper.RXNMapper()
    config = AlbertConfig.from_pretrained(SOURCE)
    config._attn_implementation = "eager"
    model = AlbertForMaskedLM(config)
    state = torch.load(SOURCE / "pytorch_model.bin", map_location="cpu", weights_only=True)
    half = {name: value.half() for name, value in state.items()
            if name == "predictions.bias" or any(name.startswith(part) for part in KEPT)}
    model.load_state_dict({name: value.float() for name, value in half.items()}, strict=False)
    model.tie_weights()         # the decoder is the table; its bias has two names
    with torch.no_grad():
        model.predictions.decoder.bias.copy_(half["predictions.bias"].float())
    model.eval()
    T.write_tensors(f"{a.out}/model.safetensors", half)
    words = (SOURCE / "vocab.txt").read_text().split("\n")[: config.vocab_size]
    with open(f"{a.out}/tokenizer.json", "w") as file:
        T.json.dump(tokenizer(words), file, separators=(",", ":"))
        file.write("\n")
    ids = {name: words.index(word) for name, word in
           dict(pad_token_id="[PAD]", bos_token_id="[CLS]", eos_token_id="[SEP]", mask_token_id="[MASK]").items()}
    T.write_json(f"{a.out}/config.json", dict(model_type="albert") | {name: getattr(config, name) for name in FIELDS}
                 | ids | dict(torch_dtype="float16"))

    tensors, rows, hits, atoms = {}, [], 0, 0
    for number, result in enumerate(mapper.get_attention_guided_atom_maps(REACTIONS, detailed_output=True)):
        tokens = result["tokens"]
        text = "".join(tokens[1:-1])
        reactants, products = positions(tokens)
        row = dict(text=text, mapped=result["mapped_rxn"], confidence=round(result["confidence"], 4),
                   reactant_atoms=reactants, product_atoms=products, map=result["pxr_mapping_vector"])
        rows.append(row)
        encoded = [words.index(token) for token in tokens]
        with torch.no_grad():
            output = model(torch.tensor([encoded]), output_attentions=True)
        attention = torch.stack([layer[0] for layer in output.attentions])      # [layers, heads, tokens, tokens]
        found = [share(layer, row) for layer in attention]
        hits = hits + torch.stack([hit for hit, _ in found])
        atoms += found[0][1].item()
        step = max(1, len(tokens) // ROWS)
        at = torch.arange(0, len(tokens), step)[:ROWS]
        tensors[f"{number}.ids"] = torch.tensor(encoded, dtype=torch.int32)
        tensors[f"{number}.rows"] = at.int()
        tensors[f"{number}.logits"] = output.logits[0, at]
        # What the mapper reads: from atoms of the products to those of the reactants.
        tensors[f"{number}.attention"] = attention[LAYER, HEAD][products][:, reactants]
    T.write_tensors(f"{a.out}/reference.safetensors", tensors)
    T.write_lines(f"{a.out}/reactions.jsonl", rows)
    shares = hits / atoms
    # The layers are one, so that heads of one number do much the same; the best of another number is the comparison.
    other = shares.clone()
    other[:, HEAD] = 0
    facts = dict(parameters=sum(value.numel() for value in half.values()), mapped_atoms=atoms,
                 mapper=f"L{LAYER}H{HEAD}", mapper_share=round(shares[LAYER, HEAD].item(), 4),
                 same_head_elsewhere=[round(value, 4) for value in shares[:, HEAD].tolist()],
                 best_other={f"L{n // 8}H{n % 8}": round(other.flatten()[n].item(), 4)
                             for n in other.flatten().argsort(descending=True)[:3].tolist()})
    facts["filled"] = filled(model, words)
    T.write_json(f"{a.out}/reference.json", facts)
    print(facts)


if __name__ == "__main__":
    main()
