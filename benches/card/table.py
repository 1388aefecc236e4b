"""Markdown of a gpu-check.json: `table.py FILE [FOLDER]` writes FOLDER/ADAPTER-DATE.md and says where.

Ratios are against what PyTorch's own copy and products reached on the same card in the same run.
"""

import json
import os
import re
import sys
from collections import Counter


BENCHES = {"bench prose": "prose, f16", "bench f16": "8 layers of JetMoE-8B, f16", "bench q4": "the same, q4"}
THEIRS = "the same in transformers, f16"


def markdown(report):
    parts = {part["name"]: part for part in report["parts"]}
    sections = [title(report, parts), checks(report), decoding(parts), prompts(parts), yardsticks(parts), failures(report)]
    return "\n\n".join(section for section in sections if section) + "\n"


def results(parts, name):
    return (parts.get(name) or {}).get("result") or {}


def adapter(report):
    parts = {part["name"]: part for part in report["parts"]}
    return (results(parts, "driver").get("adapter") or {"name": "no adapter"})["name"]


def title(report, parts):
    found, packed, torch = results(parts, "driver").get("adapter") or {}, report["packed"], results(parts, "torch")
    bench = results(parts, "bench f16") or results(parts, "bench prose")
    facts = [
        f"headwise {packed['version']} ({packed['commit']})",
        f"driver {found['driver']}" if found else "no driver",
        ", ".join(" ".join(pair) for pair in bench.get("kernels", [])),
        f"PyTorch {torch['torch']} on {torch['device']}" if "torch" in torch else "no PyTorch",
        f"{report['machine']['cores']} cores",
        f"{report.get('seconds', 0):.0f} s in all",
    ]
    rehearsal = "\n\nA rehearsal: small models, and no number here means anything." if report["rehearsal"] else ""
    return f"# {adapter(report)}, {report['date']} UTC\n\n{'; '.join(filter(None, facts))}.{rehearsal}"


def checks(report):
    rows = [[part["name"], part["status"], summary(part), f"{part.get('seconds', 0):.1f}"] for part in report["parts"]]
    return grid(["part", "", "what was found", "s"], rows)


def summary(part):
    """A line of what a part found, or why it did not."""
    result, name = part.get("result") or {}, part["name"]
    if name == "driver" and result.get("adapter"):
        return next((it["what"] for it in result["tries"] if it.get("adapter")), "")
    if name == "selftest" and result:
        count = Counter(row["status"] for row in result["rows"])
        return f"{count['ok']} ok, {count['wrong']} wrong, {count['failed']} failed, {count['refused']} refused, {count['note']} notes"
    if name == "kernels" and result:
        return "; ".join(f"{test}: {it['passed']} passed, {len(it['failed'])} failed" for test, it in result.items())
    if name == "prose ids" and result:
        return ", ".join(f"{choice}: {equal} of {of} prompts" for choice, (equal, of) in result["equal"].items())
    if "why" in part:
        return part["why"]
    if "bytes" in result:
        return f"{result['bytes'] / 1e9:.2f} GB"
    if name.startswith("bench"):
        return f"loaded in {result['cold_start']['load_seconds']:.1f} s, {1e3 * result['host_seconds']['median']:.2f} ms of the host a token"
    return ""


def decoding(parts):
    copy = best(results(parts, "torch"), "copy ")
    rows = []
    for name, what in BENCHES.items():
        for row in bench_rows(parts, name, "decode"):
            rows.append([what, row["tokens_per_second"], row["needed_per_second"], row["ratio"]])
    theirs = results(parts, "transformers").get("decode")
    if theirs:
        rows.append([THEIRS, theirs["tokens_per_second"], None, None])
    floor = results(parts, "torch").get("matvecs of a token")
    if floor:
        rows.append([f"torch.mv of their matrices, {floor['how']}", floor["tokens_per_second"], floor["median"], None])
    cells = [
        [what, f"{speed:.1f}", scaled(needed, 1e9), against(needed, copy), scaled(own, 1)] for what, speed, needed, own in rows
    ]
    return rows and "## Decoding\n\n" + grid(
        ["what", "tokens/s", "GB/s of weights", "of PyTorch's copy", "of headwise's copy"], cells
    )


