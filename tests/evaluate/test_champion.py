"""The champion is evaluated as this run's models are, from its stored evaluation only where nothing but it differs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunegate.contracts.artifact import produce
from tunegate.contracts.champion import read_champion
from tunegate.contracts.errors import ArtifactError, InputError
from tunegate.contracts.files import files_below, sha256_file
from tunegate.contracts.manifest import MANIFEST_NAME, verify
from tunegate.evaluate.champion import asked_roles, run_champion
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.evaluate.step import run
from tunegate.registry.aliases import promote, read_alias
from tunegate.registry.versions import Part, publish
from tunegate.storage.open import open_storage

SETTINGS = EvaluateSettings(limit=3, batch_size=4, max_new_tokens=4)
ROLES = ("champion_quantized",)


@dataclasses.dataclass
class Place:
    """A registry whose alias points at a version, and an evaluation of this run's base."""

    registry: Path
    dataset: Path
    like: Path
    record: str

    def find(self, output: Path, *, settings: EvaluateSettings = SETTINGS, **change: Any) -> Path:
        asked: dict[str, Any] = {
            "roles": ROLES,
            "registry": str(self.registry),
            "alias": "champion",
            "dataset": self.dataset,
            "like": self.like,
        }
        run_champion(settings, **{**asked, **change}, output=output)
        return output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_base: Any, tiny_base: Path, tiny_dataset: Path) -> Place:
    folder = tmp_path_factory.mktemp("champion")
    model = make_base(seed=7)

    def copied(target: Path) -> None:
        for name in files_below(model):
            shutil.copyfile(model / name, target / name)

    parts = {}
    for kind in ("merged", "quantized"):
        manifest = produce(folder / kind, kind=kind, parents={}, settings={}, build=copied)
        parts[kind] = Part(folder / kind, manifest)
    evaluation = folder / "evaluation"
    manifest = run(SETTINGS, model=folder / "quantized", dataset=tiny_dataset, output=evaluation)
    parts["evaluations/quantized"] = Part(evaluation, manifest)
    like = folder / "like"
    run(SETTINGS, model=tiny_base, dataset=tiny_dataset, output=like)
    (folder / "registry").mkdir()
    storage = open_storage(str(folder / "registry"))
    move = promote(storage, read_alias(storage, "champion"), publish(storage, parts), verdict="d" * 64, attempt="one")
    return Place(folder / "registry", tiny_dataset, like, move.record.digest)


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("tunegate.models.load.load_causal_lm", load)


def _files(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in files_below(folder) if name != MANIFEST_NAME}


def test_stored_evaluation_is_taken_without_loading_a_model(place: Place, tmp_path: Path, no_loading: None) -> None:
    found = place.find(tmp_path / "champion")
    verify(found, kind="champion")
    champion = read_champion(found)
    assert (champion.record, champion.generation) == (
        place.record,
        read_alias(open_storage(str(place.registry)), "champion").generation,
    )
    assert dict(champion.evaluations) == {"champion_quantized": "stored"}
    assert _files(found / "champion_quantized") == _files(place.like.parent / "evaluation")


def test_other_settings_or_a_version_without_an_evaluation_evaluate_the_fetched_model(
    place: Place, tmp_path: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = dataclasses.replace(SETTINGS, limit=2)
    like = tmp_path / "like"
    run(settings, model=tiny_base, dataset=place.dataset, output=like)
    roles = ("champion", "champion_quantized")
    found = place.find(tmp_path / "champion", settings=settings, like=like, roles=roles)
    champion = read_champion(found)
    assert dict(champion.evaluations) == dict.fromkeys(roles, "made anew")
    assert "champion_quantized: evaluated again, for settings differs" in capsys.readouterr().out
    for role in roles:
        results = json.loads((found / role / "results.json").read_text())
        assert results["model_digest"] == champion.models[role]
        assert verify(found / role, kind="evaluation").settings == verify(like).settings


def test_alias_that_points_at_nothing_is_recorded_and_a_registry_that_is_not_there_is_an_error(
    place: Place, tmp_path: Path
) -> None:
    champion = read_champion(place.find(tmp_path / "none", alias="other"))
    assert (champion.version, champion.record, champion.generation, champion.asked) == (None, None, 0, ROLES)
    with pytest.raises(InputError):
        place.find(tmp_path / "absent", registry=str(tmp_path / "no registry"))
    assert not (tmp_path / "absent").exists()


def test_champion_that_nobody_compares_with_costs_nothing(place: Place, tmp_path: Path, no_loading: None) -> None:
    champion = read_champion(place.find(tmp_path / "champion", roles=()))
    assert (champion.record, dict(champion.models)) == (place.record, {})


def test_model_that_was_changed_in_the_registry_is_never_evaluated(
    place: Place, tmp_path: Path, no_loading: None
) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(place.registry, registry)
    weights = next(registry.glob("versions/*/merged/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"model\.safetensors: changed"):
        place.find(tmp_path / "champion", registry=str(registry), roles=("champion",))


def test_whole_part_put_in_anothers_place_is_found(place: Place, tmp_path: Path, no_loading: None) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(place.registry, registry)
    version = next(registry.glob("versions/*"))
    shutil.rmtree(version / "merged")
    shutil.copytree(version / "quantized", version / "merged")
    with pytest.raises(ArtifactError, match=r"merged/manifest\.json: changed"):
        place.find(tmp_path / "champion", registry=str(registry), roles=("champion",))


def test_stored_evaluation_with_worse_scores_is_found_though_every_manifest_agrees_with_it(
    place: Place, tmp_path: Path, no_loading: None
) -> None:
    """Files, their manifest and the version's ``parents`` are all made to fit: the version's files do not."""
    registry = tmp_path / "registry"
    shutil.copytree(place.registry, registry)
    version = next(registry.glob("versions/*"))
    own, path = version / "evaluations/quantized", version / MANIFEST_NAME
    stated = verify(own)

    def worse(folder: Path) -> None:
        for entry in stated.files:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own / entry.path, folder / entry.path)
        (folder / "summary.json").write_text("{}")

    made = produce(
        tmp_path / "worse", kind=stated.kind, parents=stated.parents, settings=stated.settings, build=worse,
        volatile=stated.volatile,
    )  # fmt: skip
    assert made.content_digest != stated.content_digest
    shutil.rmtree(own)
    shutil.copytree(tmp_path / "worse", own)
    document = json.loads(path.read_text())
    document["parents"]["evaluations/quantized"] = made.content_digest
    path.chmod(0o644)
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"evaluations/quantized/manifest\.json: changed"):
        place.find(tmp_path / "champion", registry=str(registry))


def test_roles_are_those_that_the_policy_names() -> None:
    checks = [{"reference": "merged"}, {"reference": "champion_quantized"}, {"floor": 0.5}]
    assert asked_roles({"checks": checks}) == ("champion_quantized",)
    assert asked_roles({}) == ()
