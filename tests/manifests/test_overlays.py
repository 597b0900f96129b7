"""The overlays: least rights, default deny, nothing secret; and the goldens are what the source says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
OVERLAYS = sorted(path.name for path in (ROOT / "manifests/overlays").iterdir())
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
#: Where KServe serves. A canary needs a second accelerator beside what serves, and dev has one.
SERVING = {"prod", "staging"}
#: Every request that components/tunegate/deploy/kserve sends.
DEPLOYS = {
    "inferenceservices": ("get", "create", "patch"),
    "endpointslices": ("list",),
    "leases": ("get", "create", "update"),
    "configmaps": ("get",),
}
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def built(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((GOLDEN / f"{overlay}.yaml").read_text("utf-8")))


def of_kind(overlay: str, *kinds: str) -> list[dict[str, Any]]:
    return [document for document in built(overlay) if document["kind"] in kinds]


def rights(overlay: str, account: str) -> set[tuple[str, str, str]]:
    """(kind of binding, resource, verb) that an account has."""
    roles = {
        (role["kind"], role["metadata"]["name"]): role["rules"] for role in of_kind(overlay, "Role", "ClusterRole")
    }
    return {
        (binding["kind"], resource, verb)
        for binding in of_kind(overlay, "RoleBinding", "ClusterRoleBinding")
        if account in {subject["name"] for subject in binding["subjects"]}
        for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_three_environments() -> None:
    assert OVERLAYS == ["dev", "prod", "staging"]


@each_overlay
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here: the goldens alone are checked")
def test_golden_is_what_the_source_builds(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(ROOT / "manifests/overlays" / overlay)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert list(yaml.safe_load_all(shown)) == built(overlay)


@each_overlay
def test_everything_lies_in_the_environments_own_namespace(overlay: str) -> None:
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["name"] == f"tunegate-{overlay}"
    for document in built(overlay):
        if document["kind"] in CLUSTER_WIDE:
            assert overlay in document["metadata"]["name"]
        else:
            assert document["metadata"]["namespace"] == f"tunegate-{overlay}"


@each_overlay
def test_no_secret_and_no_wildcard(overlay: str) -> None:
    assert not of_kind(overlay, "Secret")
    for role in of_kind(overlay, "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert "*" not in {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
    for binding in of_kind(overlay, "RoleBinding", "ClusterRoleBinding"):
        assert binding["roleRef"]["name"].startswith("tunegate-")


@each_overlay
def test_each_account_has_its_rights_and_no_more(overlay: str) -> None:
    task = {("RoleBinding", "workflowtaskresults", verb) for verb in ("create", "patch")}
    deploys = {
        ("RoleBinding", resource, verb)
        for resource, verbs in DEPLOYS.items()
        for verb in (verbs if overlay in SERVING else ())
    }
    assert rights(overlay, "tunegate-runner") == task
    assert rights(overlay, "tunegate-promoter") == task
    assert rights(overlay, "tunegate-approver") == task | {("ClusterRoleBinding", "tokenreviews", "create")}
    assert rights(overlay, "tunegate-deployer") == task | deploys
    assert rights(overlay, "tunegate-server") == set()


@each_overlay
def test_each_bound_account_exists_there_and_has_an_identity_of_its_environment(overlay: str) -> None:
    accounts = {account["metadata"]["name"]: account for account in of_kind(overlay, "ServiceAccount")}
    for binding in of_kind(overlay, "RoleBinding", "ClusterRoleBinding"):
        for subject in binding["subjects"]:
            assert subject["name"] in accounts
            assert subject["namespace"] == f"tunegate-{overlay}"
    for name, account in accounts.items():
        google = account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
        assert google == f"{name}-{overlay}@PROJECT.iam.gserviceaccount.com"


@each_overlay
def test_what_no_policy_allows_is_denied_and_only_servers_are_reached(overlay: str) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(overlay, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        if "ingress" in spec:
            assert (name, overlay in SERVING) == ("allow-to-servers", True)
            assert spec["podSelector"]["matchExpressions"][0]["key"] == "serving.kserve.io/inferenceservice"
            assert all(
                rule["from"] and rule["ports"] == [{"port": 8080, "protocol": "TCP"}] for rule in spec["ingress"]
            )
        for rule in spec.get("egress", ()):
            assert rule, f"{name} allows everything"


@each_overlay
def test_namespace_is_guarded_and_accelerators_are_counted(overlay: str) -> None:
    (namespace,) = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/warn"] == "restricted"
    (quota,) = of_kind(overlay, "ResourceQuota")
    assert {"requests.nvidia.com/gpu", "requests.cpu", "requests.memory"} <= quota["spec"]["hard"].keys()
    (ranges,) = of_kind(overlay, "LimitRange")
    assert ranges["spec"]["limits"][0]["defaultRequest"]


@pytest.mark.parametrize("overlay", sorted(SERVING))
def test_what_a_deployment_is_made_of_is_there_and_starts_nothing_by_itself(overlay: str) -> None:
    assert not of_kind(overlay, "InferenceService")
    (template,) = of_kind(overlay, "ConfigMap")
    made = yaml.safe_load(template["data"]["inferenceservice.yaml"])
    assert made == yaml.safe_load((ROOT / "manifests/base/serving/inferenceservice.yaml").read_text("utf-8"))
    (runtime,) = of_kind(overlay, "ServingRuntime")
    predictor = made["spec"]["predictor"]
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"]["modelFormat"]["name"] in {f["name"] for f in runtime["spec"]["supportedModelFormats"]}
    assert predictor["serviceAccountName"] in {one["metadata"]["name"] for one in of_kind(overlay, "ServiceAccount")}
    (container,) = runtime["spec"]["containers"]
    assert container["command"] == ["python", "-m", "tunegate.serving.entrypoint"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    (quota,) = of_kind(overlay, "ResourceQuota")
    needed = 2 * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert int(quota["spec"]["hard"]["requests.nvidia.com/gpu"]) >= needed, "what serves and a canary fit side by side"
