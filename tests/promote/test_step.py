"""Promotion: only a PASS on these very bytes, all or nothing, once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.claim import Claim
from tunegate.contracts.errors import ArtifactError, ConflictError, GateRefused, InputError
from tunegate.contracts.manifest import MANIFEST_NAME, read_manifest, verify
from tunegate.contracts.verdict import Check, Verdict
from tunegate.promote.settings import PromoteSettings
from tunegate.promote.step import run
from tunegate.registry.aliases import history, read_alias, rollback
from tunegate.registry.claims import begin
from tunegate.registry.versions import fetch_version, list_versions
from tunegate.storage.open import open_storage

ROLES = ("base", "merged", "quantized")


@dataclasses.dataclass
class Judged:
    """The artifacts of one finished run, and where it is promoted to."""

    folder: Path
    registry: Path
    inputs: dict[str, Any]

    def promote(self, output: str = "promotion", alias: str = "champion", claim: Claim | None = None) -> dict[str, Any]:
        """Promotes, and returns ``promotion.json``."""
        target = self.folder / output
        run(PromoteSettings(alias), **self.inputs, registry=str(self.registry), output=target, claim=claim)
        document: dict[str, Any] = json.loads((target / "promotion.json").read_text())
        return document

    def folders(self) -> list[Path]:
        """Every input artifact."""
        return [*(v for k, v in self.inputs.items() if k != "evaluations"), *self.inputs["evaluations"].values()]


def _artifact(folder: Path, kind: str, text: str) -> str:
    def build(partial: Path) -> None:
        (partial / "nested").mkdir()
        (partial / "nested/weights").write_text(text * 1000)

    return produce(folder, kind=kind, parents={}, settings={"text": text}, build=build).content_digest


def _finished(
    folder: Path, registry: Path, text: str = "one", change: Callable[[Verdict], Verdict] = lambda same: same
) -> Judged:
    inputs: dict[str, Any] = {kind: folder / kind for kind in ("adapter", "merged", "quantized")}
    subjects = {kind: _artifact(path, kind, text) for kind, path in inputs.items()} | {"dataset": "d" * 64}
    inputs["evaluations"] = {role: folder / f"evaluation-{role}" for role in ROLES}
    for role, path in inputs["evaluations"].items():
        subjects[f"evaluations/{role}"] = _artifact(path, "evaluation", text + role)
    verdict = Verdict("PASS", "All 1 checks hold.", (Check("gain", "PASS", "shown"),), subjects, "p" * 64)
    inputs["verdict"] = folder / "verdict"
    registry.mkdir(exist_ok=True)
    produce(inputs["verdict"], kind="verdict", parents=subjects, settings={}, build=change(verdict).write)
    return Judged(folder, registry, inputs)


@pytest.fixture(autouse=True)
def _no_tool_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking them up takes most of the time of these small artifacts."""
    monkeypatch.setattr("tunegate.contracts.manifest.tool_versions", dict)


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    return _finished(tmp_path / "one", tmp_path / "registry")


def test_a_pass_is_published_whole_and_the_alias_points_at_it(judged: Judged, tmp_path: Path) -> None:
    document = judged.promote()
    storage = open_storage(str(judged.registry))
    head = history(storage, "champion")[0]
    assert document == {
        "schema_version": 1,
        "alias": "champion",
        "version": head.version,
        "record": head.digest,
        "registry": str(judged.registry),
        "previous": None,
        "signed": False,
        "approval": None,
    }
    manifest = fetch_version(storage, head.version, tmp_path / "fetched")
    models = {"adapter", "merged", "quantized"}
    assert set(manifest.parents) == {"verdict", "lineage"} | models | {f"evaluations/{r}" for r in ROLES}
    for role, digest in manifest.parents.items():
        assert verify(tmp_path / "fetched" / role).content_digest == digest
    assert head.verdict == head.attempt == manifest.parents["verdict"]
    page = (judged.folder / "promotion/page.html").read_text()
    assert head.version in page
    assert json.loads((judged.folder / "promotion/summary.json").read_text())["version"] == head.version


