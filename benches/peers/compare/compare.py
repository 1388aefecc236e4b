"""Runs headwise and its peers on the same weights, alternating, and writes one table.

Started by ../run, which installs what each side needs and passes one `--side NAME COMMAND...` for each.
A side is a process that answers requests, one JSON a line; its source says which.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import signal
import statistics
import struct
import subprocess
import sys
import time

try:
    from tokenizers import Tokenizer
except ImportError:  # without the Python peers' packages: ids only, and no browser
    Tokenizer = None

# What section 2 of the speed work asks for, headwise against the peer.
GOALS = {
    ("burn", "decode"): 3, ("burn", "prefill"): 2,
    ("transformers", "decode"): 3, ("transformers", "matmul"): 0.12,
    ("onnxruntime-web", "decode"): 2,
}
TITLES = {
    "burn": "burn (wgpu)", "transformers": "transformers (CPU)", "onnxruntime-web": "onnxruntime-web (WebGPU)",
    "llama.cpp": "llama.cpp (Vulkan)", "llama.cpp-cpu": "llama.cpp (CPU)",
}
IN_BROWSER = {"onnxruntime-web"}
OTHER_MODEL = {"llama.cpp", "llama.cpp-cpu"}  # of the same active size: its ids are its own
SETTLE = 0.3  # seconds for the threads of the side before to stop spinning


class Cannot(Exception):
    """A side's own words for what it cannot do."""


