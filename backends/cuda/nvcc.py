#!/usr/bin/env python3
"""A pretend nvcc: answers what `cudaforge` asks of the CUDA compiler, and compiles nothing.

A PTX file holds one comment line that names its module, an object file is empty, and a library has every function
that `src/ffi.rs` of the crate being built declares, each of which ends the process when called.
"""

import os
import pathlib
import re
import subprocess
import sys

VERSION = """nvcc: pretend NVIDIA (R) Cuda compiler driver
No device code is compiled.
This toolchain only satisfies builds.
Cuda compilation tools, release 13.0, V13.0.0
"""
WITH_VALUE = {"-o", "--output-directory", "--default-stream", "-Xcompiler", "-ccbin", "-I"}


def compile_c(source, output):
    """Compiles C `source` to the position-independent object `output`."""
    command = ["cc", "-x", "c", "-c", "-fPIC", "-o", str(output), "-"]
    subprocess.run(command, input=source, text=True, check=True)


def library(output, objects):
    """Archives `objects` with a function for each declaration of the crate's `src/ffi.rs`."""
    declared = pathlib.Path("src/ffi.rs")
    text = declared.read_text() if declared.exists() else ""
    names = sorted(set(re.findall(r"\bfn\s+(\w+)\s*\(", text)))
    functions = pathlib.Path(f"{output}.functions.o")
    compile_c("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names), functions)
    pathlib.Path(output).unlink(missing_ok=True)
    subprocess.run(["ar", "crs", output, str(functions), *objects], check=True)


def main():
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(VERSION, end="")
        return
    if "--list-gpu-code" in arguments:
        print("sm_80\nsm_90\nsm_100\nsm_120")
        return
    values, flags, files = {}, set(), []
    rest = iter(arguments)
    for argument in rest:
        if argument in WITH_VALUE:
            values[argument] = next(rest)
        elif argument.startswith("-"):
            flags.add(argument)
        else:
            files.append(argument)
    if "--ptx" in flags:
        for file in files:
            name = pathlib.Path(file).stem
            directory = values.get("--output-directory", os.curdir)
            pathlib.Path(directory, f"{name}.ptx").write_text(f"// {name}\n")
    elif "--lib" in flags:
        library(values["-o"], files)
    elif "-c" in flags:
        compile_c("", values["-o"])
    else:
        sys.exit(f"pretend nvcc: expected --version, --list-gpu-code, --ptx, -c or --lib, got {arguments}")


main()