def test_a_parity_report_that_was_judged_is_part_of_the_version_and_must_be_there(tmp_path: Path) -> None:
    parity = tmp_path / "parity"
    digest = _artifact(parity, "parity", "close")
    bound = {"parity": digest}
    judged = _finished(
        tmp_path / "one",
        tmp_path / "registry",
        change=lambda verdict: dataclasses.replace(verdict, subjects={**verdict.subjects, **bound}),
    )
    with pytest.raises(ArtifactError, match="about other artifacts") as caught:
        judged.promote()
    assert caught.value.items == (f"parity: given nothing, judged {digest}",)
    judged.inputs["parity"] = parity
    version = judged.promote()["version"]
    manifest = fetch_version(open_storage(str(judged.registry)), version, tmp_path / "fetched")
    assert manifest.parents["parity"] == digest
    assert verify(tmp_path / "fetched/parity").content_digest == digest


def test_a_second_promotion_names_what_it_replaced(judged: Judged, tmp_path: Path) -> None:
    first = judged.promote()
    second = _finished(tmp_path / "two", judged.registry, "two").promote()
    assert second["previous"] == first["version"]
    assert [r.version for r in history(open_storage(str(judged.registry)), "champion")] == [
        second["version"],
        first["version"],
    ]


def test_retraining_that_was_overtaken_promotes_nothing_and_the_newest_does(judged: Judged, tmp_path: Path) -> None:
    storage = open_storage(str(judged.registry))
    claims = [
        begin(storage, "champion", made_from=str(n) * 64, holder=f"run-{n}", seconds=0.001).claim for n in range(2)
    ]
    with pytest.raises(ConflictError, match="taken by somebody else"):
        judged.promote(claim=claims[0])
    assert read_alias(storage, "champion").record is None
    assert not (judged.folder / "promotion").exists()
    newest = _finished(tmp_path / "two", judged.registry, "two")
    newest.promote(claim=claims[1])
    assert [record.made_from for record in history(storage, "champion")] == ["1" * 64]
    newest.promote("again", claim=claims[1])  # a task that is tried again
    assert len(history(storage, "champion")) == 1


def test_claim_on_another_alias_promotes_nothing(judged: Judged) -> None:
    storage = open_storage(str(judged.registry))
    claim = begin(storage, "challenger", made_from="1" * 64, holder="run-1", seconds=60).claim
    with pytest.raises(InputError, match="not on the alias champion"):
        judged.promote(claim=claim)
    assert read_alias(storage, "champion").record is None


def test_the_same_promotion_again_changes_nothing(judged: Judged, tmp_path: Path) -> None:
    first = judged.promote()
    before = {path: path.stat().st_mtime_ns for path in judged.registry.rglob("*")}
    assert judged.promote() == first
    assert judged.promote("retry") == first
    after = {path: path.stat().st_mtime_ns for path in judged.registry.rglob("*")}
    noted = {judged.registry / "arrivals", *(judged.registry / "arrivals").iterdir()}  # that it was brought again
    assert {path for path in after if before.get(path) != after[path]} <= {judged.registry / "versions", *noted}
    digests = [read_manifest(judged.folder / name).content_digest for name in ("promotion", "retry")]
    assert digests[0] == digests[1]


def test_a_late_retry_does_not_undo_a_rollback_and_does_not_say_that_it_promoted(
    judged: Judged, tmp_path: Path
) -> None:
    first = judged.promote()
    second = _finished(tmp_path / "two", judged.registry, "two")
    second.promote()
    storage = open_storage(str(judged.registry))
    rollback(storage, read_alias(storage, "champion"))
    for output in ("late", "promotion"):  # a new folder, and the one that says so already
        with pytest.raises(ConflictError, match="already used") as caught:
            second.promote(output)
        assert f"champion points at {first['version']} (rollback" in caught.value.seen
    assert not (second.folder / "late").exists()
    assert history(storage, "champion")[0].version == first["version"]


def test_a_registry_that_does_not_exist_is_refused_and_not_made(judged: Judged) -> None:
    """A pod would make it on its own disk, and it would be gone with the pod."""
    judged.registry.rmdir()
    with pytest.raises(InputError, match="mount a shared volume") as caught:
        judged.promote()
    assert caught.value.exit_code == 2
    assert not judged.registry.exists()
    assert not (judged.folder / "promotion").exists()


@pytest.mark.parametrize("decision", ["FAIL", "INCONCLUSIVE"])
def test_without_a_pass_the_registry_stays_as_it_was(judged: Judged, tmp_path: Path, decision: Any) -> None:
    first = judged.promote()
    before = sorted(path for path in judged.registry.rglob("*"))
    reason = Check("margin", decision, "quantized lost 0.4")
    other = _finished(
        tmp_path / "two",
        judged.registry,
        "two",
        lambda v: dataclasses.replace(v, decision=decision, summary="lost 0.4", checks=(*v.checks, reason)),
    )
    with pytest.raises(GateRefused, match=f"{decision} margin: quantized lost 0.4") as caught:
        other.promote()
    assert caught.value.exit_code == 3
    assert sorted(path for path in judged.registry.rglob("*")) == before
    assert history(open_storage(str(judged.registry)), "champion")[0].version == first["version"]
    assert not (other.folder / "promotion").exists()


