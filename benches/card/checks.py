"""Is what the card computes right? The kernels' own tests, and a model's texts against transformers'."""

import array
import json
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor

from parts import Failed, command

MOST_FAILURES = 20
# Parts of the names of tests.
REHEARSED = ["device", "sampling"]


def kernels(work, names, environment, rehearsal, end):
    """Test binaries, one after the other: how many tests passed, and what the others said.

    A rehearsal runs a few of them: on a software driver all are tests of the tree.
    """
    results, bad = {}, []
    for name in names:
        ran = command([os.path.join(work, name), *(REHEARSED if rehearsal else [])], environment, work, end, name)
        results[name] = result = read_tests(ran)
        if result["failed"] or not result["finished"]:
            bad.append(f"{name}: {result['passed']} passed, {len(result['failed'])} failed"
                       + ("" if result["finished"] else f", unfinished (exit code {ran.code}): {ran.err[-500:]}"))
    if bad:
        raise Failed("; ".join(bad), results)
    return results


def read_tests(ran):
    """What Rust's test harness printed."""
    verdicts = dict(re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", ran.out, re.MULTILINE))
    failed = [name for name, verdict in verdicts.items() if verdict == "FAILED"]
    said = dict(re.findall(r"^---- (\S+) stdout ----\n(.*?)(?=\n\n----|\n\nfailures:|\Z)", ran.out, re.MULTILINE | re.DOTALL))
    return {
        "passed": sum(verdict == "ok" for verdict in verdicts.values()),
        "failed": {name: said.get(name, "").strip()[:600] for name in failed[:MOST_FAILURES]}
        | ({"and": f"{len(failed) - MOST_FAILURES} more"} if len(failed) > MOST_FAILURES else {}),
        "finished": "\ntest result:" in ran.out,
    }


def prose_ids(headwise, model, environment, work, end):
    """Greedy ids of each reference prompt, with kernels by capability and with those that measuring chose.

    By capability all arithmetic is in f32, and every id must be transformers'. What measuring chose may round.
    """
    prompts = read_references(os.path.join(model, "reference.safetensors"))

    def ids(task):
        choice, index = task
        prompt, expected = prompts[index]
        arguments = [
            headwise, "generate", "--model", model, "--kernels", choice, "--greedy", "--print-ids", "--quiet",
            "--ids", ",".join(map(str, prompt)), "--max-new", str(len(expected)),
        ]
        ran = command(arguments, environment, work, end, f"ids-{choice}-{index}").check(f"prompt {index}, --kernels {choice}")
        return {"kernels": choice, "prompt": index, "found": list(map(int, re.findall(r"\d+", ran.out))), "expected": expected}

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ids, [(choice, index) for choice in ("tuned", "auto") for index in range(len(prompts))]))
    counts = {choice: [0, len(prompts)] for choice in ("tuned", "auto")}
    for answer in answers:
        counts[answer["kernels"]][0] += answer["found"] == answer["expected"]
    others = [answer for answer in answers if answer["found"] != answer["expected"]]
    result = {"equal": counts, "others": others}
    if counts["tuned"][0] < len(prompts):
        raise Failed(f"--kernels tuned: {counts['tuned'][0]} of {len(prompts)} prompts have transformers' ids", result)
    return result


def read_references(path):
    """(prompt, greedy continuation) of each prompt of a reference file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), file.read()

    def integers(name):
        begin, end = header[name]["data_offsets"]
        return array.array("i", data[begin:end]).tolist()

    count = sum(name.endswith(".greedy") for name in header)
    return [(integers(f"{index}.ids"), integers(f"{index}.greedy")) for index in range(count)]
