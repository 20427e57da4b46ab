#!/bin/sh
# The tree's includes point down only; and check_layers.sh finds those that do not, tried on a tree made for it.
set -u

here=$(cd "$(dirname "$0")" && pwd)
source=${1:-$here/../..}
check=$here/check_layers.sh
tree=$(mktemp -d "${TMPDIR:-/tmp}/muster-layers-XXXXXX") || exit 2
trap 'rm -rf "$tree"' EXIT
failures=0

complain() {
    echo "FAIL: $*" >&2
    failures=$((failures + 1))
}

folders="base proto kernels model shard transport worker coordinator cli tests"
allowed="
base:base
proto:base proto
kernels:base kernels
model:base kernels model
shard:base kernels model shard
transport:base proto transport
worker:base kernels proto model shard transport worker
coordinator:base proto model transport coordinator
cli:base proto kernels model shard transport worker coordinator cli
tests:base proto kernels model shard transport worker coordinator cli tests
"

# one FILE LINE WANT: what the check says of a tree whose only file is FILE with LINE.
one() {
    rm -rf "${tree:?}"/*
    mkdir -p "$tree/$(dirname "$1")"
    printf '/* first line */\n%s\nint x;\n' "$2" >"$tree/$1"
    out=$(sh "$check" "$tree" 2>&1)
    got=$?
    [ "$got" -eq "$3" ] || complain "$1 with '$2': exit $got, not $3. It said: $out"
    if [ "$3" -eq 1 ]; then
        case $out in
        "$1:2: "*) ;;
        *) complain "$1 with '$2': the message names another place: $out" ;;
        esac
    fi
}

# Every pair of folders, written out a second time above: the table is what is tested.
for from in $folders; do
    row=$(echo "$allowed" | sed -n "s/^$from://p")
    for to in $folders; do
        want=1
        for ok in $row; do [ "$ok" = "$to" ] && want=0; done
        one "$from/a.c" "#include \"$to/b.h\"" $want
    done
done

# The plan of shard/ is open to the coordinator, the rest of it is not.
one coordinator/a.c '#include "shard/plan.h"' 0
one coordinator/a.c '#include "shard/plan_measure.h"' 0
one coordinator/a.c '#include "shard/plan/cost.h"' 0
one coordinator/a.c '#include "shard/planet.h"' 1
one coordinator/a.c '#include "shard/shard.h"' 1

# Ways to write it, places to hide.
one kernels/x86/deep/a.c '#include "model/gguf.h"' 1
one kernels/cuda/a.cu '#include "shard/step.h"' 1
one base/a.h '#include <model/gguf.h>' 1
one base/a.inc '  #  include	"model/gguf.h" /* why */' 1
one base/a.c '#include "../model/gguf.h"' 1
one tests/base/a.c '#include "../../base/io.c"' 1
one base/a.c '// see model/gguf.h, "model/gguf.h"' 0
one base/a.c '#include <sys/stat.h>' 0
one base/a.c '#include "base.h"' 0

# Several files, one of them wrong.
rm -rf "${tree:?}"/*
mkdir -p "$tree/base" "$tree/worker" "$tree/model"
echo '#include "base/b.h"' >"$tree/base/a.c"
echo '#include "coordinator/b.h"' >"$tree/worker/a.c"
echo '#include "base/b.h"' >"$tree/model/a.c"
out=$(sh "$check" "$tree") && complain "one wrong file among three is not found"
[ "$(echo "$out" | wc -l)" -eq 1 ] || complain "more or less than one line for one wrong include: $out"

rm -rf "${tree:?}"/*
sh "$check" "$tree" 2>/dev/null
[ $? -eq 2 ] || complain "an empty tree passes"

sh "$check" "$source" || complain "includes that point upward or sideways, listed above; docs/design.md has the table"

[ "$failures" -eq 0 ] && echo "all includes point down the table"
exit $((failures > 0))