@pytest.mark.parametrize(
    "checks", [(), (Check("gain", "PASS", "shown"), Check("margin", "FAIL", "lost"))], ids=["none", "one fails"]
)
def test_a_pass_that_its_checks_contradict_is_refused(tmp_path: Path, checks: tuple[Check, ...]) -> None:
    judged = _finished(tmp_path / "one", tmp_path / "registry", change=lambda v: dataclasses.replace(v, checks=checks))
    with pytest.raises(ArtifactError, match="its checks do not"):
        judged.promote()
    assert not any(judged.registry.iterdir())


def test_one_changed_byte_in_any_file_of_any_input_is_refused(judged: Judged) -> None:
    for folder in judged.folders():
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            at = data.index(b"sha256") + 12 if path.name == MANIFEST_NAME else len(data) // 2
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(ArtifactError, match=path.name):
                judged.promote()
            path.write_bytes(data)
    assert not any(judged.registry.iterdir())
    judged.promote()


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_a_file_that_came_or_went_is_refused_by_name(judged: Judged, change: str) -> None:
    weights = judged.inputs["merged"] / "nested/weights"
    if change == "added":
        (judged.inputs["merged"] / "nested/extra").write_text("")
    elif change == "removed":
        weights.unlink()
    else:
        weights.rename(weights.with_name("other"))
    says = "nested/extra: extra" if change == "added" else "nested/weights: missing"
    with pytest.raises(ArtifactError, match=says):
        judged.promote()


@pytest.mark.parametrize("role", ["adapter", "merged", "quantized", "evaluations/quantized"])
def test_an_artifact_that_was_not_judged_is_refused_by_name(judged: Judged, tmp_path: Path, role: str) -> None:
    other = _finished(tmp_path / "two", judged.registry, "two")
    if role.startswith("evaluations/"):
        judged.inputs["evaluations"]["quantized"] = other.inputs["evaluations"]["quantized"]
    else:
        judged.inputs[role] = other.inputs[role]
    with pytest.raises(ArtifactError, match=f"- {role}: given [0-9a-f]{{64}}, judged"):
        judged.promote()
    assert not any(judged.registry.iterdir())


def test_an_evaluation_that_was_judged_and_is_not_given_is_missed(judged: Judged) -> None:
    del judged.inputs["evaluations"]["base"]
    with pytest.raises(ArtifactError, match="evaluations/base: given nothing"):
        judged.promote()


@pytest.mark.parametrize(("alias", "registry"), [("../champion", None), ("champion", "s3://bucket/models")])
def test_a_bad_alias_or_address_is_refused_before_anything_is_written(
    judged: Judged, alias: str, registry: str | None
) -> None:
    with pytest.raises(InputError):
        run(
            PromoteSettings(alias),
            **judged.inputs,
            registry=registry or str(judged.registry),
            output=judged.folder / "promotion",
        )
    assert not any(judged.registry.iterdir())
    assert not (judged.folder / "promotion").exists()


def test_a_version_changed_in_the_registry_is_not_promoted_again(judged: Judged) -> None:
    version = judged.promote()["version"]
    (judged.registry / "versions" / version / "merged/nested/weights").write_text("other")
    with pytest.raises(ArtifactError, match="merged/nested/weights: changed"):
        judged.promote("again", alias="other")
    assert history(open_storage(str(judged.registry)), "other") == []


def test_a_verdict_is_promoted_once_in_a_bucket_as_in_a_folder(judged: Judged, gcs_bucket: str) -> None:
    for attempt in ("first", "again"):
        run(PromoteSettings("champion"), **judged.inputs, registry=gcs_bucket, output=judged.folder / attempt)
    storage = open_storage(gcs_bucket)
    (version,) = list_versions(storage)
    assert [record.version for record in history(storage, "champion")] == [version]
    fetch_version(storage, version, judged.folder / "fetched")
    with pytest.raises(InputError, match="no-such-bucket cannot be used"):
        run(
            PromoteSettings("champion"),
            **judged.inputs,
            registry="gs://no-such-bucket",
            output=judged.folder / "elsewhere",
        )


