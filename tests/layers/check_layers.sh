#!/bin/sh
# check_layers.sh ROOT: every `#include "folder/…"` (or <folder/…>) below ROOT against the design's table of folders.
#
# Prints each include that points upward or sideways as FILE:LINE: why, and exits 1; 0 where all arrows point down;
# 2 where ROOT is no source tree (a check that looked at nothing has found nothing). Includes that climb with ".." are
# refused everywhere, since they hide where they point. Names with spaces are not used in this tree.
set -u

root=${1:?usage: check_layers.sh ROOT}
cd "$root" || exit 2

# The table's column "may include"; a folder may always include itself. `shard/plan` stands for files of that name only.
may_include() {
    case $1 in
    base) echo "" ;;
    proto) echo "base" ;;
    kernels) echo "base" ;;
    model) echo "base kernels" ;;
    shard) echo "base kernels model" ;;
    transport) echo "base proto" ;;
    worker) echo "shard kernels model transport proto base" ;;
    coordinator) echo "shard/plan model transport proto base" ;;
    cli) echo "base proto kernels model shard transport worker coordinator" ;;
    tests) echo "base proto kernels model shard transport worker coordinator cli" ;;
    esac
}

folders="base proto kernels model shard transport worker coordinator cli tests"
present=""
for folder in $folders; do
    [ -d "$folder" ] && present="$present $folder"
done
[ -n "$present" ] || { echo "no folder of the table in $root" >&2; exit 2; }

rules=$(for folder in $folders; do echo "$folder $(may_include "$folder")"; done)

# shellcheck disable=SC2086,SC2016 # $present is a list of words; the program is awk's
find -H $present -type f \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' -o -name '*.h.in' \
    -o -name '*.c.in' \) -print | sort | RULES="$rules" xargs awk '
BEGIN {
    n = split(ENVIRON["RULES"], lines, "\n")
    for (i = 1; i <= n; i++) {
        m = split(lines[i], words, " ")
        known[words[1]] = 1
        may[words[1], words[1]] = 1
        for (j = 2; j <= m; j++) {
            if (index(words[j], "/")) part[words[1]] = words[j]
            else may[words[1], words[j]] = 1
        }
    }
}
/^[ \t]*#[ \t]*include[ \t]*["<]/ {
    target = $0
    sub(/^[^"<]*["<]/, "", target)
    sub(/[">].*$/, "", target)
    from = FILENAME
    sub(/\/.*$/, "", from)
    to = target
    sub(/\/.*$/, "", to)
    if (target ~ /(^|\/)\.\.(\/|$)/) {
        print FILENAME ":" FNR ": \"" target "\" climbs with \"..\": name the folder from the root instead"
        bad = 1
    } else if (to != target && (to in known) && !((from, to) in may)) {
        allowed = part[from]
        if (allowed != "" && substr(target, 1, length(allowed)) == allowed && \
            substr(target, length(allowed) + 1) ~ /^[._\/]/) next
        print FILENAME ":" FNR ": " from "/ may not include \"" target "\""
        bad = 1
    }
}
END { exit bad }
' || exit 1 # xargs has a number of its own for it
