#!/usr/bin/env bash
# Fuzzing guided by coverage: libFuzzer with ASan and UBSan, an hour for each target.
#
#   tests/fuzz/long.sh [-s SECONDS] [-j TARGETS_AT_A_TIME] [-t SECONDS_AN_INPUT] [-o FOLDER] [NAME…]
#
# NAME is gguf, hf, … (default: all). Builds build-fuzz/ with clang, then runs each target for SECONDS (3600), -j (2) of
# them at a time, at the lowest priority. FOLDER (build-fuzz/long) keeps NAME/ (the corpus: a later run goes on with it), NAME.log, and
# what was found: NAME-crash-…, NAME-timeout-…, NAME-oom-…, which the plain program replays: build-fuzz/tests/fuzz/fuzz_NAME -n 0 FILE.
# An allocation of more than 512 MB, 20 seconds for one input (-t, by the clock: more where the machine is busy) and 2 GB
# altogether are findings too.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=3600 jobs=2 timeout=20 out=build-fuzz/long
while getopts s:j:t:o: opt; do
    case $opt in
    s) seconds=$OPTARG ;;
    j) jobs=$OPTARG ;;
    t) timeout=$OPTARG ;;
    o) out=$OPTARG ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
(($#)) || set -- gguf hf tokenizer_json template modelfile tokenizer store adapter reply grammar
names=("$@")

# What a target's code compares with: the texts in its sources, as libFuzzer's dictionary.
words() {
    local files
    case $1 in
    gguf) files="model/gguf*.c model/arch.c model/config.c model/model.c" ;;
    hf) files="model/hf*.c model/safetensors.c" ;;
    tokenizer_json | tokenizer) files="model/hf_*.c model/tokenizer*.c model/pretokenizer.c" ;;
    template) files="model/jinja*.c model/chat_template*.c" ;;
    reply) files="cli/reply.c model/thinking.c" ;;
    grammar) files="model/grammar*.c model/constraint*.c model/json_schema*.c model/regex.c" ;;
    *) files="model/$1*.c" ;;
    esac
    LC_ALL=C grep -hoE '"[] !#$&-[^-~]{2,40}"' $files | LC_ALL=C sort -u || true
}

# One target: its corpus, its hour, one line of what came of it.
fuzz() {
    local name=$1 dict=$out/$1.dict TIMEFORMAT='%U %S' cpu
    mkdir -p "$out/$name"
    words "$name" >"$dict"
    build-fuzz/tests/fuzz/fuzz_"$name" -w "$out/$name"
    local args=("$out/$name" -artifact_prefix="$out/$name-" -max_total_time="$seconds" -timeout="$timeout" -rss_limit_mb=2048
        -malloc_limit_mb=512 -max_len=65536 -print_final_stats=1 -dict="$dict")
    [[ -d tests/fuzz/corpus/fuzz_$name ]] && args+=("tests/fuzz/corpus/fuzz_$name")
    local verdict="nothing found"
    cpu=$({ time nice -n 19 build-fuzz/tests/fuzz/fuzz_"$name"_libfuzzer "${args[@]}" >"$out/$name.log" 2>&1; } 2>&1) || verdict="FOUND, see $out/$name.log"
    awk -v name="$name" -v cpu="$cpu" -v verdict="$verdict" '
        /cov: / { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1); else if ($i == "corp:") corp = $(i + 1) }
        /number_of_executed_units/ { runs = $2 }
        END { split(cpu, t, " ")
              printf "%-15s %11d runs, %6.0f s of CPU, %5d edges, corpus %s: %s\n", name, runs, t[1] + t[2], cov, corp, verdict }
    ' "$out/$name.log" | tee -a "$out/summary"
    [[ $verdict == nothing* ]]
}

build() {
    CC=${CC:-clang} cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=Debug -DMUSTER_ASAN=ON -DMUSTER_FUZZ=ON -DMUSTER_EMULATED_GPU=OFF >/dev/null
    local targets=()
    for name in "${names[@]}"; do targets+=(fuzz_"$name" fuzz_"$name"_libfuzzer); done
    ninja -C build-fuzz --quiet "${targets[@]}"
}

build
mkdir -p "$out"
failed=0
for name in "${names[@]}"; do
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n || failed=1; done
    fuzz "$name" &
done
while (($(jobs -p | wc -l))); do wait -n || failed=1; done
exit $failed