def _promote_until(judged: Judged, steps: int, taken: Any) -> None:
    """Promotes, and is killed for good at its durable step number ``steps`` (a flush of a file or folder)."""
    durable = os.fsync

    def counted(descriptor: int) -> None:
        durable(descriptor)
        taken.value += 1
        if taken.value == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = counted
    judged.promote()


def _killed_at(judged: Judged, steps: int) -> int:
    """The steps that were taken: fewer than all of them when it was killed."""
    context = multiprocessing.get_context("fork")
    taken = context.Value("i", 0)
    process = context.Process(target=_promote_until, args=(judged, steps, taken))
    process.start()
    process.join()
    assert process.exitcode == (0 if steps == 0 else -signal.SIGKILL)
    return int(taken.value)


def test_a_promotion_killed_at_any_step_leaves_the_old_or_the_new_and_a_retry_finishes(
    judged: Judged, tmp_path: Path
) -> None:
    old = judged.promote()["version"]
    shutil.copytree(judged.registry, tmp_path / "pristine")
    total = _killed_at(_finished(tmp_path / "two", judged.registry, "two"), 0)
    assert total > 25
    seen = set()
    for steps in [*range(1, total - 9, 9), *range(total - 9, total + 1)]:
        shutil.rmtree(judged.registry)
        shutil.copytree(tmp_path / "pristine", judged.registry)
        candidate = _finished(tmp_path / f"killed {steps}", judged.registry, "two")
        _killed_at(candidate, steps)

        storage = open_storage(str(judged.registry))
        for version in list_versions(storage):
            shutil.rmtree(tmp_path / "fetched", ignore_errors=True)
            fetch_version(storage, version, tmp_path / "fetched")
        before = [record.version for record in history(storage, "champion")]
        done = candidate.promote()
        assert before in ([old], [done["version"], old])
        assert [record.version for record in history(storage, "champion")] == [done["version"], old]
        assert not list(judged.registry.rglob(".tunegate-*-*"))
        seen.add((len(list_versions(storage)), len(before)))
    assert seen == {(2, 1), (2, 2)}


def _compared(folder: Path, registry: Path, text: str, record: str | None, **top: Any) -> Judged:
    """A finished run that was compared with what the alias pointed at."""
    document = {
        "schema_version": 1, "alias": "champion", "registry": str(registry), "record": record,
        "generation": 1 if record else 0, "version": "v" * 64 if record else None, "models": {}, "evaluations": {},
        "asked": ["champion_quantized"],
    } | top  # fmt: skip
    folder.mkdir()
    path = folder / "champion"

    def build(partial: Path) -> None:
        (partial / "champion.json").write_text(json.dumps(document))

    digest = produce(path, kind="champion", parents={}, settings={}, build=build).content_digest

    def bound(verdict: Verdict) -> Verdict:
        return dataclasses.replace(verdict, subjects={**verdict.subjects, "champion": digest})

    judged = _finished(folder, registry, text, bound)
    judged.inputs["champion"] = path
    return judged


def test_what_was_compared_with_a_champion_that_was_replaced_since_is_refused(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first = _compared(tmp_path / "first", registry, "one", None)
    record = first.promote()["record"]
    second, late = (_compared(tmp_path / name, registry, name, record) for name in ("second", "late"))
    second.promote()
    with pytest.raises(ConflictError, match="another champion") as caught:
        late.promote()
    assert record in caught.value.expected
    assert second.promote("again")["alias"] == "champion"  # a retry of what moved the alias is no change
    storage = open_storage(str(registry))
    assert len(history(storage, "champion")) == 2
    assert len(list_versions(storage)) == 2


def test_a_run_that_found_no_champion_does_not_replace_one_that_came_meanwhile(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first, late = (_compared(tmp_path / name, registry, name, None) for name in ("first", "late"))
    first.promote()
    with pytest.raises(ConflictError, match="another champion"):
        late.promote()


def test_a_comparison_with_the_champion_of_another_alias_is_refused(tmp_path: Path) -> None:
    judged = _compared(tmp_path / "run", tmp_path / "registry", "one", None, alias="other")
    with pytest.raises(ConflictError, match="another champion"):
        judged.promote()


def test_a_version_holds_what_it_was_compared_with(tmp_path: Path) -> None:
    judged = _compared(tmp_path / "run", tmp_path / "registry", "one", None)
    version = judged.promote()["version"]
    fetch_version(open_storage(str(judged.registry)), version, tmp_path / "copy")
    assert (tmp_path / "copy/champion/champion.json").is_file()
