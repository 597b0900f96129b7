"""The memory plan that a person asks for: of which model, with which settings, and what is answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.contracts.errors import InputError, ModelError, SettingsError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.settings import parse_settings, settings_document
from tunegate.models.files import read_config
from tunegate.preflight.advice import Advice, advise
from tunegate.preflight.devices import DEVICES, Device, Fit, find_device, fits
from tunegate.preflight.known_models import KNOWN_MODELS, known_config
from tunegate.preflight.memory import USABLE_SHARE, MemoryPlan, plan
from tunegate.preflight.published import CONDITIONS, PUBLISHED, Comparison, compare
from tunegate.train.settings import TrainSettings
from tunegate_pipelines.form import ADDRESSES
from tunegate_pipelines.recipe import Recipe, read_recipe, resolve_step
from tunegate_pipelines.serving_plan import ServingPlan, serving_plan

SCHEMA_VERSION = 1

_TRAIN, _QUANTIZE = "train", "quantize"

#: Names that a recipe may give its base model in local runs → the known model that they are.
_NAMED = {"demo": "smollm2-135m"}


@dataclass(frozen=True)
class Answer:
    """What a run takes, where it fits, and what to change when it does not.

    Attributes:
        model: what the model was called.
        train: every setting of ``train`` that was planned.
        plans: with the activations kept, and computed twice; one of them when that is set.
        fits: how the run would be held on each known GPU.
        gpu: the one that was asked for.
        advised_gpu: the one that the advice is for; None when there is none to give.
        advice: changes, each on top of those before it.
        published: published figures beside ours, for models that have some.
        serving: which schemes can be served where, and what their weights take.
    """

    model: str
    train: Mapping[str, Any]
    plans: tuple[MemoryPlan, ...]
    fits: tuple[Fit, ...]
    gpu: Device | None
    advised_gpu: Device | None
    advice: tuple[Advice, ...]
    published: tuple[Comparison, ...]
    serving: ServingPlan

    def to_json(self) -> dict[str, Any]:
        """The answer as one document, for scripts. Sizes are in bytes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "train": dict(self.train),
            "plans": [_plan_document(found) for found in self.plans],
            "usable_share": USABLE_SHARE,
            "gpus": [_fit_document(found) for found in self.fits],
            "gpu": self.gpu.name if self.gpu else None,
            "advice_for": self.advised_gpu.name if self.advised_gpu else None,
            "advice": [dataclasses.asdict(found) for found in self.advice],
            "published": [_comparison_document(found) for found in self.published],
            "serving": self.serving.to_json(),
        }


def answer(
    recipe: Path | None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    gpu: str | None = None,
) -> Answer:
    """Plans a run.

    Args:
        recipe: a recipe file; without one, ``train``'s defaults hold.
        overrides: laid over it, see :func:`~tunegate_pipelines.recipe.read_recipe`.
        model: a known model, a model folder or a ``config.json``; otherwise the recipe's base model.
        gpu: the name of a known GPU that the run should fit.

    Raises:
        InputError: for a model, settings or a GPU that cannot be planned.
    """
    device = find_device(gpu) if gpu is not None else None
    read = read_recipe(recipe, overrides)
    form = {name: value for name, value in read.form.items() if name not in ADDRESSES}
    train = resolve_step(form, read.sections, _TRAIN)
    _refuse_unprunable(train)
    name = _model_name(read, model)
    config = model_config(name)
    asked = train["gradient_checkpointing"]
    ways = (False, True) if asked is None else (asked,)
    found = fits(config, train)
    advised = device if device is not None else (None if any(fit.choice.fits for fit in found) else DEVICES[-1])
    advice = advise(config, train, advised) if advised else ()
    return Answer(
        model=name,
        train=train,
        plans=tuple(plan(config, train, gradient_checkpointing=way) for way in ways),
        fits=found,
        gpu=device,
        advised_gpu=advised if advice else None,
        advice=advice,
        published=compare(name, _train_settings) if name in PUBLISHED else (),
        serving=serving_plan(config, resolve_step(form, read.sections, _QUANTIZE)),
    )


def conditions() -> str:
    """The conditions of the published figures, in words."""
    rows, length = CONDITIONS["per_device_train_batch_size"], CONDITIONS["max_length"]
    return f"Llama 3, AdamW, {rows} rows × {length:,} tokens, rank {CONDITIONS['r']}"


def _train_settings(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return settings_document(parse_settings(TrainSettings, values, where=_TRAIN))


def _refuse_unprunable(train: Mapping[str, Any]) -> None:
    """AdaLoRA is held at its first rank; a run whose last rank is not below it cannot start, and is not planned."""
    if train["method"] == "adalora" and train["init_r"] <= train["r"]:
        raise SettingsError(
            "AdaLoRA has no rank to prune.",
            seen=f"init_r {train['init_r']}, r {train['r']}",
            expected="init_r, the rank that every layer starts with and is held at, above r, the average that is left",
            remedy=f"add --set train.init_r={train['r'] * 3 // 2 + train['r'] % 2}",
        )


def _model_name(recipe: Recipe, model: str | None) -> str:
    name = model if model is not None else recipe.form.get("base_model")
    if not name:
        raise InputError(
            "There is no model to plan for.",
            seen="neither a recipe with a base_model nor --model",
            expected="a model",
            remedy=_REMEDY,
        )
    name = _NAMED.get(str(name), str(name)) if model is None else name
    if model is None and name not in KNOWN_MODELS and not Path(str(name)).expanduser().exists():
        raise ModelError(
            f"The base model {str(name)!r} of the recipe is not on this machine.",
            seen="no such folder; a plan reads the config.json of a folder, and fetches nothing",
            expected="a folder",
            remedy=_REMEDY,
        )
    return str(name)


_REMEDY = f"give --model: a model's folder, its config.json, or one of {', '.join(KNOWN_MODELS)}"


def model_config(name: str) -> dict[str, Any]:
    """A model's ``config.json``.

    Args:
        name: a known model, a model's folder, or the file itself.

    Raises:
        ModelError: when there is none, or it cannot be read.
    """
    if name in KNOWN_MODELS:
        return known_config(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return read_config(path)
    if not path.is_file():
        raise ModelError(
            f"There is no model {name!r} to plan for.",
            seen="no such folder, file or known model",
            expected="a model's folder, its config.json, or the name of a known model",
            remedy=_REMEDY,
        )
    return _config_file(path)


def _config_file(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise ModelError(
            f"{path} is not a model's config.json.", seen=str(error), expected="a JSON object", remedy=_REMEDY
        ) from error


def _plan_document(found: MemoryPlan) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "phases": dict(found.phases)}


def _fit_document(found: Fit) -> dict[str, Any]:
    return {
        "name": found.device.name,
        "memory_bytes": found.device.memory_bytes,
        "source": found.device.source,
        "fits": found.choice.fits,
        "gradient_checkpointing": found.choice.gradient_checkpointing,
        "optim": found.choice.optim,
        "peak_bytes": found.choice.plan.peak_bytes,
        "reason": found.choice.reason,
    }


def _comparison_document(found: Comparison) -> dict[str, Any]:
    return {
        "method": found.method,
        "published_bytes": found.published_bytes,
        "recomputed_bytes": found.recomputed.peak_bytes,
        "kept_bytes": found.kept.peak_bytes,
        "why": found.why,
    }
