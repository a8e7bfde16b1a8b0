#!/usr/bin/env bash
# Everything there is to learn on a machine with NVIDIA GPUs, by one command: `just gpu`. Builds with the CUDA backend, runs its tests on the
# GPUs, trains, measures beside PyTorch, and writes one report. A step that fails does not keep the others from running.
#
#   examples/gpu/run.sh [OPTION ...]
#     --features LIST      of cuda, cudnn and nccl, separated by commas   [cuda]
#     --devices LIST       GPUs, such as cuda:0,cuda:1                    [the first two that there are]
#     --quick              fewer workloads and steps
#     --batch B            examples of a step that is measured            [each workload's own number]
#     --out FILE           where the report goes                          [gpu-report.md]
#     --torch PYTHON       a python with torch                            [python3, where that has torch]
#     --emulated GATE_DIR  no GPU: the emulated driver of `backends/cuda/gate.sh GATE_DIR --emulator`, to try this script; builds without
#                          optimization, and runs as little as shows that each step works
#
# Ends with 0 if every step passed, 1 if one failed, 2 if something is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

features=cuda devices='' quick='' batch='' out=gpu-report.md python='' gate=''

refuse() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
        --quick) quick=1 && continue ;;
        -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
        --features | --devices | --batch | --out | --torch | --emulated) [ $# -gt 0 ] || refuse "$option needs a value; see --help" ;;
        *) refuse "$option is no option; see --help" ;;
    esac
    case $option in
        --features) features=$1 ;;
        --devices) devices=$1 ;;
        --batch) batch=$1 ;;
        --out) out=$1 ;;
        --torch) python=$1 ;;
        --emulated) gate=$1 ;;
    esac
    shift
done
[[ $features =~ ^(cuda|cudnn|nccl)(,(cuda|cudnn|nccl))*$ ]] || refuse "--features $features: write cuda, or cuda,cudnn"
[[ $batch =~ ^([1-9][0-9]*)?$ ]] || refuse "--batch $batch: write a number of examples, such as 256"

# What must be there.

if [ -n "$gate" ]; then
    [ -e "$gate/emulator/libcuda.so.1" ] || refuse "$gate holds no emulated driver; run backends/cuda/gate.sh $gate --emulator"
    gate=$(cd "$gate" && pwd)
    # shellcheck disable=SC1091 # made by gate.sh
    . "$gate/env"
    gpus=${EMULATED_CUDA_DEVICES:-2}
    profile=debug build=(cargo build) test=(cargo test) emulated=(env "LD_LIBRARY_PATH=$gate/emulator")
else
    command -v nvidia-smi >/dev/null || refuse "nvidia-smi is missing; install the NVIDIA driver (r580 or newer for CUDA 13.0)"
    gpus=$(nvidia-smi -L | grep -c '^GPU') || refuse "nvidia-smi -L lists no GPU; see what nvidia-smi says"
    for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda; do
        command -v nvcc >/dev/null || [ ! -x "$home/bin/nvcc" ] || PATH=$home/bin:$PATH
    done
    command -v nvcc >/dev/null || refuse "nvcc is missing; install the CUDA toolkit, or set CUDA_HOME to where it is"
    profile=release build=(cargo build --release) test=(cargo test --release) emulated=()
fi
command -v cargo >/dev/null || refuse "cargo is missing; see https://rustup.rs"
if [ -z "$devices" ]; then
    devices=cuda:0
    [ "$gpus" -lt 2 ] || devices=cuda:0,cuda:1
fi
[[ $devices =~ ^cuda:[0-9]+(,cuda:[0-9]+)*$ ]] || refuse "--devices $devices: write GPUs, such as cuda:0,cuda:1"
IFS=, read -ra names <<<"$devices"
has_torch() { # one that can use GPUs, where there are any
    command -v "$1" >/dev/null && "$1" -c 'import sys, torch; sys.exit(not (sys.argv[1] or torch.cuda.is_available()))' "$gate" 2>/dev/null
}
if [ -n "$python" ]; then
    has_torch "$python" || refuse "--torch $python: that python has no torch which can use the GPUs"
elif has_torch python3; then
    python=python3
fi

# How much is run.

stages=4
if [ -n "$gate" ]; then
    workloads=(gpt) stages=2 steps=1 batch=${batch:-1} training=(--set steps=4)
