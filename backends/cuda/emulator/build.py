#!/usr/bin/env python3
"""Builds the emulated CUDA libraries: build.py DIR CUDARC CANDLE_KERNELS.

DIR gets the libraries under their SONAMEs. Each kernel source of candle-kernels, and of backends/src/cuda/kernels, is
compiled for the host after two changes in a copy in DIR/build: dynamic shared memory becomes a pointer, and a line is
added for each kernel by which the driver finds it. What is newer than what it is made of is not made again.
"""

import pathlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import stubs  # noqa: E402

CANDLE = ["affine", "binary", "cast", "conv", "fill", "indexing", "reduce", "sort", "ternary", "unary"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing", "-g1"]
# What GPU compilers accept and warn of less.
KERNEL_FLAGS = ["-w", "-include", str(HERE / "device/device.h"), f"-I{HERE / 'device/include'}"]
PARTS = {
    "cuda": ["driver", "device"],
    "cublas": ["cublas"],
    "curand": ["curand"],
    "cudnn": ["cudnn"],
    "nccl": ["nccl"],
}


def run(*command, **options):
    """Runs a command and gives its standard output; the process ends with its errors where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(str(word) for word in command)}\n{done.stdout}{done.stderr}")
    sys.stderr.write(done.stderr)
    return done.stdout


def compiled(source, target, flags):
    """Compiles `source` unless `target` is newer than all that it was made of."""
    made_of = target.with_suffix(".d")
    if target.exists() and made_of.exists():
        files = [__file__] + made_of.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        if all(pathlib.Path(file).exists() and pathlib.Path(file).stat().st_mtime < target.stat().st_mtime for file in files):
            return target
    run("c++", *FLAGS, *flags, "-MMD", "-MF", made_of, "-c", source, "-o", target)
    return target


def written(path, text):
    """Writes a file unless it has that text already."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def kernel_source(source, build):
    """A copy of a .cu file that registers its kernels."""
    text = source.read_text()
    text = re.sub(
        r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;",
        r"\1 *\2 = static_cast<\1 *>(emulator::dynamic_shared());",
        text,
    )
    plain = written(build / f"{source.stem}.plain.cpp", f'#line 1 "{source}"\n{text}')
    flags = [*FLAGS, "-D__global__=EMULATED_GLOBAL", *KERNEL_FLAGS, f"-I{source.parent}"]
    expanded = run("c++", "-E", "-P", *flags, plain)
    names = re.findall(r'extern\s+"C"\s+EMULATED_GLOBAL\s+void\s+(\w+)\s*\(', expanded)
    lines = [f'EMULATED_KERNEL("{source.stem}", {name})' for name in sorted(set(names))]
    # Within a namespace of its own, so that no function of one source is taken for one of another.
    headers = [HERE / "device/launch.h", *sorted(HERE.glob("device/include/*.h")), HERE / "device/include/cuda/std/limits"]
    parts = [f'#include "{header}"' for header in headers] + ["namespace {", f'#include "{plain}"', *lines, "}", ""]
    return written(build / f"{source.stem}.kernels.cpp", "\n".join(parts))


def main():
    target, cudarc, candle = (pathlib.Path(path).resolve() for path in sys.argv[1:])
    build = target / "build"
    build.mkdir(parents=True, exist_ok=True)
    kernels = [candle / "src" / f"{name}.cu" for name in CANDLE]
    kernels += sorted((HERE.parents[1] / "src/cuda/kernels").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        objects = {library: [] for library in stubs.LIBRARIES}
        for library, folders in PARTS.items():
            for folder in folders:
                for source in sorted((HERE / folder).glob("*.cpp")):
                    object_file = build / f"{folder}-{source.stem}.o"
                    objects[library].append(pool.submit(compiled, source, object_file, WARNINGS))
        for source in kernels:
            def kernel(source=source):
                copy = kernel_source(source, build)
                return compiled(copy, build / f"{source.stem}.kernels.o", [*KERNEL_FLAGS, f"-I{source.parent}"])
            objects["cuda"].append(pool.submit(kernel))
        objects = {library: [str(job.result()) for job in jobs] for library, jobs in objects.items()}
    for library, (_, soname, _) in stubs.LIBRARIES.items():
        rest = build / f"{library}.stubs.c"
        written(rest, run(sys.executable, HERE.parent / "stubs.py", cudarc, library, *objects[library]))
        run("cc", "-w", "-O1", "-fPIC", "-c", rest, "-o", rest.with_suffix(".o"))
        needs = [] if library == "cuda" else [target / stubs.LIBRARIES["cuda"][1]]
        run("c++", "-shared", "-pthread", f"-Wl,-soname,{soname}", "-Wl,--no-undefined", "-Wl,-rpath,$ORIGIN",
            *objects[library], rest.with_suffix(".o"), *needs, "-o", target / soname)


main()
