"""`distrl rlhf sft` and `distrl rlhf reward`: a trainer on a data set, kept as a run. An iteration is a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distrl.errors import BadInput, RunFailed, cause, translated
from distrl.learner import digest
from distrl.machine import resolve_device
from distrl.policies.protocol import parameters_and_buffers
from distrl.rlhf import data
from distrl.rlhf.devices import make_repeatable
from distrl.rlhf.models import (
    ModelParts,
    merged,
    new_causal,
    read_causal,
    read_config,
    router_note,
    save,
    save_adapter,
    tried,
)
from distrl.rlhf.options import TrainOptions
from distrl.rlhf.reward_model import new_reward_model, reference_samples, reward_trainer, score_scale
from distrl.rlhf.rewards import ScoreScale, save_reward, write_scale
from distrl.rlhf.sft import sft_trainer
from distrl.rlhf.stored_dtype import stored_note
from distrl.rlhf.tokenizers import (
    check_rows,
    check_vocabulary,
    end_tokens,
    padding_note,
    read_tokenizer,
    usable_ids,
)
from distrl.rlhf.training import Trainer
from distrl.stages.context import longest, require_fit
from distrl.stages.materials import (
    ADAPTER,
    Problems,
    file_sha256,
    reading,
    text_sha256,
    trained_parts,
)
from distrl.stages.report import REWARD_LOOK, SFT_LOOK
from distrl.stages.run import StageRun
from distrl.stages.supervised_config import REWARD, SFT, RewardConfig, SFTConfig, SupervisedConfig
from distrl.telemetry.look import Look, Picture
from distrl.telemetry.spans import span


class SupervisedStage:
    """A `Stage`, but for what is trained and how it is saved."""

    schema: Any
    headline = ("loss", "loss")
    max_restarts = 0
    look: Look
    record_events = False
    picture: Picture | None = None
    read: Any  # of `distrl.rlhf.data`

    def __init__(self, config: Any) -> None:
        self.config = config
        self.sources: dict[str, str] = {}  # no code of a user's
        self.paths: dict[str, str] = {}
        self.device = resolve_device(config.device)
        self.devices = {self.device}
        make_repeatable(self.devices)
        torch.set_num_threads(config.threads)
        self.tokenizer = read_tokenizer(config.folder)
        self.rows, self.held_out = self._read_rows(config)
        self.base = self._model(config)
        check_vocabulary(self.tokenizer, self.base.config, config.folder)
        texts = [
            [ids for row in some.rows for ids in self._texts(row)]
            for some in (self.rows, self.held_out)
            if some is not None
        ]
        for some in texts:
            check_rows(self.tokenizer, self.base.config, some)
        self._require_context(config)
        self.parts = self._start_from(config)
        self.options: TrainOptions = replace(config.recipe, seed=config.seed)
        self.total = self._trainer().num_steps
        notes = [
            self.rows.note(),
            self.held_out and self.held_out.note(),
            padding_note(self.tokenizer),
            stored_note(self.base.stored),
        ]
        notes.append(router_note(self.base, used=isinstance(self, SFTStage)))
        self.notes = [*(note for note in notes if note), *self.base.notes]
        self.facts = {"model": digest(self.base.arrays), "data": file_sha256(config.data)}
        self.facts["tokens of the data"] = text_sha256(texts)
        if config.held_out:
            self.facts["held out"] = file_sha256(config.held_out)
        self.before: dict[str, float] = {}

    def _read_rows(self, config: SupervisedConfig) -> tuple[data.DataSet[Any], data.DataSet[Any] | None]:
        problems, how = Problems(), reading(config, self.tokenizer, config.max_tokens)

        def of(flag: str, path: str) -> data.DataSet[Any] | None:
            found: data.DataSet[Any] | None = problems.of(flag, type(self).read, path, self.tokenizer, **how)
            return found

        rows = of("--data", str(config.data))
        held_out = of("--held-out", config.held_out) if config.held_out else None
        problems.stop()
        assert rows is not None
        return rows.split(config.held_out_share, config.seed) if config.held_out_share else (rows, held_out)

    def _require_context(self, config: Any) -> None:
        """BadInput where a text does not fit the model."""
        require_fit({"--model": self.base}, longest((self.rows, self.held_out), self._length), "--max-tokens")

    def _model(self, config: Any) -> ModelParts:
        return read_causal(config.folder)

    def _start_from(self, config: Any) -> ModelParts:
        raise NotImplementedError

    def _trainer(self) -> Trainer:
        raise NotImplementedError

    def _texts(self, row: Any) -> tuple[tuple[int, ...], ...]:
        raise NotImplementedError

    def _length(self, row: Any) -> int:
        return max(map(len, self._texts(row)))

    # a stage

    def first_trees(self) -> dict[str, Any]:
        return {"trainer": self._trainer().state()}

    def start(self, run: StageRun, trees: dict[str, Any]) -> None:
        self.run = run
        self.trainer = self._trainer()
        self.trainer.load_state(trees["trainer"])

    def train(self) -> None:
        if not self.trainer.taken:
            with span("evaluate"):
                self.before = {f"before/{name}": value for name, value in self.trainer.evaluate().items()}
        while self.run.progress < 1.0:
            with self.run.uninterrupted():
                with span("learn: update"):
                    metrics = self.before | self.trainer.step()
                self.before = {}
                self.run.keep(metrics, int(metrics["count"]), {})

    def trees(self) -> dict[str, Any]:
        return {"trainer": self.trainer.state()}

    def finish(self, folder: Path | None) -> dict[str, Any]:
        parts = self.parts.with_arrays(parameters_and_buffers(self.trainer.model))
        told: dict[str, Any] = {"parameters_sha256": digest(parts.arrays)}
        if folder is not None:
            self._save(parts, folder)
            if self.config.save_adapter:
                save_adapter(parts, folder.with_name(ADAPTER), self.config.folder)
        return told

    def _save(self, parts: ModelParts, folder: Path) -> None:
        raise NotImplementedError

    def complete(self, folder: Path) -> dict[str, Any]:
        if self.trainer.unevaluated is not None:
            raise RunFailed(f"the held-out rows could not be evaluated: {cause(self.trainer.unevaluated)}")
        return {}

    def close(self) -> None:
        """Nothing outlives the process."""


class SFTStage(SupervisedStage):
    """A causal LM on demonstrations."""

    schema = SFT
    look = SFT_LOOK
    read = staticmethod(data.read_demonstrations)
    config: SFTConfig

    def _model(self, config: SFTConfig) -> ModelParts:
        if config.fresh is None:
            return read_causal(config.folder)
        return tried(new_causal(read_config(config.fresh, self.tokenizer), config.seed), config.fresh)

    def _start_from(self, config: SFTConfig) -> ModelParts:
        return trained_parts(config, self.base)

    def _texts(self, row: data.Demonstration) -> tuple[tuple[int, ...], ...]:
        return (row.tokens,)

    def _trainer(self) -> Trainer:
        held_out = self.held_out.rows if self.held_out else ()
        vocabulary = usable_ids(self.tokenizer, self.base.config)  # as generation and PPO have it
        return sft_trainer(self.parts, self.rows.rows, held_out, self.options, self.device, vocabulary)

    def _save(self, parts: ModelParts, folder: Path) -> None:
        save(parts, folder, self.tokenizer)


class RewardStage(SupervisedStage):
    """A reward model on preferences; at the end its scores are normalised on responses of the model it starts from."""

    schema = REWARD
    look = REWARD_LOOK
    read = staticmethod(data.read_preferences)
    config: RewardConfig

    def _model(self, config: RewardConfig) -> ModelParts:
        return read_causal(config.folder, writes=config.normalize)

    def _start_from(self, config: RewardConfig) -> ModelParts:
        return trained_parts(config, new_reward_model(self.base, config.seed))

    def _texts(self, row: data.Preference) -> tuple[tuple[int, ...], ...]:
        return row.chosen, row.rejected

    def _trainer(self) -> Trainer:
        held_out = self.held_out.rows if self.held_out else ()
        return reward_trainer(self.parts, self.rows.rows, held_out, self.options, self.device)

    def _require_context(self, config: RewardConfig) -> None:
        super()._require_context(config)
        if config.normalize:
            text = longest((self.rows,), lambda row: row.num_prompt)
            try:
                require_fit({"--max-response": self.base}, text, "--max-tokens", config.max_response)
            except BadInput as error:
                raise BadInput(
                    *(f"{problem}, or --no-normalize: scores are normalized to mean 0 and deviation 1 on such responses"
                      for problem in error.problems)
                ) from error  # fmt: skip

    def _save(self, parts: ModelParts, folder: Path) -> None:
        save_reward(merged(parts), ScoreScale(), folder, self.tokenizer)

    def complete(self, folder: Path) -> dict[str, Any]:
        """The scale of the scores, beside the model that is there already."""
        parts = self.parts.with_arrays(parameters_and_buffers(self.trainer.model))
        scale = ScoreScale()
        if self.config.normalize:
            advice = (
                f"the model in {folder} is complete, with unnormalized scores; --no-normalize skips this step"
            )
            with translated("the scores could not be normalized", advice, RunFailed):
                scale = self._scale(merged(parts))
            write_scale(scale, folder)
        return {**super().complete(folder), "score_scale": vars(scale)}

    def _scale(self, parts: ModelParts) -> ScoreScale:
        config = self.config
        every = [row.chosen[: row.num_prompt] for row in self.rows.rows]
        prompts = [every[n % len(every)] for n in range(min(config.normalize_responses, max(len(every), 64)))]
        samples = reference_samples(
            self.base,
            prompts,
            end_tokens(self.tokenizer, self.base.generation),
            config.max_response,
            config.seed,
            config.temperature,
            device=self.device,
            vocabulary=usable_ids(self.tokenizer, self.base.config),
        )
        return score_scale(parts, samples, device=self.device)