elif [ -n "$quick" ]; then
    workloads=(resnet32 gpt) steps=10 training=(--set epochs=2)
else
    workloads=(resnet32 resnet18 gpt) steps=40 training=()
fi
size=()
[ -z "$batch" ] || size=(--batch "$batch")

interlock=("${emulated[@]}" "${CARGO_TARGET_DIR:-target}/$profile/interlock")
logs=$(mktemp -d)
results=$logs/results
touch "$results"
steps_table='' failures='' failed=0 complete='' fence='```'

# The steps, and what becomes of each.

# step NAME COMMAND ...: runs it, and goes on.
step() {
    local name=$1 start=$SECONDS code=0 log verdict
    shift
    log=$logs/$(printf '%s' "$name" | tr -c 'a-z0-9' -).log
    printf '\n== %s\n' "$name"
    "$@" >"$log" 2>&1 || code=$?
    case $code in
        0) verdict=passed ;;
        124) verdict='FAILED (out of time)' ;;
        *) verdict="FAILED (exit code $code)" ;;
    esac
    printf '%s, %s s\n' "$verdict" $((SECONDS - start))
    steps_table+="| $name | $verdict | $((SECONDS - start)) |"$'\n'
    [ "$code" -ne 0 ] || return 0
    failed=$((failed + 1))
    tail -n 40 "$log"
    failures+=$'\n'"### $name"$'\n\n'"${fence}text"$'\n'"$(tail -n 60 "$log" | tr -d '`')"$'\n'"$fence"$'\n'
}

limited() { # in the foreground, so that Ctrl-C ends what runs
    timeout --foreground --kill-after=10 "$@"
}

conformance() {
    INTERLOCK_TEST_DEVICES=cpu,$devices limited 3600 "${emulated[@]}" "${test[@]}" --locked --features "$features" \
        --package interlock-backends --test conformance -- --nocapture --test-threads=1
}

processes() {
    limited 900 "${emulated[@]}" "${test[@]}" --locked --features "$features" --package interlock-backends --test nccl -- --nocapture
}

golden() {
    limited 1800 "${interlock[@]}" replay --device "${names[0]}" models/tests/golden/*/
}

# toml SUFFIX: the devices as a list of a configuration.
toml() {
    local list
    list=$(printf ",\"%s$1\"" "${names[@]}")
    printf '[%s]' "${list:1}"
}

# main_job PRECISION: the built-in configuration; where it runs to its end the network must have learned.
main_job() {
    local suffix='' accuracy
    [ "$1" = f32 ] || suffix=,precision=$1
    limited 1800 "${interlock[@]}" train --set "devices=$(toml "$suffix")" "${training[@]}" --out "$logs/run-$1" --report "$logs/run-$1.json" \
        --plain || return
    accuracy=$(grep -m1 -o '"accuracy": *[0-9.]*' "$logs/run-$1.json" | grep -o '[0-9.]*$') || return
    printf 'accuracy of the last stage: %s\n' "$accuracy"
    printf 'accuracy %s %s\n' "$1" "$accuracy" >>"$results"
    [ ${#training[@]} -gt 0 ] || awk -v a="$accuracy" 'BEGIN { exit !(a >= 0.80) }'
}

# spread K [SUFFIX]: the device of each of K stages; neighbours share one where there are fewer devices.
spread() {
    local k
    for ((k = 0; k < $1; k++)); do
        printf '%s%s\n' "${names[k * ${#names[@]} / $1]}" "${2-}"
    done
}

# value KEY: a number or a word from a line of JSON.
value() {
    grep -o "\"$1\": *[^,}\"]*" | head -n 1 | sed 's/.*: *\[*//; s/[] ]*$//'
}

# cases: stages and width of each case that is measured.
cases() {
    printf '1 1\n%s 1\n%s 2\n' "$stages" "$stages"
    [ "$stages" -eq 2 ] || printf '%s %s\n' "$stages" "$stages"
}

