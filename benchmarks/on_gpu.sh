#!/usr/bin/env bash
# Everything that only a GPU can show, in at most 25 minutes on one, in order of worth:
#
#     benchmarks/on_gpu.sh [correctness|compiling|measurements ...] [--dry-run] [--out FOLDER]
#
# correctness (at most 8 minutes): versions, a whole run, tests/test_gpu.py without what is compiled
# compiling (8 minutes): what torch.compile costs and gives, benchmarks/on_gpu.py
# measurements (8 minutes): evaluations and fleets against their limits, memory, precisions
#
# Each step has a time of its own and does not keep the next from being taken; its words, exit status and seconds go to FOLDER
# (benchmarks/results/on_gpu), which stays small. --dry-run takes a processor and tiny numbers: it tries the script, and gives
# each step six times as long, since a processor that others work on as well says nothing of a GPU's minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
parts=() out=benchmarks/results/on_gpu device=cuda tiny=() patience=1
while [ $# -gt 0 ]; do
    case "$1" in
        correctness|compiling|measurements) parts+=("$1") ;;
        --dry-run) device=cpu; tiny=(--tiny) patience=6 ;;
        --out) out="$2"; shift ;;
        *) echo "usage: benchmarks/on_gpu.sh [correctness|compiling|measurements ...] [--dry-run] [--out FOLDER]" >&2; exit 2 ;;
    esac
    shift
done
[ ${#parts[@]} -eq 0 ] && parts=(correctness compiling measurements)
mkdir -p "$out"
python=${PYTHON:-python}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$out/inductor}"

step() { # step NAME SECONDS COMMAND...: the last 200 lines of its words are kept
    local name="$1" seconds=$(($2 * patience)) started status
    shift 2
    started=$(date +%s)
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tail -n 200 > "$out/$name.log"
    status=${PIPESTATUS[0]}
    printf '{"step": "%s", "status": %d, "seconds": %d}\n' "$name" "$status" $(($(date +%s) - started)) | tee -a "$out/steps.jsonl"
}

correctness() {
    if [ "$device" = cuda ]; then
        step versions 20 bash -c "nvidia-smi; gcc --version; $python -m torch.utils.collect_env"
    fi
    rm -rf "$out/run"
    step run 90 "$python" -m clbench device=$device trainer.compile=off hydra.run.dir="$out/run" progress=false \
        trainer.max_steps_per_task="$([ $device = cpu ] && echo 2 || echo null)" wandb.mode=disabled
    rm -rf "$out/run/checkpoint"
    if [ "$device" = cuda ]; then
        step tests 420 "$python" -m pytest tests/test_gpu.py -k "not compiled" -n 6 --timeout 120 --junitxml "$out/tests.xml"
    else
        step tests 120 "$python" -m pytest tests/test_gpu.py --collect-only
    fi
}

checks() { # checks SECONDS_OF_ALL SECONDS_EACH NAMES...
    local seconds="$1" each=$(($2 * patience))
    shift 2
    step "checks_$1" "$seconds" "$python" benchmarks/on_gpu.py "$@" --device $device ${tiny[@]+"${tiny[@]}"} --seconds "$each" \
        --out "$out/checks.jsonl"
}

compiling() {
    checks 300 90 compile_auto_mlp_er compile_auto_mlp_ewc compile_auto_slim_resnet18_er without_compiler \
        compile_auto_small_vit_l2p compile_auto_fleet_of_8_mlp_ewc
    checks 180 90 compile_max_mlp_er compile_max_mlp_ewc compile_max_fleet_of_8_mlp_ewc compile_max_slim_resnet18_er
}

measurements() {
    local mlp=(--steps 100 --repetitions 3) resnet=(--steps 30 --subset 1000 --repetitions 2)
    local digits=(--steps 50 --repetitions 1 --numbers 1 4 16 64) large=(--steps 50 --repetitions 1 --numbers 1 4 16)
    if [ "$device" = cpu ]; then
        mlp=(--steps 2 --subset 20 --repetitions 1) resnet=(--steps 1 --subset 4 --repetitions 1)
        digits=(--steps 2 --subset 10 --repetitions 1 --numbers 1 2) large=(--steps 2 --subset 10 --repetitions 1 --numbers 1 2)
    fi
    step continual_eval_mlp 100 "$python" benchmarks/continual_eval.py --model mlp --device $device "${mlp[@]}" --out "$out"
    step fleet_digits_mlp 110 "$python" benchmarks/fleet.py --model digits_mlp --device $device "${digits[@]}" \
        --ways stacked "in turn" --out "$out"
    step fleet_mlp 80 "$python" benchmarks/fleet.py --model mlp --device $device "${large[@]}" --ways stacked "in turn" --out "$out"
    step continual_eval_slim_resnet18 80 "$python" benchmarks/continual_eval.py --model slim_resnet18 --device $device \
        "${resnet[@]}" --out "$out"
    checks 110 60 precisions evaluation_memory_1 evaluation_memory_2 evaluation_memory_4 evaluation_memory_8
}

for part in "${parts[@]}"; do
    "$part"
done
