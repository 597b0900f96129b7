"""A fleet that was built: the very adapters, under the digest of their bytes, with what PEFT itself answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunegate.cli import app
from tunegate.contracts.artifact import produce
from tunegate.contracts.files import pretty_json
from tunegate.contracts.manifest import input_digest, verify
from tunegate.contracts.verdict import Check, Verdict
from tunegate.registry.aliases import promote, read_alias
from tunegate.registry.versions import Part, publish
from tunegate.serving.probes import read_probes
from tunegate.storage.open import open_storage

RUNNER = CliRunner()


def built(fleet: Path, output: Path, *options: str) -> Any:
    command = ["fleet", "build", str(fleet), "--output", str(output), "--recipe", str(fleet.with_name("recipe.yaml"))]
    return RUNNER.invoke(app, [*command, "--json", *options])


def written(folder: Path, document: Any) -> Path:
    (folder / "recipe.yaml").write_text("serving: {dtype: float32}\n")
    (folder / "fleet.yaml").write_text(json.dumps(document))
    return folder / "fleet.yaml"


def greedy(base: Path, adapter: Path, prompt: list[int], tokens: int) -> list[int]:
    """What PEFT's own forward pass finds likeliest, token by token."""
    import torch
    from peft import PeftModel

    from tunegate.models.load import load_causal_lm

    model = PeftModel.from_pretrained(load_causal_lm(base), str(adapter)).eval()
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_every_adapter_lies_under_its_digest_with_the_answers_of_its_own_peft_model(
    tmp_path: Path, tiny_base: Path, tiny_dataset: Path, make_adapter: Callable[..., Path], trained_adalora: Path
) -> None:
    lora, rslora = make_adapter("lora", seed=1), make_adapter("rslora", seed=2, r=8, use_rslora=True)
    adapters = {"lora": str(lora), "rslora": str(rslora), "adalora": str(trained_adalora)}
    document = {"base": str(tiny_base), "dataset": str(tiny_dataset), "adapters": adapters}
    fleet = written(tmp_path, {**document, "probes": {"rows": 3, "max_new_tokens": 6}})
    result = built(fleet, tmp_path / "fleet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["base"] == input_digest(tiny_base)
    assert verify(tmp_path / "fleet", kind="fleet").parents["adapters/adalora"] == input_digest(trained_adalora)
    assert len({each["served"] for each in found["adapters"]}) == 3
    for each in found["adapters"]:
        assert input_digest(tmp_path / "fleet" / "adapters" / each["served"]) == each["served"]
        probes = read_probes(tmp_path / "fleet" / "probes" / f"{each['alias']}.json")
        assert (probes.model, len(probes.rows)) == (each["served"], 3)
        for row in probes.rows:
            ids = greedy(tiny_base, Path(adapters[each["alias"]]), list(row.prompt_ids), len(row.answer))
            assert [token.token_id for token in row.answer] == ids
    again = built(fleet, tmp_path / "fleet")
    assert json.loads(again.stdout) == found


def test_prompts_are_needed_unless_nothing_is_asked(
    tmp_path: Path, tiny_base: Path, make_adapter: Callable[..., Path]
) -> None:
    fleet = written(tmp_path, {"base": str(tiny_base), "adapters": {"a": str(make_adapter("lora", seed=1))}})
    refused = built(fleet, tmp_path / "fleet")
    assert (refused.exit_code, "nothing to ask the adapter a" in refused.stderr) == (2, True)
    assert not (tmp_path / "fleet").exists()
    assert built(fleet, tmp_path / "fleet", "--check", "none").exit_code == 0
    assert not (tmp_path / "fleet" / "probes").exists()


class Registry:
    """Versions that hold an adapter, and an alias that points at one."""

    def __init__(self, place: Path, base: Path, dataset: Path, make_adapter: Callable[..., Path]) -> None:
        self.place, self.base, self.dataset, self.make_adapter = place, base, dataset, make_adapter
        self.storage = open_storage(str(place / "registry"))

    def publish(self, seed: int, *, decision: Any = "PASS", merge_base: str = "original") -> tuple[str, str]:
        """Publishes a version and moves the alias to it; returns the digests of version and adapter."""
        place = self.place / f"parts-{seed}-{decision}-{merge_base}"
        source = self.make_adapter(f"of-version-{seed}", seed=seed)

        def adapter(folder: Path) -> None:
            for path in source.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())

        def merged(folder: Path) -> None:
            (folder / "merge.json").write_bytes(pretty_json({"merge_base": merge_base}))

        made = {
            "adapter": produce(place / "adapter", kind="adapter", parents={}, settings={}, build=adapter),
            "merged": produce(place / "merged", kind="merged", parents={}, settings={}, build=merged),
        }
        subjects = {role: manifest.content_digest for role, manifest in made.items()} | {"dataset": "d" * 64}
        verdict = Verdict(decision, "All.", (Check("gain", decision, "shown"),), subjects, "p" * 64)

        def judge(folder: Path) -> None:
            verdict.write(folder)
            policy = {"serving": {"min_agreement": 0.9, "max_times_noise": 7.0}}
            (folder / "policy.json").write_bytes(pretty_json(policy))

        made["verdict"] = produce(place / "verdict", kind="verdict", parents=subjects, settings={}, build=judge)
        version = publish(self.storage, {role: Part(place / role, manifest) for role, manifest in made.items()})
        promote(self.storage, read_alias(self.storage, "support"), version, verdict="v", attempt=version)
        return version, made["adapter"].content_digest

    def fleet(self) -> Path:
        document = {"base": str(self.base), "dataset": str(self.dataset), "registry": str(self.place / "registry")}
        probes = {"rows": 2, "max_new_tokens": 4}
        return written(self.place, {**document, "probes": probes, "adapters": {"a": {"follows": "support"}}})