# bench_steps WORKLOAD PRECISION
bench_steps() {
    local k n suffix='' on line code=0
    [ "$2" = f32 ] || suffix=,precision=$2
    while read -r k n; do
        mapfile -t on < <(spread "$k" "$suffix")
        line=$(limited 900 "${interlock[@]}" bench step --workload "$1" --stages "$k" --width "$n" --devices "${on[@]}" --steps "$steps" \
            "${size[@]}" --json) ||
            { code=$? && continue; }
        printf '%s\n' "$line"
        printf 'interlock %s %s %s %s %s %s -\n' "$1" "$2" "$k" "$n" "$(value step_seconds <<<"$line")" "$(value losses <<<"$line")" >>"$results"
    done < <(cases)
    return "$code"
}

# torch_steps WORKLOAD PRECISION: in every mode and layout that PyTorch has for it.
torch_steps() {
    local k n on mode layout modes layouts line code=0
    while read -r k n; do
        mapfile -t on < <(spread "$k")
        [ -z "$gate" ] || on=(cpu)
        modes=(sequential threads) layouts=(nchw nhwc)
        [ "$k" -gt 1 ] || modes=(sequential)
        [ "$1" != gpt ] || layouts=(nchw)
        for mode in "${modes[@]}"; do
            for layout in "${layouts[@]}"; do
                line=$(limited 900 "$python" examples/gpu/torch_step.py "$1" --stages "$k" --width "$n" --devices "${on[@]}" --mode "$mode" \
                    --layout "$layout" --precision "$2" --steps "$steps" "${size[@]}" --json) || { code=$? && continue; }
                printf '%s\n' "$line"
                printf 'torch %s %s %s %s %s %s %s,%s\n' "$1" "$2" "$k" "$n" "$(value step_seconds <<<"$line")" "$(value losses <<<"$line")" \
                    "$mode" "$layout" >>"$results"
            done
        done
    done < <(cases)
    return "$code"
}

