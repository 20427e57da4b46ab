# What ./check and ./quickstart share: packages, configuring, building, telling. Sourced by bash.

build_packages="build-essential cmake ninja-build pkg-config libopenmpi-dev openmpi-bin libhwloc-dev libgrpc-dev
libprotobuf-c-dev protobuf-c-compiler protobuf-compiler libpcre2-dev libutf8proc-dev libjansson-dev libcurl4-openssl-dev
libssl-dev libedit-dev"
# For the tests: cmocka; real clients in Python and JavaScript; an older processor's instructions, and an arm64; namespaces.
test_packages="$build_packages libcmocka-dev openssl python3 python3-grpcio python3-protobuf python3-jsonschema qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross
nodejs npm"

say() { printf '\n== %s\n' "$*"; }

# install_packages build|test [--yes]: what dpkg does not know as installed, by apt-get.
install_packages() {
    local list=$build_packages missing=() p sudo=
    [[ $1 == test ]] && list=$test_packages
    command -v dpkg-query >/dev/null || { echo "this is no Debian system: install by hand what stands in deploy/common.sh, then run again" >&2; return 0; }
    for p in $list; do
        case $p in
        nodejs | npm) command -v "${p/nodejs/node}" >/dev/null && continue ;; # any installation will do
        esac
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
    done
    ((${#missing[@]})) || return 0
    [[ $(id -u) == 0 ]] || sudo=sudo
    echo "These Debian packages are missing: ${missing[*]}"
    if [[ ${2:-} != --yes && -t 0 && -t 1 ]]; then
        read -r -p "Install them with apt-get now? [Y/n] " answer
        [[ $answer == [nN]* ]] && { echo "nothing was installed; install them yourself and run this again" >&2; exit 1; }
    fi
    say "installing ${#missing[@]} packages"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo ${sudo:+env DEBIAN_FRONTEND=noninteractive} apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

configure() { # configure FOLDER OPTIONS…
    local dir=$1
    shift
    cmake -S . -B "$dir" -G Ninja "$@" >"$dir.log" 2>&1 || { cat "$dir.log" >&2; echo "configuring $dir failed" >&2; exit 1; }
    sed -n 's/^-- \(.*GPU ranks are not built.*\)/\1/p' "$dir.log"
    rm -f "$dir.log"
}

build() { # ninja shows [12/345] by itself; on a terminal in one line
    if [[ -t 1 ]]; then ninja -C "$1" "${@:2}"; else ninja -C "$1" --quiet "${@:2}"; fi
}

tests_passed=0 tests_failed=0 tests_skipped=0 cases_left_out=0
run_tests() { # run_tests FOLDER CTEST-OPTIONS…; sums up, goes on. One more at once than there are cores, as some wait; those of whole clusters go alone
    local dir=$1 out code=0 jobs
    shift
    out=$(mktemp)
    jobs=$(($(nproc) + 1))
    (cd "$dir" && ctest -j "$((jobs < 8 ? jobs : 8))" --output-on-failure --no-tests=error "$@") | tee "$out" || code=$?
    local total failed skipped
    total=$(sed -n 's/.* tests failed out of \([0-9]*\)$/\1/p' "$out" | tail -1)
    failed=$(sed -n 's/.*, \([0-9]*\) tests\{0,1\} failed out of.*/\1/p' "$out" | tail -1)
    skipped=$(grep -c '(Skipped)' "$out" || true)
    rm -f "$out"
    ((code == 0 || ${failed:-0} > 0)) || failed=1
    tests_failed=$((tests_failed + ${failed:-0}))
    tests_skipped=$((tests_skipped + skipped))
    tests_passed=$((tests_passed + ${total:-0} - ${failed:-0} - skipped))
    cases_left_out=$((cases_left_out + $(grep -c '^left out: ' "$dir/Testing/Temporary/LastTest.log" || true))) # tests/fixtures.h
}

finish() {
    ((cases_left_out == 0)) || printf '\n%d cases of programs that passed were left out: there are no fixtures (docs/testing.md)' "$cases_left_out"
    printf '\n%d passed, %d failed, %d skipped\n' "$tests_passed" "$tests_failed" "$tests_skipped"
    ((tests_failed == 0)) && exit 0
    exit 1
}
