"""What an overlay can be given besides: it builds, holds no secret, and does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPONENTS = ROOT / "manifests/components"

#: Of external-secrets.io_externalsecrets.yaml what is used here, closed.
EXTERNAL_SECRET = yaml.safe_load("""
type: object
additionalProperties: false
required: [refreshInterval, secretStoreRef, target, data]
properties:
  refreshInterval: {type: string, pattern: '^\\d+(ns|us|ms|s|m|h)$'}
  secretStoreRef:
    type: object
    additionalProperties: false
    properties: {name: {type: string}, kind: {enum: [SecretStore, ClusterSecretStore]}}
  target:
    type: object
    additionalProperties: false
    properties: {name: {type: string}, creationPolicy: {enum: [Owner, Merge, None]}}
  data:
    type: array
    items:
      type: object
      additionalProperties: false
      required: [secretKey, remoteRef]
      properties:
        secretKey: {type: string, pattern: '^[-._a-zA-Z0-9]+$'}
        remoteRef:
          type: object
          additionalProperties: false
          required: [key]
          properties: {key: {type: string}}
""")


def built(folder: Path, component: str, overlay: str, images: Sequence[Mapping[str, str]] = ()) -> list[dict[str, Any]]:
    """An overlay with a component and images added, by kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here, and there is no golden of what nobody applies as it is")
    places = [os.path.relpath(path, folder) for path in (ROOT / "manifests/overlays" / overlay, COMPONENTS / component)]
    written = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": places[:1], "components": places[1:], "images": list(images),
    }  # fmt: skip
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(written), "utf-8")
    shown = subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True, timeout=60)
    return list(yaml.safe_load_all(shown.stdout))


def secrets() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((COMPONENTS / "external-secrets/secrets.yaml").read_text("utf-8")))


def test_every_component_is_named_in_the_readme() -> None:
    told = (ROOT / "manifests/README.md").read_text("utf-8")
    assert [path.name for path in COMPONENTS.iterdir() if f"`{path.name}`" not in told] == []


def test_secrets_are_named_and_no_value_is_held() -> None:
    for document in secrets():
        assert (document["apiVersion"], document["kind"]) == ("external-secrets.io/v1", "ExternalSecret")
        jsonschema.validate(document["spec"], EXTERNAL_SECRET)
        assert document["spec"]["target"]["name"] == document["metadata"]["name"]


def test_what_a_cluster_file_is_told_to_name_is_what_is_made() -> None:
    """A Secret that is not there keeps a pod from starting, hours after the run began."""
    from tunegate_pipelines.cluster import SecretReference
    from tunegate_pipelines.resources import REQUESTS

    made = {(one["metadata"]["name"], entry["secretKey"]) for one in secrets() for entry in one["spec"]["data"]}
    text = (COMPONENTS / "external-secrets/secrets.yaml").read_text("utf-8")
    told = [SecretReference(**entry) for (entry,) in map(yaml.safe_load, re.findall(r"secrets: (\[.*\])", text))]
    assert {(one.secret, one.key) for one in told} == made
    assert {step for one in told for step in one.steps} <= REQUESTS.keys()


def test_an_overlay_with_secrets_holds_none(tmp_path: Path) -> None:
    documents = built(tmp_path, "external-secrets", "dev")
    assert not [document for document in documents if document["kind"] == "Secret"]
    found = {document["metadata"]["name"] for document in documents if document["kind"] == "ExternalSecret"}
    assert found == {one["metadata"]["name"] for one in secrets()}


@pytest.mark.parametrize(
    ("component", "label"),
    [
        ("gpu-gke", {"cloud.google.com/gke-accelerator": "nvidia-l4"}),
        ("gpu-labels", {"nvidia.com/gpu.present": "true"}),
    ],
)
def test_servers_are_placed_on_nodes_with_a_gpu_and_tolerate_their_taint(
    component: str, label: dict[str, str], tmp_path: Path
) -> None:
    """The last component that an overlay names is the one that holds."""
    (runtime,) = [one for one in built(tmp_path, component, "prod") if one["kind"] == "ServingRuntime"]
    assert runtime["spec"]["nodeSelector"] == label
    assert runtime["spec"]["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_the_servers_image_is_named_by_digest_as_the_readme_says(tmp_path: Path) -> None:
    readme = (ROOT / "manifests/README.md").read_text("utf-8")
    (example,) = re.findall(r"^    images: (\[.*\])$", readme, re.MULTILINE)
    digest = "sha256:" + "0" * 64
    images = [{**one, "digest": digest} for one in yaml.safe_load(example)]
    (runtime,) = [one for one in built(tmp_path, "gpu-gke", "prod", images) if one["kind"] == "ServingRuntime"]
    assert runtime["spec"]["containers"][0]["image"] == f"{images[0]['newName']}@{digest}"
