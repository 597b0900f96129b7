"""The run form: what a person changes from run to run, and which step's setting each parameter is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tunegate.approve.settings import ApproveSettings
from tunegate.deploy.settings import ClusterSettings
from tunegate.evaluate.settings import EvaluateSettings
from tunegate.gate.settings import GateSettings
from tunegate.merge.settings import MergeSettings
from tunegate.parity.settings import ParitySettings
from tunegate.prepare.settings import PrepareSettings
from tunegate.promote.settings import PromoteSettings
from tunegate.quantize.settings import QuantizeSettings
from tunegate.registry.settings import SigningSettings
from tunegate.serve_check.settings import ServeCheckSettings
from tunegate.serving.flags import ServingFlags
from tunegate.train.settings import TrainSettings

#: Step → the dataclass its section of the recipe is parsed with.
SECTIONS: Mapping[str, type] = {
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "merge": MergeSettings,
    "quantize": QuantizeSettings,
    "parity": ParitySettings,
    "evaluate": EvaluateSettings,
    "serve_check": ServeCheckSettings,
    "gate": GateSettings,
    "approve": ApproveSettings,
    "promote": PromoteSettings,
    "signing": SigningSettings,
    "serving": ServingFlags,
}

#: The same of what comes after a run: the pipeline `finetune` checks it, and does not do it.
AFTER: Mapping[str, type] = {"deploy": ClusterSettings}

#: Run-form parameter → the (step, setting) places it fills.
FORM: Mapping[str, tuple[tuple[str, str], ...]] = {
    "alias": (("promote", "alias"),),
    "method": (("train", "method"),),
    "r": (("train", "r"),),
    "lora_alpha": (("train", "lora_alpha"),),
    "learning_rate": (("train", "learning_rate"),),
    "num_train_epochs": (("train", "num_train_epochs"),),
    "max_length": (("prepare", "max_length"), ("train", "max_length")),
    "merge_base": (("merge", "merge_base"),),
    "scheme": (("quantize", "scheme"),),
    "evaluation_rows": (("evaluate", "limit"),),
    "seed": (("train", "seed"),),
}

#: Run-form parameters that say where things lie, and belong to no step's settings.
ADDRESSES = ("base_model", "dataset", "registry", "reuse_evaluations", "checkpoint_uri")


def default(parameter: str) -> Any:
    """The default of a run-form parameter: that of the setting it fills.

    Raises:
        ValueError: when the settings it fills disagree, or have no default: a mistake of ours, found at import.
    """
    found = {_default_of(SECTIONS[step], setting) for step, setting in FORM[parameter]}
    if len(found) != 1:
        raise ValueError(f"the settings that {parameter!r} fills have different defaults: {found}")
    return found.pop()


def _default_of(settings: type, name: str) -> Any:
    for field in dataclasses.fields(settings):
        if field.name == name and field.default is not dataclasses.MISSING:
            return field.default
    raise ValueError(f"{settings.__name__}.{name} has no default")
