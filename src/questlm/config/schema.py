"""The settings of a run: data, training, budget, and all of it together. A run folder keeps the resolved copy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from questlm.config.model import ModelConfig
from questlm.config.parallel import ParallelConfig
from questlm.config.quant import QuantSpec
from questlm.config.section import Section
from questlm.errors import ConfigError

__all__ = [
    "Budget",
    "DataConfig",
    "Plugin",
    "RunConfig",
    "TrainConfig",
]

_ShortText = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
"""A text within a dictionary of settings."""


class DataConfig(Section):
    """Where text comes from and how it becomes tokens."""

    source: str = Field(
        default="stdlib",
        description="'stdlib' (the Python standard library's sources), a file, folder or glob of "
        ".txt .md .py .jsonl .parquet (plain, .gz, .xz or .zst) or of .bin token shards, "
        "or 'hf:NAME[:CONFIG]' for a Hugging Face data set",
    )
    val: str | None = Field(default=None, description="validation source, as above; None: documents held out of source")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.02, description="share of tokens held out")
    tokenizer: str = Field(default="train", description="'train', or the path of a tokenizer.json")
    end_of_text: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="the tokenizer's token that ends a document; None: <|endoftext|>, </s>, <eos> or <|end_of_text|>, "
        "else the one that config.json, generation_config.json or tokenizer_config.json beside the tokenizer names",
    )
    vocab_size: Annotated[int, Field(ge=257, le=1_048_576)] = Field(
        default=4096, description="size of a tokenizer trained here"
    )
    text_field: str = Field(default="text", description="field of .jsonl, .parquet and hf: rows that holds the text")
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="stop tokenising after this many; None: all (an hf: source: what the budget needs)"
    )
    cache_dir: str | None = Field(
        default=None, description="None: $QUESTLM_CACHE, else questlm in the user's cache folder"
    )


class TrainConfig(Section):
    """The published protocol by default: AdamW, cosine schedule, 10 % warm-up."""

    seq_len: Annotated[int, Field(ge=2, le=1_048_576)] = 512
    batch_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="sequences per optimizer step, of all processes together; None: by the model's size and the "
        "budget, when a run begins",
    )
    micro_batch_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="sequences per forward pass of a process; None: what fits its memory, when a run begins. The rest "
        "is gradient accumulation",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="'muon' moves the blocks' matrices by Muon and everything else by AdamW",
    )
    lr: Annotated[float, Field(gt=0)] = 1.2e-3
    muon_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak rate of the matrices that Muon moves; None: lr"
    )
    embedding_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak rate of the embedding; None: lr"
    )
    head_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak rate of the output head, unless it shares the embedding's weight; None: lr"
    )
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    muon_equal_rows: bool = Field(
        default=False, description="give all rows of an update of Muon one norm, where the matrix is taller than wide"
    )
    schedule: Literal["cosine", "linear"] = Field(
        default="cosine",
        description="how the learning rate falls after the warm-up: along half a cosine, or at its peak until the last "
        "`decay` share and then along a line",
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1 / 3, description="share of the budget over which the schedule 'linear' falls"
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="share of the budget spent warming up")
    warmup_start: Annotated[float, Field(gt=0, le=1)] = Field(default=0.01, description="first lr / lr")
    final_lr: Annotated[float, Field(ge=0, le=1)] = Field(default=0.1, description="last lr / lr")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.1, description="on the blocks' matrices only")
    weight_decay_until: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="share of the budget after which weights do not decay any more; 1: they always do"
    )
    quantizer_lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="peak rate of what quantisers learn (steps, clips, offsets); None: lr"
    )
    quantizer_weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="on what quantisers learn; PACT's L2 penalty on its clips"
    )
    first_bits: Literal[2, 3, 4, 5, 6, 7, 8, 16] | None = Field(
        default=None,
        description="bits that training begins with, for factors that have fewer; 16: nothing is quantised; None: own",
    )
    first_bits_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="share of the budget that is trained with first_bits"
    )
    cage: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="strength of the CAGE correction over the last fifth of the training; 10 as published"
    )
    distill: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="folder of a teacher with the same vocabulary, from whose predictions to learn beside the text: a "
        "run, a packed model, or a Llama from Hugging Face",
    )
    distill_weight: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="weight of the divergence from the teacher, added to the loss"
    )
    recipes: dict[_ShortText, dict[_ShortText, bool | int | float | _ShortText | None]] = Field(
        default={},
        description="recipes of plugins, by name, each with its own settings, such as {higher-decay: {factor: 3}}",
    )
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    device: str = Field(default="auto", description="'auto' (cuda where there is one), 'cpu', 'cuda', 'cuda:1', ...")
    compile: Literal["auto", "on", "off"] = Field(default="auto", description="torch.compile; auto: on CUDA")
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        default="auto", description="record a step once and play it back; auto: on a GPU, for models so small it waits"
    )
    parallel: Literal["auto", "ddp", "replicas", "fsdp"] = Field(
        default="auto",
        description="how the processes of torchrun share the model: each has all of it, and torch's DDP ('ddp'; auto) "
        "or an exchange in place ('replicas') sums gradients; or each has a part of every weight, gathered block by "
        "block ('fsdp')",
    )
    timeout: Annotated[float, Field(gt=0, le=1e6)] = Field(
        default=600.0, description="seconds that a process waits for the others within a step before the job ends"
    )
    recompute: Literal["none", "mlp", "block"] = Field(
        default="none",
        description="parts of each block that keep only their inputs and are computed again in the backward pass: less "
        "memory for more time, the same numbers",
    )
    log_every: Annotated[int, Field(ge=1)] = Field(default=10, description="steps between points of the loss curve")
    eval_every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="steps between validations; None: at the end only"
    )
    eval_tokens: Annotated[int, Field(ge=1)] = Field(
        default=131_072, description="validation tokens read during training; the final validation reads all"
    )
    checkpoint_every: Annotated[int, Field(ge=1)] = Field(default=200, description="steps between checkpoints")
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.micro_batch_size and (self.batch_size or 0) % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.schedule == "linear" and self.warmup + self.decay > 1 + 1e-9:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are more than the whole budget")
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from. Needs `batch_size`."""
        if self.batch_size is None:
            raise ConfigError("the number of tokens per step needs train.batch_size, which is not set yet")
        return self.batch_size * self.seq_len