# An activation to the next stage and a gradient back, one at a time.
transfers() {
    local pair bytes line code=0 pairs=("${names[0]} ${names[0]}" "cpu ${names[0]}")
    [ ${#names[@]} -lt 2 ] || pairs+=("${names[0]} ${names[1]}")
    for pair in "${pairs[@]}"; do
        for bytes in 4096 1048576 16777216; do
            # shellcheck disable=SC2086 # two names
            line=$(limited 300 "${interlock[@]}" bench runtime --stages 2 --width 2 --in-flight 1 --devices $pair --bytes "$bytes" \
                --steps "$steps" --json) || { code=$? && continue; }
            printf '%s\n' "$line"
            printf 'hop %s %s %s\n' "$pair" "$bytes" "$(value step_seconds <<<"$line")" >>"$results"
        done
    done
    return "$code"
}

# The report.

versions() {
    printf -- '- date: %s\n- commit: %s\n- system: %s, %s\n' "$(date -u '+%Y-%m-%d %H:%M UTC')" \
        "$(git describe --always --dirty 2>/dev/null || echo unknown)" "$(uname -srm)" \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1) ($(nproc) threads)"
    if [ -z "$gate" ]; then
        nvidia-smi --query-gpu=index,name,memory.total,compute_cap,driver_version,pcie.link.gen.max,pcie.link.width.max --format=csv,noheader |
            sed 's/^/- GPU /' || true
    fi
    printf -- '- nvcc: %s\n- %s\n- %s\n' "$("${NVCC:-nvcc}" --version | grep -o 'release.*' || echo unknown)" "$(cargo --version)" "$(rustc --version)"
    printf -- '- features: %s; devices: %s; examples a step: %s\n- PyTorch: ' "$features" "$devices" "${batch:-those of each workload}"
    if [ -n "$python" ]; then
        "$python" -c 'import torch; print(torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())'
    else
        echo 'none that can use the GPUs; give one with --torch'
    fi
    if [ -z "$gate" ] && [ "$gpus" -gt 1 ]; then
        printf '\n%stext\n%s\n%s\n' "$fence" "$(nvidia-smi topo -m | sed 's/\x1b\[[0-9;]*m//g')" "$fence"
    fi
}

comparison() {
    awk '
        function ms(seconds) { return seconds == "" ? "–" : sprintf("%.3f", seconds * 1e3) }
        { key = $2 " | " $4 " | " $5 " | " $3 }
        $1 == "interlock" { if (!(key in ours) && !(key in theirs)) order[++count] = key; ours[key] = $6; loss[key] = $7 }
        $1 == "torch" {
            if (!(key in ours) && !(key in theirs)) order[++count] = key
            if (!(key in theirs) || $6 < theirs[key]) { theirs[key] = $6; how[key] = $8 }
            their_loss[key] = $7
        }
        END {
            for (i = 1; i <= count; i++) {
                key = order[i]
                ratio = (key in ours) && (key in theirs) ? sprintf("%.2f", theirs[key] / ours[key]) : "–"
                printf "| %s | %s | %s | %s | %s | %s / %s |\n", key, ms(ours[key]), ms(theirs[key]), how[key], ratio,
                    key in loss ? sprintf("%.3f", loss[key]) : "–", key in their_loss ? sprintf("%.3f", their_loss[key]) : "–"
            }
        }' "$results"
}

hops() {
    awk '$1 == "hop" { printf "| %s → %s | %d | %.1f | %.2f |\n", $2, $3, $4, $5 / 2 * 1e6, $4 / ($5 / 2) / 2 ^ 30 }' "$results"
}

write_report() {
    trap - EXIT
    {
        if [ -n "$gate" ]; then
            printf 'NO GPU WAS USED: THIS RAN ON AN EMULATED DRIVER, AND NO TIME IN IT MEANS ANYTHING.\n\n'
        fi
        printf '# Interlock on GPUs\n\n'
        [ -n "$complete" ] || printf 'This run was broken off; what follows is what it got to.\n\n'
        cat "$logs/versions"
        printf '\n## Steps\n\n| step | verdict | seconds |\n|---|---|---|\n%s' "$steps_table"
        if grep -q '^accuracy' "$results"; then
            printf '\nAccuracy of the last stage after training: '
            awk '$1 == "accuracy" { printf "%s%s in %s", sep, $3, $2; sep = ", " } END { print "." }' "$results"
        fi
        printf '\n## Training steps\n\nMilliseconds a step; the ratio is PyTorch'\''s time by Interlock'\''s: above 1, Interlock is faster. '
        printf 'PyTorch is its best of the modes and layouts tried. Losses are the first, which differ as initial parameters do.\n\n'
        printf '| workload | stages | width | precision | Interlock, ms | PyTorch, ms | by | ratio | losses |\n|---|---|---|---|---|---|---|---|---|\n'
        comparison
        printf '\n## Crossing between devices\n\nAn activation one way and a gradient back, one at a time, with messages and host included; half of both.\n\n'
        printf '| between | bytes | µs a hop | GiB/s |\n|---|---|---|---|\n'
        hops
        if [ -n "$failures" ]; then
            printf '\n## What failed\n%s' "$failures"
        fi
        printf '\n## What to do with it\n\n'
        if [ -n "$gate" ]; then
            printf 'Nothing: it shows that the script works. On a machine with a GPU, run: just gpu\n'
        else
            printf 'This file holds the models of the processor and the GPUs and the versions of software, and nothing else of the machine; read it before you pass it on.\n\n'
            printf -- '- Something failed: attach the file to an issue of this project. docs/cuda.md explains the errors and what to try.\n'
            printf -- '- All passed: attach it too. Each kind of GPU, driver and toolkit that passes is one more that docs/cuda.md can name as run on hardware.\n'
            printf -- '- The numbers are for this machine. Compare ratios, not times, with those of others.\n'
        fi
    } >"$out"
    printf '\nthe report is in %s\n' "$out"
    rm -rf "$logs"
}

[ -n "$gate" ] || nvidia-smi
versions | tee "$logs/versions"
trap write_report EXIT
trap 'exit 130' INT TERM

step build limited 3600 "${build[@]}" --locked --features "$features"
if [ "$failed" -eq 0 ]; then
    step devices limited 120 "${interlock[@]}" devices
    step conformance conformance
    step 'reference runs' golden
    if [[ ,$features, == *,nccl,* && $gpus -gt 1 ]]; then
        step 'two processes by NCCL' processes
    fi
    for precision in f32 bf16; do
        step "main job, $precision" main_job "$precision"
    done
    for workload in "${workloads[@]}"; do
        for precision in f32 bf16; do
            step "steps of $workload, $precision" bench_steps "$workload" "$precision"
            [ -z "$python" ] || step "the same in PyTorch: $workload, $precision" torch_steps "$workload" "$precision"
        done
    done
    step 'crossing between devices' transfers
    step messages limited 300 "${interlock[@]}" bench mailbox
fi
complete=1
[ "$failed" -eq 0 ]