@pytest.fixture
def registry(tmp_path: Path, tiny_base: Path, tiny_dataset: Path, make_adapter: Callable[..., Path]) -> Registry:
    return Registry(tmp_path, tiny_base, tiny_dataset, make_adapter)


def test_the_adapter_of_the_version_that_an_alias_points_at_is_served_by_the_limits_it_was_judged_by(
    registry: Registry, tmp_path: Path
) -> None:
    for seed in (1, 2):
        version, adapter = registry.publish(seed)
        result = built(registry.fleet(), tmp_path / f"fleet-{seed}")
        assert result.exit_code == 0, result.output
        (found,) = json.loads(result.stdout)["adapters"]
        assert (found["alias"], found["version"], found["adapter"]) == ("a", version, adapter)
        assert (found["limits"]["min_agreement"], found["limits"]["max_times_noise"]) == (0.9, 7.0)


@pytest.mark.parametrize(
    ("made", "code", "told"),
    [
        ({"decision": "FAIL"}, 3, "FAIL"),
        ({"merge_base": "dequantized"}, 3, "not judged on this base"),
    ],
)
def test_a_version_that_was_not_judged_so_is_not_served_so(
    made: dict[str, Any], code: int, told: str, registry: Registry, tmp_path: Path
) -> None:
    registry.publish(1, **made)
    result = built(registry.fleet(), tmp_path / "fleet")
    assert (result.exit_code, told in result.stderr) == (code, True), result.output
    assert not (tmp_path / "fleet").exists()


def test_a_version_whose_adapter_was_changed_in_the_registry_is_refused(registry: Registry, tmp_path: Path) -> None:
    version, _ = registry.publish(1)
    path = registry.place / "registry" / "versions" / version / "adapter" / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    result = built(registry.fleet(), tmp_path / "fleet")
    assert (result.exit_code, "adapter_model.safetensors" in result.stderr) == (2, True), result.output


def test_an_unsigned_version_is_refused_where_a_signature_counts(
    registry: Registry, tmp_path: Path, key_pair: Any
) -> None:
    registry.publish(1)
    key = key_pair(tmp_path)
    result = built(registry.fleet(), tmp_path / "fleet", "--public-key", key.public_key)
    assert (result.exit_code, "no signature" in result.stderr) == (2, True), result.output


def test_a_fleet_is_another_one_where_a_signature_counts(registry: Registry, tmp_path: Path, key_pair: Any) -> None:
    """What was built when none counted is not served when one does."""
    from tunegate.fleet.file import read_fleet
    from tunegate.fleet.resolve import Digests, resolve
    from tunegate.registry.settings import SigningSettings

    registry.publish(1)
    fleet = read_fleet(registry.fleet())
    found = {
        resolve(fleet, Digests(), registry.storage, dtype="float32", signing=signing, check=True).digest
        for signing in (SigningSettings(), key_pair(tmp_path, "one"), key_pair(tmp_path, "two"))
    }
    assert len(found) == 3


def test_an_alias_that_is_not_there_is_said(registry: Registry, tmp_path: Path) -> None:
    result = built(registry.fleet(), tmp_path / "fleet")
    assert (result.exit_code, "support" in result.stderr) == (2, True)
