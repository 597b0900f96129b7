#!/usr/bin/env bash
# Builds the images, pushes them, and writes which digest each has, for `tunegate compile --image-digests`:
#
#   PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:… images/build.sh registry.example.com/team/ digests.json [IMAGE…]
#
# Wants docker with buildx, a login to the registry, and jq. PYTHON_IMAGE is a Python 3.11 for Linux on x86-64, by digest.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${1:?the registry and folder that images are pushed to, with a slash at the end}
digests=${2:?the file to write}
shift 2
images=("$@")
[[ ${#images[@]} -gt 0 ]] || images=(control train quantize quantize_legacy evaluate serve)
if [[ ! ${PYTHON_IMAGE:-} =~ ^[^@[:space:]]+@sha256:[0-9a-f]{64}$ ]]; then
    echo "PYTHON_IMAGE must name an image by digest, NAME@sha256:…; seen: '${PYTHON_IMAGE:-}'" >&2
    exit 2
fi
if [[ -n $(git status --porcelain) ]]; then
    echo "the checkout has changes that no commit holds; an image names the commit that it was built from" >&2
    exit 2
fi
commit=$(git rev-parse HEAD)
tag=$(sed -n 's/^TAG = "\(.*\)"$/\1/p' components/tunegate/contracts/images.py)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

for image in "${images[@]}"; do
    name=${prefix}tunegate/$image
    docker buildx build --platform linux/amd64 --push --file "images/$image/Dockerfile" --tag "$name:$tag" \
        --build-arg "PYTHON_IMAGE=$PYTHON_IMAGE" --build-arg "IMAGE=$name:$tag" --build-arg "COMMIT=$commit" \
        --metadata-file "$scratch/$image.json" .
    jq --arg image "tunegate/$image" '{($image): .["containerimage.digest"]}' "$scratch/$image.json" >"$scratch/$image.digest"
done
jq -s add "$scratch"/*.digest >"$scratch/digests"
mv "$scratch/digests" "$digests"
