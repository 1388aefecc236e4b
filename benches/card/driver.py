"""Finds the Vulkan driver of this machine: an NVIDIA card's, or Mesa's software driver where a run is rehearsed.

Containers often have a driver's libraries without the JSON file (its manifest) by which the Vulkan loader finds them, or have it
where no loader looks. Each manifest found is tried, then one written for each library found, until the command sees an adapter.
"""

import ctypes.util
import json
import os
import subprocess
import sys
import time
from glob import glob

SHARES = [
    "/etc", "/usr/share", "/usr/local/share", "/usr/local/nvidia/share", "/run/opengl-driver/share", "/opt/nvidia/share",
    os.path.expanduser("~/.local/share"), *os.environ.get("XDG_DATA_DIRS", "").split(":"),
]
LIBRARY_FOLDERS = [
    *os.environ.get("LD_LIBRARY_PATH", "").split(":"), "/usr/local/nvidia/lib64", "/usr/local/nvidia/lib",
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib64", "/usr/lib64/nvidia", "/usr/lib",
    "/run/opengl-driver/lib", "/usr/lib/wsl/lib",
]
# The names of manifests, and of the libraries that one can be written for.
NVIDIA = ("*nvidia*.json", ["libGLX_nvidia.so.0", "libEGL_nvidia.so.0", "libnvidia-vulkan-producer.so"])
SOFTWARE = ("lvp_icd*.json", ["libvulkan_lvp.so"])
MOST_WORDS = 2000


def find(headwise, work, base, rehearsal, end):
    """Environment in which `headwise` sees an adapter, or None; and every try. `work` has the loader.

    A rehearsal goes on when it has found one: it is to see that every way leads there.
    """
    environment, tries = None, []
    for what, changes in candidates(work, SOFTWARE if rehearsal else NVIDIA):
        found = adapters(headwise, base | changes, min(10, end - time.monotonic()))
        known = found if isinstance(found, list) else []
        fit = [adapter for adapter in known if adapter["backend"] == "vulkan" and adapter["software"] == rehearsal]
        tries.append({"what": what, "environment": changes, "found": found, "adapter": fit[0] if fit else None})
        if fit:
            environment = environment or base | changes
            if not rehearsal:
                break
    return environment, tries


def candidates(work, wanted):
    """What to try, in words, and the changes to the environment: with the loader that travels, then with the system's."""
    manifests, libraries = look(wanted)
    known = []
    if os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES"):
        known.append(("the environment's own driver", {}))
    for path in manifests:
        known.append((f"manifest {path}", {"VK_DRIVER_FILES": path, "VK_ICD_FILENAMES": path}))
    for path in libraries:
        manifest = write_manifest(work, path)
        known.append((f"library {path}", {"VK_DRIVER_FILES": manifest, "VK_ICD_FILENAMES": manifest}))
    # A driver's library has others of its own beside it.
    beside = list(dict.fromkeys(os.path.dirname(path) for path in libraries))
    for name, folders in [("the loader that travels", [work]), ("the system's loader", [])]:
        path = [*folders, *beside, *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))]
        for what, changes in known:
            yield f"{what}, {name}", changes | {"LD_LIBRARY_PATH": ":".join(path)}


def look(wanted):
    """Manifests and libraries of a driver."""
    pattern, names = wanted
    manifests = [path for share in SHARES if share for path in sorted(glob(f"{share}/vulkan/icd.d/{pattern}"))]
    libraries = []
    for name in names:
        here = [os.path.join(folder, name) for folder in LIBRARY_FOLDERS if folder]
        here = [path for path in here if os.path.exists(path)]
        libraries += here[:1] or [name] * linker_knows(name)
    return list(dict.fromkeys(manifests)), libraries


def linker_knows(name):
    stem = name.removeprefix("lib").split(".so")[0]
    return ctypes.util.find_library(stem) is not None


def write_manifest(work, library):
    path = os.path.join(work, os.path.basename(library) + ".json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"file_format_version": "1.0.0", "ICD": {"library_path": library, "api_version": "1.3.0"}}, file)
    return path


def adapters(headwise, environment, seconds):
    """The adapters that the command sees, or what it and the loader say instead."""
    if seconds <= 0:
        return "not tried: no time was left"
    loud = environment | {"VK_LOADER_DEBUG": "error,warn,driver"}
    try:
        ran = subprocess.run([headwise, "adapters", "--json"], env=loud, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"no answer in {seconds:.0f} s"
    if ran.returncode == 0:
        return json.loads(ran.stdout)
    return ran.stderr[-MOST_WORDS:]


def circumstances(rehearsal):
    """What stands where a driver should be, for a report that found none."""
    manifests, libraries = look(SOFTWARE if rehearsal else NVIDIA)
    return {
        "manifests": manifests,
        "all manifests": [path for share in SHARES if share for path in sorted(glob(f"{share}/vulkan/icd.d/*"))],
        # What a library lacks, such as libX11, is in the linker's message.
        "libraries": {path: loads(path) for path in libraries},
        "devices": sorted(glob("/dev/nvidia*") + glob("/dev/dri/*")),
    }


def loads(library):
    """Whether the linker takes a library, tried in a process of its own."""
    code = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    ran = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True, timeout=20)
    return "loads" if ran.returncode == 0 else ran.stderr.strip().splitlines()[-1]
