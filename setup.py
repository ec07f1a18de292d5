"""Builds the compiled parts and the token tables. Everything else is in pyproject.toml.

WEIR_EXT=_wire builds only that one, WEIR_EXT=none builds none; WEIR_ASAN=1 builds with AddressSanitizer. The tables are
built with any of them, but only when they are not there yet or their sources have changed.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A build by pip does not look for modules beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from proxy.tokens import tables

NAMES = ["_fastpath", "_front", "_journal", "_scan", "_wire"]
only = os.environ.get("WEIR_EXT")
asan = os.environ.get("WEIR_ASAN") == "1"
flags = ["-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer"] if asan else ["-O3"]
link = ["-fsanitize=address"] if asan else []


class BuildWithTables(build_ext):
    """Extensions, then the tables: in the source tree, or where the wheel is put together."""

    def run(self):
        super().run()
        into = tables.DIRECTORY if self.inplace else Path(self.build_lib, "proxy", "tokens", "vocab")
        for name in tables.build_all(into):
            print(f"built {tables.path(name, into)}")


setup(
    cmdclass={"build_ext": BuildWithTables},
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
