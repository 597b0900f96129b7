"""TRL's SFTTrainer with the loss computed where there are labels, and a validation that cannot end the run.

Imported only where a model is trained: it loads torch, transformers and TRL.
"""

from __future__ import annotations

import inspect
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from safetensors import SafetensorError
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from tunegate.contracts.errors import RunError
from tunegate.contracts.files import read_json_object
from tunegate.contracts.progress import say
from tunegate.models.memory import out_of_memory
from tunegate.preflight.logits import AT_ONCE_BYTES
from tunegate.train.adalora import orthogonality
from tunegate.train.callbacks import Clock
from tunegate.train.checkpoint_files import STATE, read_trainable, write_trainable
from tunegate.train.interruption import ValidationStopped
from tunegate.train.settings import IGNORED


@dataclass
class _Sum:
    """A loss summed over tokens."""

    loss: float = 0.0
    tokens: int = 0


class TuneTrainer(SFTTrainer):  # type: ignore[misc]
    """What TRL does not do by itself.

    - Logits exist at positions with a label alone, and entropies, which nothing reads, are not computed.
    - The orthogonality penalty of AdaLoRA is in the loss.
    - A checkpoint holds what is trained bit for bit, pruned ranks included, and whether a validation was due.
    - Validation weighs tokens, not batches, so that it does not depend on how rows are batched; it halves its batch
      when memory runs out, and says so.

    Args:
        clock: measures the time spent in training steps.
        orth_reg_weight: the weight of AdaLoRA's penalty; 0 for other methods.
    """

    control: Any  # the trainer's own

    def __init__(self, *args: Any, clock: Clock, orth_reg_weight: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clock, self.orth_reg_weight = clock, orth_reg_weight
        self._validation, self._cut_short = _Sum(), False
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._causal_lm().forward).parameters

    def _causal_lm(self) -> Any:
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The cross-entropy of the labelled tokens, summed and divided by ``num_items_in_batch``, with the penalty."""
        labelled = (inputs["labels"][:, 1:] != IGNORED).sum()
        if return_outputs or not self._fits(int(labelled), inputs):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if return_outputs:
                return loss
        else:
            loss = self._labelled_loss(model, inputs, labelled if num_items_in_batch is None else num_items_in_batch)
        if not self.model.training:
            self._validation.loss += float(loss) * int(labelled)
            self._validation.tokens += int(labelled)
        elif self.orth_reg_weight:
            penalty = orthogonality(self.model)
            self._metrics["train"]["orthogonality"].append(float(penalty.detach()))
            # With num_items_in_batch the Trainer leaves the division by the accumulation steps to the loss.
            steps = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.orth_reg_weight * penalty / steps
        return loss

    def _fits(self, labelled: int, inputs: dict[str, Any]) -> bool:
        """Whether all logits that are needed may be made at once."""
        one_row = inputs["labels"].shape[0] == 1  # rows without padding lie one behind the other
        size = labelled * self._causal_lm().get_output_embeddings().weight.shape[0] * 4
        return one_row and self._keeps_logits and not self.aux_loss_enabled and size <= AT_ONCE_BYTES

    def _labelled_loss(self, model: Any, inputs: dict[str, Any], divisor: Any) -> Any:
        labels = inputs["labels"][0, 1:]
        at = (labels != IGNORED).nonzero().flatten()
        if self.model.training:
            self._total_train_tokens += self._tokens_everywhere(inputs)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        given = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**given, use_cache=False, logits_to_keep=at).logits[0]
        loss = cross_entropy(logits.float(), labels[at], reduction="sum")
        loss = loss / torch.as_tensor(divisor, device=loss.device).clamp(min=1)
        if self.model.training and self.args.average_tokens_across_devices:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # as TRL does; DDP takes the mean
        return loss

    def _tokens_everywhere(self, inputs: dict[str, Any]) -> int:
        """Tokens of this batch, on every device."""
        here = torch.tensor(inputs["input_ids"].numel(), device=inputs["input_ids"].device)
        everywhere: int = self.accelerator.gather_for_metrics(here).sum().item() // self._tp_size
        return everywhere

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Validates; when memory runs out, with half as many rows at once.

        Raises:
            RunError: when a single row does not fit.
        """
        while True:
            self._validation = _Sum()
            try:
                return super().evaluate(*args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                rows = self.args.per_device_eval_batch_size
                if rows == 1:
                    raise RunError(
                        "Validation runs out of memory.",
                        seen="a single row does not fit beside the model and the optimizer",
                        expected="room for one row",
                        remedy="lower max_length, or train on a device with more memory",
                    ) from error
            # Outside of the except block: the exception holds the frames, and with them the tensors.
            self.args.per_device_eval_batch_size = rows // 2
            clear_device_cache(garbage_collection=True)
            say("train", f"validation ran out of memory with {rows} rows at once: going on with {rows // 2}")

    def resume(self, folder: str) -> Any:
        """Trains on from a checkpoint, after the validation that a stop had cut short; that of the base is done."""
        control = read_json_object(Path(folder) / "trainer_state.json")["stateful_callbacks"]["TrainerControl"]
        self.args.eval_on_start = bool(control["args"]["should_evaluate"])
        # Another machine's memory plan may have chosen another optimizer, whose state would not fit.
        self.args.optim = type(self.args.optim)(read_json_object(Path(folder) / STATE)["optim"])
        return self.train(resume_from_checkpoint=folder)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._cut_short:  # the trainer asks again at what it takes for the end of the epoch
            return
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except ValidationStopped:
            self._cut_short = True
            if self.control.should_save:
                self._save_checkpoint(self.model, None)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:  # a checkpoint of the last step has no epoch left
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Writes a checkpoint; one that cannot be written is said and left out: the run goes on, as it can."""
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # torch and safetensors have their own for a full disk
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            seen = next(iter(str(error).splitlines()), "")
            say("train", f"the checkpoint of step {self.state.global_step} could not be written: {seen}")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Writes what is trained into a checkpoint; the trainer adds optimizer, schedule and random states."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        optim = str(getattr(self.args.optim, "value", self.args.optim))
        write_trainable(self.model, folder, tokens=self._total_train_tokens, optim=optim)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._total_train_tokens = read_trainable(self.model, Path(resume_from_checkpoint))
        self.clock.resume(self._total_train_tokens)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None is written: a checkpoint is no model, and the card names paths of this machine."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the throughput of the steps since the last time, and the validation loss per token."""
        if "eval_loss" in logs and self._validation.tokens:
            logs["eval_loss"] = self._validation.loss / self._validation.tokens
        if "loss" in logs:
            logs["tokens_per_second"] = self.clock.rate(self._total_train_tokens)
            penalties = self._metrics["train"].get("orthogonality")
            if penalties:  # what is logged stays comparable with the validation loss, which has no penalty
                logs["loss"] -= self.orth_reg_weight * sum(penalties) / len(penalties)
        super().log(logs, start_time)
