"""A recipe: one YAML document that holds everything a run is told.

::

    run:                # the run form's parameters, as a person would fill them in KFP
      base_model: …
      learning_rate: 2.0e-4
    train:              # settings of a step that the run form does not have
      per_device_train_batch_size: 4
    gate:               # the policy
      …

Each setting stands in one place: what the run form holds may not be set again in a step's section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunegate.approve.settings import ApproveSettings, rules_of
from tunegate.contracts.approval_rules import refuse_unusable
from tunegate.contracts.errors import SettingsError
from tunegate.contracts.settings import parse_settings, refuse_unknown_keys, settings_document
from tunegate.deploy.settings import ClusterSettings, refuse_unusable_weights
from tunegate.gate.policy import parse_policy
from tunegate.registry.aliases import check_alias_name
from tunegate.registry.settings import SigningSettings, refuse_unusable_signing
from tunegate.storage.open import open_storage
from tunegate_pipelines.form import ADDRESSES, AFTER, FORM, SECTIONS
from tunegate_pipelines.yaml_file import parse_yaml, read_text

RUN_SECTION = "run"

#: Step → its settings, complete and checked, as plain JSON types.
Sections = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A recipe as it was written.

    Attributes:
        form: run-form parameter → value; those that are missing take the pipeline's defaults.
        sections: step → the settings given for it.
    """

    form: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]


def read_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe file and lays ``overrides`` over it.

    Args:
        path: the YAML file; None starts from an empty recipe.
        overrides: ``name=value`` for the run form, ``step.name=value`` for a step's setting.

    Raises:
        SettingsError: when it cannot be read, or names something unknown.
    """
    document = {} if path is None else parse_yaml(read_text(path, what="recipe"), where=str(path))
    if not isinstance(document, Mapping):
        raise SettingsError(
            f"{path} is not a recipe.",
            seen=type(document).__name__,
            expected=f"sections {', '.join((RUN_SECTION, *SECTIONS, *AFTER))}",
            remedy="start from one of the recipes in pipelines/tunegate_pipelines/recipes",
        )
    known = (RUN_SECTION, *SECTIONS, *AFTER)
    refuse_unknown_keys(document, known=known, where=str(path))
    parts = {name: _section(document.get(name), f"recipe.{name}") for name in known}
    for override in overrides:
        section, name, value = _override(override)
        parts[section][name] = value
    form = parts.pop(RUN_SECTION)
    refuse_unknown_keys(form, known=(*ADDRESSES, *FORM), where=f"recipe.{RUN_SECTION}")
    return Recipe(form, {name: section for name, section in parts.items() if section})


def resolve(form: Mapping[str, Any], sections: Mapping[str, Any]) -> Sections:
    """Every step's settings, complete: the run form's, then the recipe's, then the defaults.

    Args:
        form: run-form parameter → value, addresses left out.
        sections: what the recipe says of each step.

    Raises:
        SettingsError: for anything unknown, out of range, or said twice.
    """
    merged = _merged(form, sections)
    complete = {name: _parsed(name, merged[name]) for name in SECTIONS}
    parse_policy(complete["gate"]["policy"])
    _check_approval(complete)
    _check_deployment(_section(sections.get("deploy"), "recipe.deploy"))
    return complete


def _check_deployment(section: Mapping[str, Any]) -> None:
    """Raises SettingsError for a deployment that would be refused after all the work is done."""
    refuse_unusable_weights(parse_settings(ClusterSettings, section, where="recipe.deploy"))


def _check_approval(sections: Sections) -> None:
    """Raises SettingsError for an approval that nobody could give, or a signature that nobody could make or verify."""
    signing = parse_settings(SigningSettings, sections["signing"], where="recipe.signing")
    refuse_unusable_signing(signing, signs=True)
    approve = parse_settings(ApproveSettings, sections["approve"], where="recipe.approve")
    if approve.required:
        refuse_unusable(rules_of(approve, require_signature=signing.require_signature), where="recipe.approve")


def resolve_step(form: Mapping[str, Any], sections: Mapping[str, Any], step: str) -> dict[str, Any]:
    """One step's settings, complete, though the other steps' may be incomplete. See :func:`resolve`."""
    return _parsed(step, _merged(form, sections)[step])


def _merged(form: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Step → what the run form and the recipe say of it."""
    if RUN_SECTION in sections:
        raise SettingsError(
            "The recipe holds a section 'run'.",
            seen=", ".join(sections[RUN_SECTION] or ()) or "an empty section",
            expected=f"sections {', '.join(SECTIONS)}",
            remedy="give these values in the run form itself, and leave the section out",
        )
    refuse_unknown_keys(sections, known=(*SECTIONS, *AFTER), where="recipe")
    refuse_unknown_keys(form, known=FORM, where=f"recipe.{RUN_SECTION}")
    merged = {name: _section(sections.get(name), f"recipe.{name}") for name in SECTIONS}
    _refuse_twice(merged)
    for parameter, places in FORM.items():
        if parameter in form:
            for step, setting in places:
                merged[step][setting] = form[parameter]
    return merged


def check_destination(sections: Sections, registry: str) -> None:
    """Whether there is a place to promote to, asked before anything is spent; nothing is written.

    Raises:
        InputError: for an alias that cannot be one, or a registry address that cannot be used.
    """
    check_alias_name(sections["promote"]["alias"])
    open_storage(registry)


def refuse_unreachable(address: str) -> None:
    """Asks a bucket whether it is there, before anything is spent; a folder may be made later, or be mounted elsewhere.

    Raises:
        InputError: saying what is missing: the bucket, the credentials, the permission.
    """
    if address.startswith("gs://"):
        open_storage(address).refuse_absent()


def _parsed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return settings_document(parse_settings(SECTIONS[name], values, where=f"recipe.{name}"))


def _refuse_twice(sections: Mapping[str, Mapping[str, Any]]) -> None:
    twice = [
        f"{step}.{setting} is the run form's {parameter!r}"
        for parameter, places in FORM.items()
        for step, setting in places
        if setting in sections[step]
    ]
    if twice:
        raise SettingsError(
            "The recipe sets what the run form already holds.",
            seen=f"{len(twice)} setting(s) in a step's section",
            expected="each setting in one place",
            remedy=f"move them to the section '{RUN_SECTION}' of the recipe, or to the run form in KFP",
            items=twice,
        )


def _override(text: str) -> tuple[str, str, Any]:
    name, separator, value = text.partition("=")
    section, dot, setting = name.partition(".")
    if not separator or not name or (dot and section not in (*SECTIONS, *AFTER)):
        raise SettingsError(
            f"--set {text!r} is not understood.",
            seen=repr(text),
            expected=f"NAME=VALUE for the run form, or STEP.NAME=VALUE with a step of {', '.join((*SECTIONS, *AFTER))}",
            remedy="for example --set learning_rate=2e-4 or --set train.per_device_train_batch_size=4",
        )
    parsed = parse_yaml(value, where=f"--set {name}")
    return (section, setting, parsed) if dot else (RUN_SECTION, name, parsed)


def _section(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SettingsError(
            f"{where} is not a mapping.",
            seen=f"{value!r} ({type(value).__name__})",
            expected="setting names with their values",
            remedy=f"write {where} as 'name: value' lines",
        )
    return dict(value)
