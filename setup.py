"""Builds the compiled parts. Everything else is in pyproject.toml.

WEIR_EXT=_wire builds only that one, WEIR_EXT=none builds none; WEIR_ASAN=1 builds with AddressSanitizer.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

NAMES = ["_fastpath", "_journal", "_scan", "_wire"]
only = os.environ.get("WEIR_EXT")
asan = os.environ.get("WEIR_ASAN") == "1"
flags = ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"] if asan else ["-O3"]
link = ["-fsanitize=address"] if asan else []

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"proxy.{name}",
                [f"proxy/{name}.pyx"],
                depends=[str(header) for header in Path("proxy").glob("*.h")],
                extra_compile_args=[*flags, "-std=gnu11", "-Wall", "-Wno-unused-function"],
                extra_link_args=link,
            )
            for name in NAMES
            if Path(f"proxy/{name}.pyx").exists() and (only is None or only == name)
        ],
        language_level=3,
        build_dir="build/cython",
        compiler_directives={"boundscheck": False, "wraparound": False, "initializedcheck": False},
    ),
)
