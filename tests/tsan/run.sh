#!/usr/bin/env bash
# ThreadSanitizer: the tests in which threads meet, and whole clusters, without a data race.
#
#   tests/tsan/run.sh [-q] [-o FOLDER] [TEST…]
#
# Builds build-tsan/ and runs TEST… (default: those below; -q: only those of base, transport, engine and hub). Every process
# that has something to report leaves it in FOLDER (build-tsan/reports), also ranks and workers, whose exit codes nobody sees: a file
# there is a failure, whatever the tests say. suppressions.txt has what is not instrumented, and why that is no loss.
# Exit status 77: this system has an address space that ThreadSanitizer cannot work in.
set -euo pipefail
cd "$(dirname "$0")/../.."

quick="test_base_log test_base_pool test_base_queue test_comm test_rpc test_doorbell test_engine
test_hub_deaths test_hub_constraints test_hub_queue test_hub_choices test_hub_embed"
more="test_constraint_cache test_drafter test_base_alloc test_base_io test_base_run_dir test_base_watchdog test_rpc_server test_device_host test_peak test_kept test_solo
test_comm_mpi test_forward_mpi test_serve test_survive test_flood"
tests="$quick $more" out=build-tsan/reports
while getopts qo: opt; do
    case $opt in
    q) tests=$quick ;;
    o) out=$OPTARG ;;
    *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
(($#)) && tests=$*

targets=()
for test in $tests; do
    case $test in
    test_serve | test_survive | test_flood) targets+=(muster) ;;
    *) targets+=("$test") ;;
    esac
done
cmake -S . -B build-tsan -G Ninja -DCMAKE_BUILD_TYPE=Debug -DMUSTER_TSAN=ON -DMUSTER_TESTS=ON -DMUSTER_EMULATED_GPU=OFF >/dev/null
ninja -C build-tsan --quiet "${targets[@]}"

# ThreadSanitizer's shadow has fixed addresses, which a kernel that randomises more bits than it knows (vm.mmap_rnd_bits > 28) may have
# given away already.
fixed=()
echo 'int main(void) { return 0; }' | "${CC:-cc}" -x c -fsanitize=thread -o build-tsan/probe -
if ! (for _ in {1..20}; do build-tsan/probe || exit; done) 2>/dev/null; then
    fixed=(setarch -R)
    "${fixed[@]}" build-tsan/probe 2>/dev/null || { echo "SKIPPED: ThreadSanitizer does not run here; sysctl vm.mmap_rnd_bits=28 lets it"; exit 77; }
fi

rm -rf "$out"
mkdir -p "$out"
out=$(realpath "$out")
export TSAN_OPTIONS="suppressions='$PWD/tests/tsan/suppressions.txt' log_path='$out/report' log_exe_name=1"
# Ten times slower: what hangs must be slower still.
export MUSTER_TEST_REDUCED=1 MUSTER_TEST_STALL_MS=120000
failed=0
(cd build-tsan && "${fixed[@]}" ctest --output-on-failure --no-tests=error -R "^(${tests//[[:space:]]/|})\$") || failed=1
for report in "$out"/*; do
    [[ -e $report ]] || continue
    failed=1
    echo "== $report"
    cat "$report"
done
exit $failed
