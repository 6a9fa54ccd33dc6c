#!/usr/bin/env bash
# Builds PufferLib 3.0.0 from its source distribution into an environment, without the downloads of its set-up.
#   usage: benchmarks/peers/build_pufferlib.sh ENVIRONMENT
# What is built, by its own setup.py and with its own compiler flags: `_C` (its advantage kernel) for the CPU, and the
# C CartPole. raylib is in the source distribution; for what set-up would download there are empty folders, and the
# other environments, which need it, are left out.
set -euo pipefail

env="$(cd "$1" && pwd)"
temporary="$(mktemp -d)"
trap 'rm -rf "$temporary"' EXIT

# pip has the sources before it asks setup.py for metadata, which fails with NO_OCEAN; --no-clean keeps them.
# nvcc is hidden, since setup.py would want all of CUDA where it finds it.
path="$env/bin"
IFS=: read -ra folders <<<"$PATH"
for folder in "${folders[@]}"; do [ -x "$folder/nvcc" ] || path="$path:$folder"; done
NO_OCEAN=1 TMPDIR="$temporary" PATH="$path" "$env/bin/pip" download --quiet --no-clean --no-deps \
    --no-binary pufferlib --no-build-isolation --dest "$temporary" pufferlib==3.0.0 >"$temporary/log" 2>&1 || true
source="$(dirname "$(find "$temporary" -path '*/pufferlib*/setup.py' | head -n 1)")"
if [ ! -f "$source/setup.py" ]; then
    cat "$temporary/log" >&2
    exit 1
fi
cd "$source"
find pufferlib/ocean -name binding.c ! -path '*/cartpole/*' -delete
mkdir -p raylib-5.5_webassembly box2d-web box2d-linux-amd64
PATH="$path" "$env/bin/python" setup.py build_ext --inplace --force >"$temporary/log" 2>&1 ||
    { cat "$temporary/log" >&2; exit 1; }
site="$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
rm -rf "$site/pufferlib"
cp -r pufferlib "$site/pufferlib"
mkdir -p "$site/pufferlib-3.0.0.dist-info"  # so that its version can be asked for
cp PKG-INFO "$site/pufferlib-3.0.0.dist-info/METADATA"
