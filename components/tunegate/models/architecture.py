"""What an architecture says of its weights and no file header does: which are shared, which are stored by input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunegate.contracts.errors import ModelError


@dataclass(frozen=True)
class Architecture:
    """Facts of a model's modules.

    Attributes:
        tied: tensor → the tensor whose values it shares, ``lm_head.weight`` → ``model.embed_tokens.weight``; empty
            where the configuration does not tie them.
        stored_by_input: modules of transformers' Conv1D (GPT-2), which holds its weight ``in × out``.
    """

    tied: Mapping[str, str]
    stored_by_input: frozenset[str]


def read_architecture(folder: Path) -> Architecture:
    """Builds the model that ``config.json`` describes without its weights, and asks it.

    Raises:
        ModelError: when transformers has no such causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    from tunegate.models.quiet import quiet

    try:
        with quiet("transformers"), torch.device("meta"):
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"The architecture of {folder} is not known.",
            seen=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}",
            expected="a config.json of a causal language model that transformers has",
            remedy="check config.json, or the version of transformers",
        ) from error
    conv1d = frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))
    return Architecture(dict(model.all_tied_weights_keys), conv1d)
