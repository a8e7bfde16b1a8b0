#!/usr/bin/env python3
"""Writes C for every function of a CUDA library that cudarc binds, each answering that it is not there.

stubs.py CUDARC LIBRARY [DEFINED...]: CUDARC is the source folder of cudarc, LIBRARY a key of LIBRARIES; the functions
that the object files DEFINED already have are left out. `stubs.py --list` prints LIBRARY, SONAME a line.
"""

import pathlib
import re
import subprocess
import sys

# Library: module of cudarc, SONAME, what a function answers that is not there ("not supported" of that library).
LIBRARIES = {
    "cuda": ("driver", "libcuda.so.1", 801),
    "nvrtc": ("nvrtc", "libnvrtc.so.13", 11),
    "curand": ("curand", "libcurand.so.10", 201),
    "cublas": ("cublas", "libcublas.so.13", 15),
    "cublasLt": ("cublaslt", "libcublasLt.so.13", 15),
    "cudnn": ("cudnn", "libcudnn.so.9", 3000),
    "nccl": ("nccl", "libnccl.so.2", 5),
    "cudart": ("runtime", "libcudart.so.13", 801),
}


def symbols(cudarc, module):
    """The names of the C functions that cudarc's bindings of `module` declare, sorted."""
    text = pathlib.Path(cudarc, "src", module, "sys", "mod.rs").read_text()
    return sorted(set(re.findall(r"\bfn\s+((?:cu|nvrtc|p?nccl)\w+)\s*\(", text)))


def defined(objects):
    """The names of the functions that the object files have."""
    if not objects:
        return set()
    lines = subprocess.run(["nm", "--defined-only", *objects], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in lines.splitlines() if " T " in line}


def main():
    if sys.argv[1:] == ["--list"]:
        for library, (_, soname, _) in LIBRARIES.items():
            print(library, soname)
        return
    cudarc, library, *objects = sys.argv[1:]
    module, soname, status = LIBRARIES[library]
    there = defined(objects)
    print("#include <stdio.h>")
    for name in symbols(cudarc, module):
        if name in there:
            continue
        if name in ("cuGetErrorName", "cuGetErrorString", "ncclGetErrorString", "cublasGetStatusString"):
            text = f"{soname} of the pretend toolchain: no driver here"
            if name.startswith("cuGet"):
                print(f'int {name}(int code, const char **text) {{ (void)code; *text = "{text}"; return 0; }}')
            else:
                print(f'const char *{name}(int code) {{ (void)code; return "{text}"; }}')
            continue
        print(f'int {name}(void) {{ fputs("{soname}: {name} is not there\\n", stderr); return {status}; }}')


if __name__ == "__main__":
    main()
