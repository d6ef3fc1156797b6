#!/bin/sh
# lint.sh - clang-tidy over every committed C file that build/ compiles, and a syntax check of every script.
set -eu
cd "$(dirname "$0")/.."

git ls-files | while read -r file; do
    [ -f "$file" ] || continue
    case $(head -n 1 "$file" | tr -d '\0') in
    '#!/bin/sh') sh -n "$file" ;;
    '#!/bin/bash') bash -n "$file" ;;
    esac
done

# CMake's own list says what is compiled here: another architecture's or back end's files are not.
list=build/lint-files
git ls-files '*.c' | while read -r file; do
    grep -qF "\"$PWD/$file\"" build/compile_commands.json && printf '%s\n' "$file"
done >"$list"

# gcc's own warning names mean nothing to clang, and omp.h is gcc's here. Alone: beside it lies a stdatomic.h, which clang's own would
# include in place of itself.
headers=build/lint-include
mkdir -p "$headers"
ln -sf "$(gcc -print-file-name=include/omp.h)" "$headers/omp.h"
if xargs -P "$(getconf _NPROCESSORS_ONLN)" -n 4 clang-tidy -p build --quiet \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument \
    --extra-arg=-idirafter --extra-arg="$PWD/$headers" <"$list" 2>build/lint-notes; then
    printf 'lint: %s files, nothing to say\n' "$(wc -l <"$list")"
else
    printf 'lint: see above (%s files looked at)\n' "$(wc -l <"$list")" >&2
    exit 1
fi
