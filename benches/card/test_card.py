"""What a run promises where a card misbehaves: `python3 -m unittest discover benches/card`."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

import checks
import driver
import run
import table
from parts import Failed, Ran, Report, Skipped, command, run_all

HANGS = "import subprocess, sys; print(1, flush=True); subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
HARNESS = """
running 4 tests
test a ... ok
test b - should panic ... ok
test c ... FAILED
test d ... ignored

failures:

---- c stdout ----

thread 'c' panicked at tests/c.rs:1:1:
found 2, expected 1


failures:
    c

test result: FAILED. 2 passed; 1 failed
"""


class Card(unittest.TestCase):
    def setUp(self):
        self.work = self.enterContext(tempfile.TemporaryDirectory())

    def run_parts(self, parts, seconds):
        """The statuses on disk, and what each part could read there when it began."""
        path = os.path.join(self.work, "report.json")
        seen = []

        def watched(function):
            def part(end):
                with open(path, encoding="utf-8") as file:
                    seen.append([part["status"] for part in json.load(file)["parts"]])
                return function(end)

            return part

        with contextlib.redirect_stdout(io.StringIO()):
            run_all([(name, own, watched(function)) for name, own, function in parts], Report(path, {}), seconds)
        with open(path, encoding="utf-8") as file:
            return [part["status"] for part in json.load(file)["parts"]], seen

    def test_a_part_that_fails_or_hangs_costs_no_other(self):
        def hangs(end):
            command([sys.executable, "-c", HANGS], dict(os.environ), self.work, end).check("it")

        def fails(_):
            raise Failed("so it is", {})

        def cannot(_):
            raise Skipped("no need")

        start = time.monotonic()
        parts = [("breaks", 1, lambda _: 1 / 0), ("fails", 1, fails), ("hangs", 1, hangs), ("skips", 1, cannot), ("works", 1, lambda _: {})]
        statuses, seen = self.run_parts(parts, 5)
        self.assertEqual(statuses, ["failed", "failed", "failed", "skipped", "ok"])
        self.assertEqual(seen[4], ["failed", "failed", "failed", "skipped", "running"])
        self.assertLess(time.monotonic() - start, 5)

    def test_a_part_may_have_what_others_left_but_not_what_later_ones_need(self):
        ends = []

        def part(end):
            ends.append(round(end - time.monotonic()))
            return {}

        self.run_parts([("a", 10, part), ("b", 10, part), ("c", 10, part)], 35)
        self.assertEqual(ends, [15, 20, 20])

    def test_what_was_said_before_the_time_was_up_is_there(self):
        ran = command([sys.executable, "-c", HANGS], dict(os.environ), self.work, time.monotonic() + 1)
        self.assertEqual((ran.code, ran.out), (None, "1\n"))

    def test_the_parts_have_no_more_than_the_run(self):
        parts = run.Run.parts(mock.Mock())
        self.assertLessEqual(sum(own for _, own, _ in parts), run.SECONDS)
        self.assertLessEqual(run.SECONDS, 480)

    def test_tests_are_counted_where_they_ended_and_where_they_were_stopped(self):
        whole = checks.read_tests(Ran(101, HARNESS, ""))
        self.assertEqual((whole["passed"], list(whole["failed"]), whole["finished"]), (2, ["c"], True))
        self.assertIn("found 2, expected 1", whole["failed"]["c"])
        stopped = checks.read_tests(Ran(None, HARNESS[: HARNESS.index("test c")], ""))
        self.assertEqual((stopped["passed"], stopped["failed"], stopped["finished"]), (2, {}, False))

    def test_a_library_without_a_manifest_gets_one(self):
        library = os.path.join(self.work, "libGLX_nvidia.so.0")
        open(library, "w").close()
        folders = {"SHARES": [self.work], "LIBRARY_FOLDERS": [self.work]}
        with mock.patch.multiple(driver, **folders), mock.patch.dict(os.environ, clear=True):
            (what, changes), _ = driver.candidates(self.work, driver.NVIDIA)
            self.assertEqual(what, f"library {library}, the loader that travels")
            with open(changes["VK_DRIVER_FILES"], encoding="utf-8") as file:
                self.assertEqual(json.load(file)["ICD"]["library_path"], library)
            os.makedirs(f"{self.work}/vulkan/icd.d")
            open(f"{self.work}/vulkan/icd.d/nvidia_icd.json", "w").close()
            first, *_ = driver.candidates(self.work, driver.NVIDIA)
            self.assertEqual(first[0], f"manifest {self.work}/vulkan/icd.d/nvidia_icd.json, the loader that travels")

    def test_a_table_is_made_of_whatever_there_is(self):
        head = {"rehearsal": False, "date": "2026-01-02 03:04", "packed": {"version": "1", "commit": "c"}, "machine": {"cores": 1}}
        failed = {"name": "driver", "status": "failed", "why": "0 of 0 ways", "result": {"adapter": None, "tries": []}}
        copy = {"name": "torch", "status": "ok", "result": {"torch": "2", "device": "card", "copy 64 MiB": {"median": 4e12}}}
        row = {"what": "decode", "tokens_per_second": 10.0, "needed_per_second": 1e12, "ratio": 0.5}
        host = {"host_seconds": {"median": 1e-3}, "cold_start": {"load_seconds": 1.0}}
        bench = {"name": "bench q4", "status": "ok", "result": {"rows": [row]} | host}
        text = table.markdown(head | {"parts": [failed, bench, copy]})
        self.assertIn("- driver: 0 of 0 ways", text)
        # 1e12 of 4e12 bytes a second.
        self.assertIn("| the same, q4 | 10.0 | 1e+03 | 0.250 | 0.5 |", text)
        self.assertIn("running", table.markdown(head | {"parts": [{"name": "driver", "status": "running"}]}))

    def test_a_file_that_is_no_report_is_said_to_be_none(self):
        head = {"rehearsal": False, "date": "2026-01-02 03:04", "packed": {"version": "1", "commit": "c"}, "machine": {"cores": 1}}
        cases = {
            "": "found no JSON",
            "\xff\x00": "found no JSON",
            "[1]": "found JSON without packed, machine, date, rehearsal, parts",
            json.dumps(head): "found JSON without parts",
            json.dumps(head | {"parts": [{"status": "ok"}]}): "found a report that cannot be read (KeyError: 'name')",
            json.dumps(head | {"parts": 7}): "found a report that cannot be read (TypeError",
        }
        path = os.path.join(self.work, "some.json")
        for text, message in cases.items():
            with open(path, "w", encoding="latin-1") as file:
                file.write(text)
            code, said = self.gpu_check({}, "table", path, self.work)
            self.assertEqual(code, 1)
            self.assertTrue(said.startswith(f"{path}: {message}"), said)
            self.assertEqual(said.count("\n"), 1)
        self.assertEqual(self.gpu_check({}, "table", path + "s", self.work), (1, f"{path}s: No such file or directory\n"))
        self.assertEqual(os.listdir(self.work), ["some.json"])

    def test_a_python_that_is_not_there_is_named_and_nothing_is_installed(self):
        # Whatever would install something fails loudly.
        bin = os.path.join(self.work, "bin")
        os.mkdir(bin)
        for name in ("apt-get", "sudo"):
            with open(os.path.join(bin, name), "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\ntouch '{self.work}/installed'\n")
            os.chmod(os.path.join(bin, name), 0o755)
        environment = {"PYTHON": "/no/such/python", "PATH": bin + os.pathsep + os.environ["PATH"]}
        for arguments in [(), ("table", "some.json")]:
            code, said = self.gpu_check(environment, *arguments)
            self.assertEqual((code, said.count("\n")), (1, 1), said)
            self.assertIn("PYTHON: found '/no/such/python'", said)
        self.assertEqual(os.listdir(self.work), ["bin"])

    def gpu_check(self, environment, *arguments):
        """Exit code, and what was said on stderr."""
        script = os.path.join(os.path.dirname(__file__), "..", "..", "scripts", "gpu-check")
        environment = {"PYTHON": sys.executable} | environment
        ran = subprocess.run(["bash", script, *arguments], env=dict(os.environ) | environment, capture_output=True, text=True)
        return ran.returncode, ran.stderr


if __name__ == "__main__":
    unittest.main()
