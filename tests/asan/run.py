"""Builds the compiled modules with AddressSanitizer in a copy of the sources and fuzzes each: `make asan`.

Runs every `fuzz_*.py` beside this file with `--seconds` and `--seed`; exits 1 when one of them fails. Needs gcc's
libasan. WEIR_EXT=_fastpath builds only that module. Leaks are not looked for: the interpreter itself keeps memory.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ("*.py", "*.pyx", "*.pxd", "*.pxi", "*.pyi", "*.h", "*.yaml", "*.vocab", "*.txt", "LICENSE.*")


def copy_sources(into: Path) -> None:
    """Sources only, so that no module built without the sanitizer can be imported."""
    for pattern in SOURCES:
        for source in (ROOT / "proxy").rglob(pattern):
            target = into / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy2(ROOT / name, into / name)


def build(copy: Path) -> None:
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=copy,
        env={**os.environ, "WEIR_ASAN": "1"},
        check=True,
    )


def sanitized(copy: Path) -> dict[str, str]:
    """The environment in which Python loads the sanitizer first and allocates by malloc, where it can see."""
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_absolute():
        sys.exit("gcc has no libasan.so: install the sanitizer libraries of your compiler")
    return {
        **os.environ,
        "LD_PRELOAD": str(Path(library).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{copy}{os.pathsep}{ROOT}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for each script")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", default="", help="a script's name, such as fuzz_fastpath")
    chosen = parser.parse_args()
    scripts = [path for path in sorted(HERE.glob("fuzz_*.py")) if chosen.only in path.stem]
    if not scripts:
        parser.error(f"there is no script {chosen.only} in {HERE.relative_to(ROOT)}")
    failed = []
    with tempfile.TemporaryDirectory(prefix="weir-asan-") as directory:
        copy = Path(directory)
        copy_sources(copy)
        build(copy)
        environment = sanitized(copy)
        for script in scripts:
            print(f"== {script.stem}: {chosen.seconds:g} s, seed {chosen.seed}", flush=True)
            command = [sys.executable, str(script), "--seconds", str(chosen.seconds), "--seed", str(chosen.seed)]
            try:
                code = subprocess.run(command, env=environment, cwd=copy, timeout=chosen.seconds * 3 + 120).returncode
            except subprocess.TimeoutExpired:
                code = -1
            if code:
                failed.append(script.stem)
                print(f"== {script.stem}: FAILED with {code}, seed {chosen.seed}", flush=True)
    print(
        f"asan: {len(scripts) - len(failed)} of {len(scripts)} clean" + "".join(f", {name} failed" for name in failed)
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
