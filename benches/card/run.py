#!/usr/bin/env python3
"""Checks headwise on the card of this machine, and measures it beside PyTorch, within eight minutes: no Rust, no network.

`scripts/gpu-check` packs this file and all that it needs into a folder. There:

    python3 target/gpu-check/run.py [--out FOLDER] [--tree FOLDER] [--rehearsal]

It writes FOLDER/gpu-check.json (FOLDER is $OUT, or gpu-check-out here) after each part, and prints a table of it. With
--rehearsal it runs on Mesa's software driver, with small models, and leaves PyTorch's parts out where there is no PyTorch. It exits with 1 if a
part failed; a part that failed or took too long costs no other.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import sys
import tarfile
import tempfile
import time

import checks
import driver
import table
from parts import Command, Failed, Report, Skipped, command, run_all

# Of eight minutes; the rest is for starting and for unpacking. The parts' own seconds are no more in all.
SECONDS = 465
# A rehearsal has more, since what builds beside it is no fault of a card.
PATIENCE = 3

# JetMoE-8B's widths, 8 of its 24 layers: 5.8 GB. The rehearsal's model has them in miniature.
LARGE = ["--layers", "8", "--dtype", "f16"]
SMALL = ["--layers", "2", "--dtype", "f16", "--vocab", "2048", "--width", "256", "--kv-heads", "4", "--head-dim", "64",
         "--mlp-width", "512", "--context", "640"]


def main():
    options = arguments()
    here = os.path.dirname(os.path.abspath(__file__))
    # Whoever stops this ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, "gpu-check.json")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        run = Run(here, os.path.abspath(options.tree), work, options.rehearsal)
        try:
            report = Report(path, head(run))
            patience = PATIENCE if options.rehearsal else 1
            run_all(run.parts(), report, SECONDS, patience)
        finally:
            run.clean()
    print(f"\n{table.markdown(report.value)}\n{path}")
    return int(any(part["status"] == "failed" for part in report.value["parts"]))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    above = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    parser.add_argument("--out", default=os.environ.get("OUT") or "gpu-check-out", help="where gpu-check.json goes")
    parser.add_argument("--tree", default=above, help="headwise's tree, with models/prose (default: two folders above this file)")
    parser.add_argument("--rehearsal", action="store_true", help="the software driver, small models")
    options = parser.parse_args()
    if not os.path.exists(os.path.join(options.tree, "models/prose/config.json")):
        parser.error(f"--tree {options.tree}: found no models/prose/config.json there, expected headwise's tree")
    return options


def head(run):
    """What ran where."""
    return {
        "format": 1,
        "rehearsal": run.rehearsal,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "packed": run.packed,
        "machine": {
            "system": platform.platform(),
            "libc": " ".join(platform.libc_ver()),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
        },
    }


class Run:
    """The parts, and what they hand on to each other."""

    def __init__(self, here, tree, work, rehearsal):
        self.here, self.tree, self.work, self.rehearsal = here, tree, work, rehearsal
        with tarfile.open(os.path.join(here, "packed.tar.xz")) as packed:
            packed.extractall(work)
        with open(os.path.join(work, "packed.json"), encoding="utf-8") as file:
            self.packed = json.load(file)
        self.headwise = os.path.join(work, "headwise")
        self.base = os.environ | {
            "HEADWISE_CACHE": os.path.join(work, "cache"),
            "XDG_RUNTIME_DIR": work,
            # Drivers keep what they compiled.
            "HOME": os.environ.get("HOME") or work,
        }
        # The environment in which there is an adapter.
        self.environment = None
        # The models, the folder that has both, and what writes the second from the first.
        self.model = self.quantised = self.models = self.quantizing = None

    def clean(self):
        """Nothing goes on, and gigabytes go."""
        if self.quantizing:
            self.quantizing.kill()
        if self.models:
            shutil.rmtree(self.models)

    def parts(self):
        """Name, seconds, function of its end.

        Quantising takes one core a minute or two: it goes on beside what is not timed.
        """
        return [
            ("driver", 25, self.driver),
            ("weights", 30, self.weights),
            ("selftest", 70, self.selftest),
            ("kernels", 85, self.kernels),
            ("prose ids", 25, self.prose_ids),
            ("quantize", 40, self.quantize),
            ("bench prose", 30, lambda end: self.bench(self.prose, end)),
            ("bench f16", 45, lambda end: self.bench(self.model, end)),
            ("bench q4", 35, lambda end: self.bench(self.quantised, end)),
            ("transformers", 45, self.transformers),
            ("torch", 35, self.torch),
        ]

    @property
    def prose(self):
        return os.path.join(self.tree, "models", "prose")

    def driver(self, end):
        """The adapter, and what the doctor says of it."""
        self.environment, tries = driver.find(self.headwise, self.work, self.base, self.rehearsal, end)
        worked = [it["adapter"] for it in tries if it["adapter"]]
        result = {"adapter": worked[0] if worked else None, "tries": tries}
        if not worked or (self.rehearsal and len(worked) < len(tries)):
            found = f"{len(worked)} of {len(tries)} ways lead to {'a software' if self.rehearsal else 'an NVIDIA'} adapter"
            raise Failed(found, result | {"circumstances": driver.circumstances(self.rehearsal)})
        doctor = self.run(["doctor", "--json"], end, "doctor").check("doctor")
        return result | {"doctor": json.loads(doctor.out), "nvidia-smi": self.card(end)}

    def card(self, end):
        """What the driver's own tool says of card and clocks."""
        tool = shutil.which("nvidia-smi")
        if not tool:
            return None
        fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
        return command([tool, f"--query-gpu={fields}", "--format=csv"], self.base, self.work, end).out.strip()

    def selftest(self, end):
        self.needs_adapter()
        # It exits with 1 where a number is wrong, and then says which.
        ran = self.run(["selftest", "--json"], end, "selftest")
        if not ran.out:
            ran.check("selftest")
        result = json.loads(ran.out)
        bad = [f"{row['kernel']} {row['variant']}" for row in result["rows"] if row["status"] in ("wrong", "failed")]
        if bad or ran.code != 0:
            raise Failed(f"{len(bad)} of {len(result['rows'])} rows: {', '.join(bad)}", result)
        return result

    def kernels(self, end):
        self.needs_adapter()
        return checks.kernels(self.work, self.packed["tests"], self.environment, self.rehearsal, end)

    def prose_ids(self, end):
        self.needs_adapter()
        return checks.prose_ids(self.headwise, self.prose, self.environment, self.work, end)

    def bench(self, model, end):
        self.needs_adapter()
        self.needs_model(model)
        options = ["--rounds", "2", "--tokens", "16"] if self.rehearsal else []
        return json.loads(self.run(["bench", "--json", "--model", model, *options], end, "bench").check("bench").out)

    def weights(self, end):
        """A model of random weights, where there is room."""
        folder = room(self.work, 0.1e9 if self.rehearsal else 10e9)
        self.models = tempfile.mkdtemp(prefix="gpu-check-models-", dir=folder)
        writer = os.path.join(self.here, "write-random-jetmoe")
        sizes = SMALL if self.rehearsal else LARGE
        model = os.path.join(self.models, "f16")
        command([sys.executable, writer, "--out", model, *sizes], self.base, self.work, end).check("write-random-jetmoe")
        self.model, quantize = model, [self.headwise, "quantize", "--scheme", "q4", "--quiet", model, self.q4]
        self.quantizing = Command(quantize, self.base, self.work, "quantize")
        return {"folder": model, "bytes": size(model)}

    @property
    def q4(self):
        return os.path.join(self.models, "q4")

    def quantize(self, end):
        """Waits for what began when the weights were there."""
        self.needs_model(self.model)
        self.quantizing.wait(end).check("quantize")
        self.quantised = self.q4
        return {"bytes": size(self.q4)}

    def transformers(self, end):
        self.needs_model(self.model)
        return self.torch_side(["transformers", "--model", self.model], end)

    def torch(self, end):
        return self.torch_side(["yardsticks"], end)

    def torch_side(self, arguments, end):
        """A JSON object a line; those before an error count."""
        small = ["--small"] if self.rehearsal else []
        side = os.path.join(self.here, "torch_side.py")
        ran = command([sys.executable, side, *arguments, *small], self.base, self.work, end, "torch")
        result = {}
        # A line that was being written when the time was up has no end.
        for line in ran.out.rpartition("\n")[0].splitlines():
            result |= json.loads(line)
        if "missing" in result and self.rehearsal:
            raise Skipped(result["missing"])
        try:
            ran.check("torch_side.py")
        except Failed as why:
            raise Failed(str(why), result) from None
        return result

    def run(self, arguments, end, name):
        """headwise, with the driver that was found."""
        return command([self.headwise, *arguments, "--quiet"], self.environment or self.base, self.work, end, name)

    def needs_adapter(self):
        if not self.environment:
            raise Skipped("no adapter")

    def needs_model(self, model):
        if not model:
            raise Skipped("the model was not written")


def room(work, wanted):
    """A folder with so many bytes free: memory first."""
    tried = []
    for folder in ["/dev/shm", work, os.getcwd()]:
        free = shutil.disk_usage(folder).free if os.path.isdir(folder) else 0
        if folder == "/dev/shm":
            # Beside the files, their readers want memory.
            free = min(free, available_memory() / 2)
        if free > wanted:
            return folder
        tried.append(f"{folder} {free / 1e9:.1f} GB")
    raise Failed(f"room for {wanted / 1e9:.1f} GB: found {', '.join(tried)}")


def available_memory():
    with open("/proc/meminfo", encoding="utf-8") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def size(folder):
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))


if __name__ == "__main__":
    sys.exit(main())
