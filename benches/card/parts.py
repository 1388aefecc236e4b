"""A run in parts: each has a time of its own, and its answer is on disk before the next begins."""

import json
import os
import signal
import subprocess
import time


class Failed(Exception):
    """A part that did not do what it should; what it found nevertheless."""

    def __init__(self, why, result=None):
        super().__init__(why)
        self.result = result


class Skipped(Exception):
    """A part that cannot be done here."""


class Report:
    """The one JSON object of a run."""

    def __init__(self, path, head):
        self.path, self.value = path, head | {"parts": []}
        self.save()

    def save(self):
        """Whole or not at all."""
        with open(self.path + ".partial", "w", encoding="utf-8") as file:
            json.dump(self.value, file, indent=1)
            file.write("\n")
        os.replace(self.path + ".partial", self.path)


def run_all(parts, report, seconds, patience=1):
    """Runs (name, seconds, function) one after the other, so that all end in `seconds`; `patience` times as many of each.

    A part may have what the parts before it left, up to twice its own time. A function is told when it must end.
    """
    parts = [(name, patience * own, function) for name, own, function in parts]
    seconds *= patience
    begin = time.monotonic()
    for index, (name, own, function) in enumerate(parts):
        start = time.monotonic()
        later = sum(own for _, own, _ in parts[index + 1 :])
        limit = min(2 * own, begin + seconds - later - start)
        row = {"name": name, "status": "running", "limit": round(limit, 1)}
        report.value["parts"].append(row)
        report.save()
        try:
            row["result"] = function(start + limit)
            row["status"] = "ok"
        except Skipped as why:
            row |= {"status": "skipped", "why": str(why)}
        except Failed as why:
            row |= {"status": "failed", "why": str(why), "result": why.result}
        except Exception as error:  # noqa: BLE001: the parts after it still run
            row |= {"status": "failed", "why": f"{type(error).__name__}: {error}"}
        row["seconds"] = round(time.monotonic() - start, 2)
        report.value["seconds"] = round(time.monotonic() - begin, 2)
        report.save()
        why = f": {row['why']}" if "why" in row else ""
        print(f"{row['seconds']:7.1f} s  {name}: {row['status']}{why}", flush=True)


class Ran:
    """What a command did: its exit code, None where its time was up, and its output until then."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def check(self, what):
        if self.code is None:
            raise Failed(f"{what}: its time was up; it said: {tail(self.err)}")
        if self.code != 0:
            raise Failed(f"{what}: exit code {self.code}; it said: {tail(self.err or self.out)}")
        return self


def tail(text, most=1500):
    return text.strip()[-most:] or "nothing"


class Command:
    """A command under way. Its output goes through files, so what it wrote before it was killed is there."""

    def __init__(self, arguments, environment, work, name="command"):
        self.paths = [os.path.join(work, f"{name}.{kind}") for kind in ("out", "err")]
        with open(self.paths[0], "wb") as out, open(self.paths[1], "wb") as err:
            # A group of its own: what it started ends with it.
            self.child = subprocess.Popen(
                arguments, env=environment, cwd=work, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=os.setpgrp
            )

    def wait(self, end):
        """What it did until `end`, when it is killed."""
        try:
            code = self.child.wait(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self.kill()
        return Ran(code, *(read(path) for path in self.paths))

    def kill(self):
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()


def command(arguments, environment, work, end, name="command"):
    """Runs a command until `end`."""
    return Command(arguments, environment, work, name).wait(end)


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
