#!/bin/sh
# Compiles the programs here. The objects are committed, so that the tests need no compiler; whoever changes
# a program runs this with clang 19 (Debian: apt-get install clang-19) and commits both.
cd "$(dirname "$0")" || exit 1
for source in *.bpf.c; do
    ${CLANG:-clang-19} -target bpf -mcpu=v3 -O2 -g -Wall -Werror -fdebug-compilation-dir=. -c "$source" -o "${source%.c}.o"
done
