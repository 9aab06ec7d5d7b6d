"""Run the native kernels over random shapes and models under the address and undefined-behaviour sanitizers.

    python scripts/sanitize_kernels.py                  # here, with gcc, and with clang where it is installed
    python scripts/sanitize_kernels.py --cases 5000 --seed 7
    python scripts/sanitize_kernels.py --arm            # cross-compiled for 64-bit ARM, under qemu-user, without them

scripts/kernel_driver.c compares the products of every instruction set with sums written as plainly as possible, and
scripts/llama_driver.c whole models with a forward pass written so; scripts/rans_driver.c decodes streams, whole and
damaged. --arm needs, on Debian:
apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src/questlm/ops/cpu").rglob("*.c"))
DRIVERS = {"kernel_driver.c": 1, "llama_driver.c": 10, "rans_driver.c": 1}
"""Programs in scripts, and of how many cases each runs one."""
FLAGS = ["-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-pthread"]
SANITIZERS = [
    "-DUNROLL=",
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]


def build_and_run(compiler: str, flags: list[str], runner: list[str], cases: int, seed: int) -> None:
    """Build the drivers with `compiler` and run them; exit with what they say where something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"{compiler}: building, which may take a minute", flush=True)
        objects = [Path(folder) / f"{number}.o" for number in range(len(SOURCES))]
        for source, compiled in zip(SOURCES, objects, strict=True):
            subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", compiled], check=True)
        for name, share in DRIVERS.items():
            driver = Path(folder) / name.removesuffix(".c")
            subprocess.run(
                [compiler, *FLAGS, *flags, ROOT / "scripts" / name, *objects, "-lm", "-o", driver], check=True
            )
            print(f"{compiler}: running {driver.name}", flush=True)
            if subprocess.run([*runner, driver, str(max(1, cases // share)), str(seed)], check=False).returncode:
                sys.exit(f"the kernels built by {compiler} are wrong: see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="random shapes and formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", action="store_true", help="for 64-bit ARM, under qemu-user")
    options = parser.parse_args()
    if options.arm:
        qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        if qemu is None or shutil.which("aarch64-linux-gnu-gcc") is None:
            parser.error("--arm needs aarch64-linux-gnu-gcc and qemu-aarch64; the text above says how to get them")
        build_and_run("aarch64-linux-gnu-gcc", ["-O2", "-static"], [qemu, "-cpu", "max"], options.cases, options.seed)
        return
    compilers = [name for name in ("gcc", "clang") if shutil.which(name)]
    if not compilers:
        parser.error("no gcc or clang on the PATH")
    for compiler in compilers:
        build_and_run(compiler, SANITIZERS, [], options.cases, options.seed)


if __name__ == "__main__":
    main()
