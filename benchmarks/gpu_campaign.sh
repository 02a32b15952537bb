#!/usr/bin/env bash
# Everything worth measuring on a GPU in one command of at most nine minutes, most valuable first: the tests marked gpu,
# all benchmarks, and a training on JPEG files with and without compilation.
#
#     bash benchmarks/gpu_campaign.sh                 from the root of the repository, with semaim installed
#
# On a GPU machine without network that has torch, torchvision, timm and pytest, but not the rest: make .gpu_wheels on
# another machine first, and copy it with the repository.
#
#     bash benchmarks/gpu_campaign.sh prepare [PYTHON_VERSION_OF_THE_GPU_MACHINE]
#
# Variables: OUT, folder of the results (benchmarks/new): summary.txt, *.json, *.jsonl, *.log. Move what is to be kept to
# benchmarks/results/<date>_<card>_<name>, and run `python -m benchmarks table`. PARTS (tests step train more): what to
# do. LIMIT (540): seconds in all. DRY=1 does the same in miniature on a CPU, to see that it works; GPU tests are only
# collected. The exit code is 1 if something failed.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = prepare ]; then
    wheels="hydra-core omegaconf submitit hydra-submitit-launcher cloudpickle
        pydantic pydantic-core annotated-types typing-inspection typing-extensions"
    # shellcheck disable=SC2086
    python3 -m pip download -q -c constraints.txt -d .gpu_wheels --no-deps --only-binary=:all: \
        --python-version "${2:-3.12}" $wheels &&
        python3 -m pip wheel -q -w .gpu_wheels --no-deps antlr4-python3-runtime==4.9.3 && ls .gpu_wheels
    exit
fi

OUT=$(realpath -m "${OUT:-benchmarks/new}")
PARTS=${PARTS:-tests step train more}
LIMIT=${LIMIT:-540}
DRY=${DRY:-}
failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"
: >"$OUT/summary.txt"
# Options of a user's own do not matter here.
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" SEMAIM_SITE=/nowhere

say() { echo "[$SECONDS s] $*" | tee -a "$OUT/summary.txt"; }

part() { # NAME SECONDS COMMAND...: runs within these seconds and what is left, output to NAME.log; $LINE: what to tell of it
    local name=$1 seconds=$2 left=$((LIMIT - SECONDS))
    shift 2
    if [ $left -lt 10 ]; then
        say "$name: left out, no time left"
        return
    fi
    timeout --kill-after=5 $((seconds < left ? seconds : left)) "$@" >"$OUT/$name.log" 2>&1
    local code=$?
    [ $code = 0 ] || failed=1
    say "$name: exit code $code; $(grep -aE "${LINE:-[^ ]}" "$OUT/$name.log" | tail -1 | cut -c1-150)"
}

gpu_tests() {
    local only=()
    [ -z "$DRY" ] || only=(--collect-only)
    # shellcheck disable=SC2046
    part tests 100 python3 -m pytest -q -p no:cacheprovider -m gpu "${only[@]}" $(grep -rl 'mark\.gpu' tests --include='*.py')
}

benchmarks() { # NAME SECONDS RESULT...: these results of `python -m benchmarks all`
    local name=$1 seconds=$2 left=$((LIMIT - SECONDS)) small=()
    shift 2
    [ -z "$DRY" ] || small=(--small)
    [ "$seconds" -lt $left ] || seconds=$((left - 5))
    part "$name" $((seconds + 5)) python3 -m benchmarks all "${small[@]}" --out "$OUT" --only "$@" \
        --minutes "$(awk "BEGIN { print $seconds / 60 }")"
    grep -E '^\||: (done|failed|stopped|left out)' "$OUT/$name.log" >>"$OUT/summary.txt"
}

training() { # NAME OPTION...: a training on JPEG files, and its journal
    local name=$1
    shift
    LINE="images/s" part "$name" 100 python3 -m semaim.run tracking=none data=folder data.root="$work/images" 'evaluators=[]' \
        runs_dir="$work/runs" run_name="$name" trainer.save_every_epochs=1000 "$@"
    [ ! -e "$work/runs/$name/metrics.jsonl" ] || cp "$work/runs/$name/metrics.jsonl" "$OUT/$name.jsonl"
}

trainings() {
    local images=4096 options=(model=aim_base optimizer=adamw trainer.batch_size=256 trainer.epochs=20
        trainer.warmup_epochs=2 trainer.max_steps=100 data.num_workers=15)
    if [ -n "$DRY" ]; then
        images=16
        options=(model=aim_tiny data.image_size=64 data.patch_size=16 trainer.batch_size=8 trainer.epochs=2
            data.num_workers=1)
    fi
    part images 60 python3 -c "from pathlib import Path; from benchmarks.data import jpeg_folder
jpeg_folder(Path('$work/images'), $images)"
    training training_base_compiled "${options[@]}" trainer.compile="$([ -z "$DRY" ] && echo true || echo false)" \
        trainer.log_every_steps=5
    [ -n "$DRY" ] || training training_base "${options[@]}" trainer.log_every_steps=5
}

# A machine without network gets what it lacks from .gpu_wheels.
if ! python3 -c "import hydra, submitit, pydantic" 2>/dev/null; then
    python3 -m pip install -q --no-index --find-links .gpu_wheels --no-deps .gpu_wheels/*.whl 2>&1 | tail -2
fi
say "$(python3 -c "import torch, timm, torchvision
print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU', 'torch', torch.__version__,
      'torchvision', torchvision.__version__, 'timm', timm.__version__)"), $(git log -1 --format='commit %h' 2>/dev/null)"
for each in $PARTS; do
    case $each in
    tests) gpu_tests ;;
    step) benchmarks step 170 $([ -n "$DRY" ] && echo step || echo step_base_256 step_base_64) ;;
    train) trainings ;;
    more) benchmarks more 400 $([ -n "$DRY" ] && echo data parts knn startup scaling methods || echo step_large_128 data parts knn startup scaling methods step_large_64 step_base_128) ;;
    *) say "PARTS: $each is unknown" && failed=1 ;;
    esac
done
say "done"
exit $failed