class Budget(Section):
    """How long to train: exactly one of tokens, tokens per non-embedding parameter, or seconds of training."""

    tokens: Annotated[int, Field(ge=1, le=10**18)] | None = None
    tokens_per_param: Annotated[float, Field(gt=0, le=1e9)] | None = None
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Budget:
        given = [name for name in ("tokens", "tokens_per_param", "seconds") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of tokens, tokens_per_param and seconds ({named} given)")
        return self


class Plugin(Section):
    """Code outside questlm that a run was trained with. It is written down here, and never loaded because of it.

    Attributes:
        name: of the file without its folder, of the module, or of the installed package.
        sha256: of the file; None for a module or package.
    """

    name: Annotated[str, Field(max_length=200, pattern=r"^[^/\\\x00-\x1f\x7f]+$")]
    kind: Literal["file", "module", "package"]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


class RunConfig(Section):
    """All settings of one training run."""

    model: ModelConfig = ModelConfig()
    quant: QuantSpec = QuantSpec()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    budget: Budget = Budget(tokens_per_param=100)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init_from: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="folder of a Llama to begin from, of Hugging Face or a run of ours; the model's shape is then its "
        "own. None: weights drawn from the seed",
    )
    plugins: tuple[Plugin, ...] = Field(
        default=(),
        description="where methods and recipes come from that questlm does not have; written when a run begins, and "
        "never loaded because of it",
    )

    def token_budget(self) -> int | None:
        """Tokens to train on, or None for a budget in seconds."""
        if self.budget.tokens is not None:
            return self.budget.tokens
        if self.budget.tokens_per_param is not None:
            return round(self.budget.tokens_per_param * self.model.block_parameters)
        return None

    def total_steps(self) -> int | None:
        """Optimizer steps that the token budget pays for (at least one), or None for a budget in seconds."""
        tokens = self.token_budget()
        return None if tokens is None else max(1, tokens // self.train.tokens_per_step)