class Side:
    """One side; two that share a browser share its process."""

    def __init__(self, name, command, log, shared=None):
        self.name, self.what, self.adapter, self.owner = name, name, None, shared is None
        if shared:
            self.log, self.process = shared.log, shared.process
            return
        self.log = open(log, "w", encoding="utf-8")
        self.process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )

    def ask(self, op, **request):
        try:
            self.process.stdin.write(json.dumps({"op": op, "side": self.name, **request}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            how = f"code {code}" if code >= 0 else signal.Signals(-code).name
            raise Cannot(f"ended with {how}: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Cannot(answer["error"])
        self.what = answer.get("what", self.what)
        self.adapter = answer.get("adapter", self.adapter)
        return answer

    def last_words(self):
        with open(self.log.name, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        panics = [line for line in lines if "panicked" in line]
        return " / ".join((panics or lines)[-2:])[-400:] or "it said nothing"

    def close(self):
        if not self.owner:
            return
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()


class Model:
    """A folder, what to ask of it, and what is known of its answers."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.context = config.get("max_position_embeddings") or config["n_positions"]
        self.vocab = config["vocab_size"]
        self.references = read_references(os.path.join(folder, "reference.safetensors"))
        size = os.path.getsize(os.path.join(folder, "model.safetensors"))
        self.small = size < 50e6
        self.new = min(128 if self.small else 32, self.context - 32)
        self.tokenizer = self.texts = None
        path = os.path.join(folder, "tokenizer.json")
        if Tokenizer and self.references and os.path.exists(path):
            self.tokenizer = Tokenizer.from_file(path)
            with open(os.path.join(folder, "reference.json"), encoding="utf-8") as file:
                prompts = json.load(file)["prompts"]
            self.texts = [prompt["text"] + prompt["greedy"] for prompt in prompts]
            self.lengths = [len(prompt["text"]) for prompt in prompts]

    def prompt(self, length):
        """Ids of the reference prompts and their continuations, or noise that is the same every time; the ids' text, if any."""
        if self.tokenizer:
            text, ids = "", []
            for character in " ".join(self.texts):
                text += character
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids if character == " " else ids
                if len(ids) >= length:
                    break
            while len(ids) != length and text:
                text = text[:-1]
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            if text:
                return {"prompt": ids, "text": text}
        state, ids = 12345, []
        while len(ids) < length:
            state = (1664525 * state + 1013904223) % 2**32
            ids.append(3 + (state >> 8) % (self.vocab - 3))
        return {"prompt": ids}

    def prefills(self):
        """128 and 512 tokens, or what fits the context."""
        return sorted({min(128, self.context - 8), min(512, self.context - 8)})


def read_references(path):
    """(prompt, greedy continuation) of each prompt of a reference file, if there is one."""
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        start = file.tell()

        def ids(name):
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            return list(struct.unpack(f"<{(end - begin) // 4}i", file.read(end - begin)))

        count = sum(name.endswith(".greedy") for name in header)
        return [(ids(f"{i}.ids"), ids(f"{i}.greedy")) for i in range(count)]


def equal_ids(a, b):
    """How many ids are equal before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def check(model, headwise, peer, prompts, new):
    """Greedy ids against the references that ship, and against headwise. Raises Cannot where they differ."""
    for i, (prompt, greedy) in enumerate(model.references[:prompts]):
        text = model.texts[i][: model.lengths[i]] if model.texts else None
        for side in (headwise, peer):
            ids = side.ask("generate", prompt=prompt, text=text, new=len(greedy))["ids"]
            if ids != greedy:
                at = equal_ids(ids, greedy)
                raise Cannot(f"{side.name}: wrong ids for prompt {i} of {model.name}: {at} of {len(greedy)} equal")
    prompt = model.prompt(16)
    ours, theirs = (side.ask("generate", **prompt, new=new)["ids"] for side in (headwise, peer))
    same = equal_ids(ours, theirs)
    # Weights of noise have near-ties, which two right programs may break differently, though not at once.
    enough = len(ours) if model.references else 4
    if same < enough:
        raise Cannot(f"{peer.name}: {same} of {len(ours)} ids equal headwise's on {model.name}")
    return f"{same} of {len(ours)} greedy ids equal headwise's"


def works(model, new):
    """(name, the goal's name, request, tokens a second of an answer)."""
    prompt = model.prompt(16)
    yield (
        f"decode, {new} tokens after 16", "decode", {"op": "generate", **prompt, "new": new},
        lambda answer: (new - 1) / answer["rest_s"],
    )
    for length in model.prefills():
        yield (
            f"prefill, {length} tokens", "prefill", {"op": "generate", **model.prompt(length), "new": 1},
            lambda answer, length=length: length / answer["first_s"],
        )


def measure(headwise, peer, request, value, rounds):
    """Each side's values, one a round, and the seconds of each side's first run."""
    firsts, values = [], ([], [])
    for side in (headwise, peer):
        start = time.perf_counter()
        side.ask(**request)
        firsts.append(time.perf_counter() - start)
        side.ask(**request)
    for _ in range(rounds):
        for side, into in zip((headwise, peer), values):
            time.sleep(SETTLE)
            into.append(value(side.ask(**request)))
    return values, firsts


def row(table, peer, name, work, kind, unit, values, firsts):
    ours, theirs = (statistics.median(side) for side in values)
    ratios = sorted(a / b for a, b in zip(*values))
    ratio = statistics.median(ratios)
    goal = GOALS.get((peer, kind))
    verdict = "" if goal is None else f"{goal} {'met' if ratio >= goal else 'missed'}"
    table.append([
        TITLES[peer], name, work, f"{ours:.4g} {unit}", f"{theirs:.4g} {unit}",
        f"**{ratio:.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})", verdict, f"{firsts[0]:.2f} s, {firsts[1]:.2f} s",
    ])
    print("  " + " | ".join(table[-1][1:]), file=sys.stderr, flush=True)


def compare(peer_name, models, options, table, notes):
    """All the rows of one peer."""
    browser = peer_name in IN_BROWSER
    for model in models:
        if browser and not model.small:
            continue  # a software adapter in a browser takes seconds for a token of it
        new = min(model.new, 32) if browser else model.new
        pair = []
        try:
            log = os.path.join(options.logs, "{}.log")
            if browser:
                pair.append(Side("headwise-web", options.sides[peer_name], log.format(peer_name)))
                pair.append(Side(peer_name, None, None, shared=pair[0]))
            else:
                pair.append(Side("headwise", options.sides["headwise"], log.format("headwise")))
                pair.append(Side(peer_name, options.sides[peer_name], log.format(peer_name)))
            headwise, peer = pair
            for side in pair:
                side.ask("load", model=os.path.abspath(model.folder))
            ids = "its ids cannot be compared"
            if peer_name not in OTHER_MODEL:
                ids = check(model, headwise, peer, None if options.check and not browser else 1, new)
            print(f"{peer_name}: {model.name}: {ids}", file=sys.stderr, flush=True)
            notes.append(f"{TITLES[peer_name]} on {model.name}: {peer.what}; adapter {peer.adapter or 'none'}; {ids}. "
                         f"headwise's side: {headwise.what}; adapter {headwise.adapter}.")
            if options.check:
                continue
            for work, kind, request, value in works(model, new):
                if options.only and options.only not in work:
                    continue
                row(table, peer_name, model.name, work, kind, "tok/s",
                    *measure(headwise, peer, request, value, options.rounds))
            if peer_name == "transformers" and model is models[0]:
                for n in (512, 1024):
                    row(table, peer_name, "none", f"dense f32 matmul, {n} cubed", "matmul", "GFLOP/s",
                        *measure(headwise, peer, {"op": "matmul", "n": n}, lambda answer: answer["gflops"], options.rounds))
        except Cannot as error:
            print(f"{peer_name}: {model.name}: cannot: {error}", file=sys.stderr, flush=True)
            table.append([TITLES[peer_name], model.name, "all or the rest", "", f"cannot: {error}".replace("|", "/"), "", "", ""])
            options.failed = True
        finally:
            for side in pair:
                side.close()


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"{name}, {os.cpu_count()} cores"


def revision():
    """headwise's commit."""
    here = os.path.dirname(os.path.abspath(__file__))
    told = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return told.stdout.strip() or "unknown"


def file_name(date, adapters):
    """DATE-ADAPTER.md, with the version of Mesa where the adapter names one."""
    parts = [date]
    for adapter in adapters:
        parts.append(adapter.split(" (")[0].split(",")[0])
        parts += re.findall(r"Mesa (\d[\d.]*)", adapter)
    return "-".join(parts).lower().replace(" ", "-") + ".md"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", nargs=2, action="append", default=[], metavar=("NAME", "COMMAND"))
    parser.add_argument("--cannot", nargs=2, action="append", default=[], metavar=("PEER", "WHY"))
    parser.add_argument("--model", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="only work whose name contains this")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--logs", required=True)
    parser.add_argument("--results", required=True)
    options = parser.parse_args()
    options.sides, options.failed = dict(options.side), False
    options.load = os.getloadavg()[0]
    models = [Model(name, folder) for name, folder in options.model]

    table, notes = [], []
    for name in TITLES:
        if name in options.sides:
            compare(name, models, options, table, notes)
    for name, why in options.cannot:
        table.append([TITLES[name], "all", "all", "", f"cannot: {why}".replace("|", "/"), "", "", ""])
    if options.check:
        sys.exit(options.failed)

    heads = ["peer", "model", "work", "headwise", "the peer", "headwise / peer (rounds)", "goal", "first run: headwise, peer"]
    lines = ["| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *table]]
    adapters = list(dict.fromkeys(note.rsplit("adapter ", 1)[1].rstrip(".") for note in notes))
    date = datetime.date.today().isoformat()
    text = "\n".join([
        f"# {date}: {', '.join(adapters) or 'no adapter'}", "",
        f"headwise {revision()}; {processor()}; load at the start {options.load:.2f}. Medians of {options.rounds} alternating rounds after two "
        "unmeasured runs; the ratio is the median of the rounds' ratios, the smallest and largest beside it.", "",
        *lines, "", *[f"- {note}" for note in notes], "",
    ])
    print(text)
    os.makedirs(options.results, exist_ok=True)
    path = os.path.join(options.results, file_name(date, adapters))
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