def prompts(parts):
    torch, rows = results(parts, "torch"), []
    plain, half = best(torch, "matmul f32"), best(torch, "matmul f16")
    for name, what in BENCHES.items():
        for row in bench_rows(parts, name, "prefill"):
            needed = row["needed_per_second"]
            rows.append([
                what, str(row["prompt"]), f"{row['tokens_per_second']:.0f}", scaled(needed, 1e12),
                against(needed, plain), against(needed, half), scaled(row["ratio"], 1),
            ])
    for length in [16, 128, 512]:
        theirs = results(parts, "transformers").get(f"prefill {length}")
        if theirs:
            rows.append([THEIRS, str(length), f"{theirs['tokens_per_second']:.0f}", "", "", "", ""])
    head = ["what", "tokens", "tokens/s", "TFLOP/s", "of PyTorch's f32", "of PyTorch's f16", "of headwise's f32"]
    return rows and "## Prompts\n\n" + grid(head, rows)


def yardsticks(parts):
    rows = []
    for name, what in BENCHES.items():
        for limit, unit in [("copy", 1e9), ("matmul", 1e12)]:
            found = results(parts, name).get(limit)
            if found:
                speed = f"{found['per_second']['median'] / unit:.3g} {'GB/s' if limit == 'copy' else 'TFLOP/s'}"
                rows.append([f"headwise, beside {what}: {found['name']}", speed])
    for name, found in results(parts, "torch").items():
        if name.startswith("copy"):
            rows.append([f"PyTorch: {name}", f"{found['median'] / 1e9:.4g} GB/s"])
        elif name.startswith("matmul"):
            rows.append([f"PyTorch: {name} cubed", f"{found['median'] / 1e12:.3g} TFLOP/s"])
    return rows and "## Yardsticks\n\nCopies count bytes read and bytes written.\n\n" + grid(["what", "rate"], rows)


def failures(report):
    """What a report has to say of each part that failed."""
    lines = []
    for part in report["parts"]:
        if part["status"] != "failed":
            continue
        lines.append(f"- {part['name']}: {line(part['why'])}")
        result = part.get("result") or {}
        if part["name"] == "selftest":
            bad = [row for row in result.get("rows", []) if row["status"] in ("wrong", "failed")]
            lines += [f"  - {row['kernel']} {row['variant']}: {row['status']}, {line(row['remark'] or '')}" for row in bad]
        if part["name"] == "kernels":
            for test, found in result.items():
                lines += [f"  - {test} {name}: {line(said)}" for name, said in found["failed"].items()]
        if part["name"] == "driver":
            lines += [f"  - {it['what']}: {line(str(it['found']))}" for it in result.get("tries", [])]
    return lines and "## Failures\n\n" + "\n".join(lines)


def bench_rows(parts, name, what):
    return [row for row in results(parts, name).get("rows", []) if row["what"] == what]


def best(torch, prefix):
    """The fastest of PyTorch's measurements of a kind."""
    return max((found["median"] for name, found in torch.items() if name.startswith(prefix)), default=None)


def against(needed, limit):
    return f"{needed / limit:.3f}" if needed and limit else ""


def scaled(number, unit):
    return f"{number / unit:.3g}" if number else ""


def line(text):
    return " ".join(text.split())[:400]


def grid(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)


def read(path):
    """A report, or the end with what the file is instead."""
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except ValueError as error:
        refuse(path, f"no JSON ({error})")
    missing = [key for key in ("packed", "machine", "date", "rehearsal", "parts") if not isinstance(report, dict) or key not in report]
    if missing:
        refuse(path, f"JSON without {', '.join(missing)}")
    return report


def refuse(path, found):
    sys.exit(f"{path}: found {found}, expected the gpu-check.json that benches/card/run.py wrote")


def main():
    path, folder = sys.argv[1], (sys.argv[2:] or ["."])[0]
    report = read(path)
    try:
        text, day = markdown(report), report["date"][:10]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        refuse(path, f"a report that cannot be read ({type(error).__name__}: {error})")
    name = re.sub(r"[^a-z0-9.]+", "-", adapter(report).lower()).strip("-")
    os.makedirs(folder, exist_ok=True)
    out = os.path.join(folder, f"{name}-{day}.md")
    with open(out, "w", encoding="utf-8") as file:
        file.write(text)
    print(out)


if __name__ == "__main__":
    main()
