#!/bin/sh
# gate.sh DIR [--emulator]: makes in DIR what `cargo check|clippy|build|test --features cuda,cudnn,nccl` needs on a
# machine with neither the CUDA toolkit nor a driver. Needs cargo, python3, cc and c++; downloads nothing but what
# cargo itself must fetch.
#
#   . DIR/env                              then run cargo
#   LD_LIBRARY_PATH=DIR/emulator ...       run what was built, on emulated devices (with --emulator; see README.md)
#
# DIR/bin/nvcc is a pretend compiler (nvcc.py). DIR/lib/stubs holds libraries under the names of the real ones, with
# every function that cudarc binds and none that works. So a build type-checks and links; it has no device code.
set -eu
if [ $# -lt 1 ] || [ $# -gt 2 ] || { [ $# = 2 ] && [ "$2" != --emulator ]; }; then
  echo "usage: gate.sh DIR [--emulator]" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin" "$1/lib/stubs" "$1/include"
dir=$(cd "$1" && pwd)
source_of() { # the folder of a package that the workspace locks
  cargo metadata --format-version 1 --all-features --locked --manifest-path "$here/../Cargo.toml" |
    python3 -c 'import json, os, sys
print(*(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$1"
}
cudarc=$(source_of cudarc)

cp "$here/nvcc.py" "$dir/bin/nvcc"
chmod +x "$dir/bin/nvcc"
python3 "$here/stubs.py" --list | while read -r library soname; do
  python3 "$here/stubs.py" "$cudarc" "$library" |
    cc -x c -shared -fPIC -Wl,-soname,"$soname" -o "$dir/lib/stubs/$soname" -
  ln -sf "$soname" "$dir/lib/stubs/lib$library.so"
done
cat > "$dir/env" <<ENV
export CUDA_HOME=$dir NVCC=$dir/bin/nvcc CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000
ENV

if [ "${2-}" = --emulator ]; then
  python3 "$here/emulator/build.py" "$dir/emulator" "$cudarc" "$(source_of candle-kernels)"
fi
