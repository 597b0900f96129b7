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


def namespaces(overlay: str) -> set[str]:
    """That of the runs, and where there is serving that of the servers."""
    return {f"tunegate-{overlay}", *((f"tunegate-{overlay}-serving",) if overlay in SERVING else ())}


def served_space(document: dict[str, Any]) -> bool:
    return str(document["metadata"]["namespace"]).endswith("-serving")


def test_three_environments() -> None:
    assert OVERLAYS == ["dev", "prod", "staging"]


@each_overlay
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here: the goldens alone are checked")
def test_golden_is_what_the_source_builds(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(ROOT / "manifests/overlays" / overlay)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert list(yaml.safe_load_all(shown)) == built(overlay)


@each_overlay
def test_everything_lies_in_the_environments_own_namespaces(overlay: str) -> None:
    spaces = namespaces(overlay)
    assert {one["metadata"]["name"] for one in of_kind(overlay, "Namespace")} == spaces
    for document in built(overlay):
        if document["kind"] in CLUSTER_WIDE:
            assert overlay in document["metadata"]["name"]
        else:
            assert document["metadata"]["namespace"] in spaces


@pytest.mark.parametrize("overlay", sorted(SERVING))
def test_whoever_makes_servers_can_give_them_no_account_of_the_runs(overlay: str) -> None:
    """A pod may have any account of its namespace, and a server is a pod: one with the approver's would approve."""
    makes = [role for role in of_kind(overlay, "Role") if "inferenceservices" in str(role["rules"])]
    assert {role["metadata"]["namespace"] for role in makes} == {f"tunegate-{overlay}-serving"}
    beside = [one for one in of_kind(overlay, "ServiceAccount", "RoleBinding", "Role") if served_space(one)]
    assert {one["metadata"]["name"] for one in beside} == {"tunegate-server", "tunegate-deployer"}
    assert [one["metadata"]["name"] for one in beside if one["kind"] == "ServiceAccount"] == ["tunegate-server"]


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
    policies = of_kind(overlay, "NetworkPolicy")
    denied = [policy for policy in policies if policy["metadata"]["name"] == "default-deny"]
    assert {policy["metadata"]["namespace"] for policy in denied} == namespaces(overlay)
    assert all(one["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} for one in denied)
    for policy in policies:
        name, spec = policy["metadata"]["name"], policy["spec"]
        if "ingress" in spec:
            assert (name, served_space(policy)) == ("allow-to-servers", True)
            assert spec["podSelector"]["matchExpressions"][0]["key"] == "serving.kserve.io/inferenceservice"
            (rule,) = spec["ingress"]
            assert rule["ports"] == [{"port": 8080, "protocol": "TCP"}]
            gateway, tasks = rule["from"]
            assert gateway == {"namespaceSelector": {"matchLabels": {"tunegate.dev/gateway": "true"}}}
            assert tasks["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": f"tunegate-{overlay}"}
            assert tasks["podSelector"]["matchLabels"] == {"pipelines.kubeflow.org/v2_component": "true"}
        for rule in spec.get("egress", ()):
            assert rule, f"{name} allows everything"


@pytest.mark.parametrize("overlay", sorted(SERVING))
def test_a_deployment_reaches_the_servers_that_let_it_in(overlay: str) -> None:
    """One side alone is a rollout that waits for answers until it gives up."""
    policies = {one["metadata"]["name"]: one for one in of_kind(overlay, "NetworkPolicy")}
    leaves, enters = policies["allow-tasks-to-servers"], policies["allow-to-servers"]
    (out,), (let_in,) = leaves["spec"]["egress"], enters["spec"]["ingress"]
    (servers,) = out["to"]
    assert servers["podSelector"] == enters["spec"]["podSelector"] and out["ports"] == let_in["ports"]
    assert servers["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": enters["metadata"]["namespace"]
    }
    assert let_in["from"][1]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": leaves["metadata"]["namespace"]
    }
    assert let_in["from"][1]["podSelector"] == leaves["spec"]["podSelector"]


@each_overlay
def test_namespaces_are_guarded_and_accelerators_are_counted(overlay: str) -> None:
    for namespace in of_kind(overlay, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/warn"] == "restricted"
    quotas, ranges = of_kind(overlay, "ResourceQuota"), of_kind(overlay, "LimitRange")
    for counted in (quotas, ranges):
        assert {one["metadata"]["namespace"] for one in counted} == namespaces(overlay)
    for quota in quotas:
        assert {"requests.nvidia.com/gpu", "requests.cpu", "requests.memory"} <= quota["spec"]["hard"].keys()
    assert all(one["spec"]["limits"][0]["defaultRequest"] for one in ranges)


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
    (quota,) = [one for one in of_kind(overlay, "ResourceQuota") if served_space(one)]
    needed = 2 * int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert int(quota["spec"]["hard"]["requests.nvidia.com/gpu"]) >= needed, "what serves and a canary fit side by side"
