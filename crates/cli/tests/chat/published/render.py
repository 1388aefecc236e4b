#!/usr/bin/env python3
"""What transformers makes of the templates here: fills in the expected texts of templates.json and expressions.json.

Run by hand where transformers 5 and jinja2 are installed, as in the environment of benches/peers:

    python tests/chat/published/render.py

A text of null says that transformers objects. The day that a template asks for stands as its form, <<%d %b %Y>>.
"""

import datetime
import json
import pathlib

from transformers.utils.chat_template_utils import _cached_compile_jinja_template

HERE = pathlib.Path(__file__).parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# As templates write today.
DAYS = ["%d %B %Y", "%d %b %Y"]
# The values that expressions have names for; the templates set them themselves.
PRELUDE = (
    "{% set s = 'Hello World' %}{% set u = 'héllo wörld ñ ✓ 😀' %}{% set l = [3, 1, 2] %}"
    "{% set d = {'b': 1, 'a': [1, 'x', none, true, 2.5]} %}{% set n = none %}{% set t = true %}{% set f = 2.5 %}"
    "{% set tree = [{'n': 'a', 'c': [{'n': 'b', 'c': []}, {'n': 'c', 'c': [{'n': 'd', 'c': []}]}]}] %}"
)
MESSAGES = [["user", "Hi <b> & 'q' \"dq\""], ["assistant", " yo\n"], ["user", "x"]]


def render(template, messages, prompt):
    values = {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "add_generation_prompt": prompt,
        "tools": None,
        "documents": None,
    }
    try:
        text = _cached_compile_jinja_template(template).render(**values, **TOKENS)
    except Exception:
        return None
    for form in DAYS:
        text = text.replace(datetime.datetime.now().strftime(form), f"<<{form}>>")
    return text


def write(name, head, field, rows):
    """JSON with one row a line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    start = "".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in head.items())
    (HERE / name).write_text(f"{{\n{start}{json.dumps(field)}: [\n{lines}\n]\n}}\n", encoding="utf-8")


def main():
    published = json.loads((HERE / "templates.json").read_text(encoding="utf-8"))
    conversations = published["conversations"]
    for row in published["templates"]:
        row["texts"] = [render(row["template"], one["messages"], one["prompt"]) for one in conversations]
    write("templates.json", {"conversations": conversations}, "templates", published["templates"])

    expressions = json.loads((HERE / "expressions.json").read_text(encoding="utf-8"))
    rows = [[template, render(PRELUDE + template, MESSAGES, False)] for template, *_ in expressions["cases"]]
    # Where an object lies in memory is no text to expect.
    rows = [row for row in rows if row[1] is None or " at 0x" not in row[1]]
    write("expressions.json", {"prelude": PRELUDE, "messages": MESSAGES}, "cases", rows)


main()
