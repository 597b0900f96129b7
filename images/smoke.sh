#!/usr/bin/env bash
# The environments of an image, made without an engine and tried: images/smoke.sh control
# One half of it: images/smoke.sh control make, images/smoke.sh control try
#
# They are what the Dockerfile makes, of the same locks, below SMOKE, and are left there. torch is its CPU build, where there
# is one environment: that has other bytes on each index and so no hash here. Where there are two it is the image's own, by
# hash: what lies beside the steps asks for its CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
image=$1 half=${2:-both}
python=${PYTHON:-python3.11}
folder=$(realpath --canonicalize-missing "${SMOKE:-.venvs}/smoke-$image")
dockerfile=images/$image/Dockerfile
pip=("$folder/build/bin/python" -m pip --disable-pip-version-check --quiet)

# The folder whose lock the Dockerfile copies under a name.
lock_of() { sed -n "s|^COPY images/\([a-z_]*\)/requirements.lock $1.lock$|\1|p" "$dockerfile"; }
wheels() { "${pip[@]}" wheel --no-deps --no-build-isolation --require-hashes --wheel-dir "$1" --requirement "images/$2/requirements.lock"; }
put() { "${pip[@]}" --python "$1/bin/python" install --no-index --no-deps "${@:2}"; }

steps=$(lock_of requirements) beside=$(lock_of beside)

if [[ $half != try ]]; then
    rm -rf "$folder"
    mkdir -p "$folder"
    "$python" -m venv "$folder/build"
    "$python" -m venv --without-pip "$folder/venv"
    "${pip[@]}" install --no-deps --require-hashes --requirement images/build/requirements.lock
    wheels "$folder/wheels" "$steps"
    if [[ -z $beside && -n $(lock_of torch) ]]; then
        "${pip[@]}" wheel --no-deps --wheel-dir "$folder/wheels" "$(grep -o '^torch==[0-9.]*' images/torch/requirements.lock)"
    fi
    "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$folder/package" .
    put "$folder/venv" "$folder"/wheels/*.whl
    if [[ -n $beside ]]; then
        "$python" -m venv --without-pip "$folder/beside"
        wheels "$folder/torch" torch
        wheels "$folder/beside-wheels" "$beside"
        read -r holder user < <(sed -n 's|.*share.py torch.lock /opt/\([a-z]*\) /opt/\([a-z]*\)$|\1 \2|p' "$dockerfile")
        [[ $holder == venv ]] || holder=beside
        [[ $user == venv ]] || user=beside
        put "$folder/beside" "$folder"/beside-wheels/*.whl
        put "$folder/$holder" "$folder"/torch/*.whl
        "$python" images/share.py images/torch/requirements.lock "$folder/$holder" "$folder/$user" >"$folder/shared.txt"
        [[ ! -f images/$image/gcc ]] || install -D "images/$image/gcc" "$folder/beside/compiler/gcc"
        "${pip[@]}" --python "$folder/beside/bin/python" check
        du -sh "$folder/beside"
    fi
    put "$folder/venv" "$folder"/package/*.whl
    rm -rf "$folder/wheels" "$folder/package" "$folder/torch" "$folder/beside-wheels"

    "${pip[@]}" --python "$folder/venv/bin/python" check
    "$folder/venv/bin/tunegate" --help >"$folder/help.txt"
    du -sh "$folder/venv"
fi
[[ $half != make ]] || exit 0

# The steps' own tests, in that environment. What only they need, none of which the package may need there, lies beside it.
sources=(images/smoke-beside.txt)
[[ ! -f images/$image/smoke-beside.txt ]] || sources+=("images/$image/smoke-beside.txt")
needed=$(cat "${sources[@]}" | grep -v '^#' | paste -sd'|')
"${pip[@]}" install --no-deps --target "$folder/tests" $(grep -E "^($needed)==" images/local/requirements.lock)
export SMOKE_IMAGE=$image SMOKE_STEPS=$steps SMOKE_BESIDE=$beside PYTHONPATH=$folder/tests
if [[ -n $beside ]]; then
    export "$(sed -n 's|^ENV \(TUNEGATE_[A-Z_]*_PYTHON\)=.*|\1|p' "$dockerfile")=$folder/beside/bin/python"
fi
"$folder/venv/bin/python" -m pytest -m 'not gpu and not slow and not e2e' images/smoke.py $(grep -v '^#' "images/$image/smoke-tests.txt")

# vLLM's CUDA build serves nothing without a GPU: what the steps do with a server is tried on the CPU build of a checkout.
if [[ $image == serve && -x .venvs/serve/bin/python ]]; then
    TUNEGATE_SERVE_PYTHON=$PWD/.venvs/serve/bin/python "$folder/venv/bin/python" -m pytest -m serving -k float32 tests/e2e/test_serving.py
fi
