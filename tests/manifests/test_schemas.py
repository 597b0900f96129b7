"""Every document is one that Kubernetes takes: an unknown field, which it would drop without a word, is an error."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

GOLDEN = sorted(Path(__file__).with_name("golden").glob("*.yaml"))
VERSION = "1.37"

#: Groups whose kinds are not Kubernetes' own: their schemas are their projects'.
CUSTOM = ("serving.kserve.io/",)


def documents() -> Iterator[Any]:
    for path in GOLDEN:
        for document in yaml.safe_load_all(path.read_text("utf-8")):
            name = f"{path.stem}-{document['kind']}-{document['metadata']['name']}"
            yield pytest.param(document, id=name)


OWN = [one for one in documents() if not one.values[0]["apiVersion"].startswith(CUSTOM)]


@pytest.mark.parametrize("document", OWN)
def test_kubernetes_takes_it(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("document", [d for d in documents() if d.values[0]["kind"] == "ServingRuntime"])
def test_what_a_runtime_says_of_pods_is_what_a_pod_takes(document: dict[str, Any]) -> None:
    """KServe makes pods of it; beside that it knows the formats alone."""
    told = {name: value for name, value in document["spec"].items() if name != "supportedModelFormats"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"}, "spec": told}
    kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("document", [d for d in documents() if d.values[0]["kind"] == "NetworkPolicy"][:1])
def test_a_misspelt_field_would_be_found(document: dict[str, Any]) -> None:
    """A policy with a misspelt selector is one that holds for every pod, or for none."""
    misspelt = copy.deepcopy(document)
    misspelt["spec"]["podSelecter"] = misspelt["spec"].pop("podSelector")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, VERSION, strict=True)
