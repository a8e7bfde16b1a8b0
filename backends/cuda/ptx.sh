#!/bin/sh
# ptx.sh DIR [FILE.cu...]: compiles kernels with NVIDIA's own compiler, on a machine that needs no GPU, and prints for
# each kernel and architecture the registers, shared memory and spills that ptxas tells. Run it when kernels change.
# Without files: those of backends/src/cuda/kernels. DIR gets FILE.ptx (for sm_80 and later) of each.
#
# The compiler (CUDA 13.0, about 100 MB) comes from PyPI once, into DIR/toolkit; needs python3 with pip, and c++.
set -eu
[ $# -ge 1 ] || { echo "usage: ptx.sh DIR [FILE.cu...]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
if [ $# = 0 ]; then
  set -- "$here"/../src/cuda/kernels/*.cu
  [ -e "$1" ] || { echo "ptx.sh: no kernels in backends/src/cuda/kernels, and no files were given" >&2; exit 1; }
fi
home=$dir/toolkit/nvidia/cu13
if ! [ -x "$home/bin/nvcc" ]; then
  python3 -m pip install --quiet --no-deps --only-binary :all: --target "$dir/toolkit" \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
fi
for file; do
  name=$(basename "$file" .cu)
  compile() { "$home/bin/nvcc" -std=c++17 -O3 --expt-relaxed-constexpr -I"$(dirname "$file")" "$@" "$file"; }
  compile --ptx -gencode=arch=compute_80,code=compute_80 -o "$dir/$name.ptx"
  for arch in 80 90 120; do
    echo "$name.cu sm_$arch"
    log=$dir/$name.sm_$arch.log
    compile --cubin -gencode=arch=compute_$arch,code=sm_$arch -Xptxas=-v -o "$dir/$name.sm_$arch.cubin" >"$log" 2>&1 ||
      { cat "$log" >&2; exit 1; }
    awk -F "'" '/Compiling entry function/ { kernel = $2 }
      /bytes stack frame/ { spills = $0; sub(/.*stack frame, /, "", spills) }
      /Used [0-9]+ registers/ {
        used = $0; sub(/.*Used /, "", used); sub(/, used [0-9]+ barriers/, "", used)
        printf "  %-28s %s; %s\n", kernel, used, spills
      }' "$log"
  done
done
