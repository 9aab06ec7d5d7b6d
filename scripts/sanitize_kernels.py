"""Run the native products of packed weights over random shapes under the address and undefined-behaviour sanitizers.

    python scripts/sanitize_kernels.py                  # here, with gcc, and with clang where it is installed
    python scripts/sanitize_kernels.py --cases 5000 --seed 7
    python scripts/sanitize_kernels.py --arm            # cross-compiled for 64-bit ARM, under qemu-user, without them

scripts/kernel_driver.c compares every instruction set with sums written as plainly as possible. --arm needs, on Debian:
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
SOURCES = [ROOT / "scripts" / "kernel_driver.c", *sorted((ROOT / "src/questlm/ops/cpu").rglob("*.c"))]
FLAGS = ["-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-pthread"]
SANITIZERS = [
    "-DUNROLL=",
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
]


def build_and_run(compiler: str, flags: list[str], runner: list[str], arguments: list[str]) -> None:
    """Build the driver with `compiler` and run it; exit with what it says where something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder) / "driver"
        print(f"{compiler}: building, which may take a minute", flush=True)
        subprocess.run([compiler, *FLAGS, *flags, *SOURCES, "-lm", "-o", driver], check=True)
        print(f"{compiler}: running", flush=True)
        if subprocess.run([*runner, driver, *arguments], check=False).returncode:
            sys.exit(f"the products built by {compiler} are wrong: see above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="random shapes and formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arm", action="store_true", help="for 64-bit ARM, under qemu-user")
    options = parser.parse_args()
    arguments = [str(options.cases), str(options.seed)]
    if options.arm:
        qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
        if qemu is None or shutil.which("aarch64-linux-gnu-gcc") is None:
            parser.error("--arm needs aarch64-linux-gnu-gcc and qemu-aarch64; the text above says how to get them")
        build_and_run("aarch64-linux-gnu-gcc", ["-O2", "-static"], [qemu, "-cpu", "max"], arguments)
        return
    compilers = [name for name in ("gcc", "clang") if shutil.which(name)]
    if not compilers:
        parser.error("no gcc or clang on the PATH")
    for compiler in compilers:
        build_and_run(compiler, SANITIZERS, [], arguments)


if __name__ == "__main__":
    main()
