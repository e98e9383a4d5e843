#!/usr/bin/env bash
# test_abi - the binary interface is the one that tests/abi/heft.abi describes.
#   test_abi.sh SOURCE BUILD
# Skipped (77) where abidw is not installed, and on other machines than x86_64.
set -euo pipefail
XXHASH_INCLUDE_DIR=$(sed -n 's/^XXHASH_INCLUDE_DIR:[A-Z]*=//p' "$2/CMakeCache.txt")
export XXHASH_INCLUDE_DIR
exec "$1/tools/update_abi" --check
