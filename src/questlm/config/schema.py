"""The settings of a run. Everything that decides a result is here, and a run folder keeps the resolved copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from questlm.config.messages import explain
from questlm.errors import ConfigError, quoted
from questlm.vocabulary import LARGEST_VOCABULARY

__all__ = [
    "Bits",
    "Budget",
    "DataConfig",
    "Format",
    "LayerOverride",
    "ModelConfig",
    "Plugin",
    "QuantSpec",
    "RopeScaling",
    "RunConfig",
    "TrainConfig",
]

Bits = Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, "ternary"]
"""Width of a tensor's codes: 1 to 8 bits, 'ternary' (three levels, log2(3) bits), or 16 for not quantised."""

Format = Literal["int", "ternary", "fp4", "lloydmax", "int-2:4", "bf16-2:4"]
"""Kind of grid: evenly spaced, three levels, E2M1, non-uniform Gaussian; 2:4 sparse weights of 4 bits or in bf16."""


_ShortText = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
"""A text within a dictionary of settings."""


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and explains what is wrong in one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as problem:
            raise ConfigError(explain(problem, type(self))) from None
        except TypeError:  # keywords that are not text
            raise ConfigError("unknown setting: the names of settings are text") from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the values in `update` instead of its own, validated like any new settings.

        pydantic's own `model_copy` believes `update`, so a value that the settings forbid would be found much later:
        when the run's file is read again.

        Raises:
            ConfigError: a value or combination that cannot be used, or an unknown name.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**given | dict(update))

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            truth = any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value]))
            if truth and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} = {quoted(value)} cannot be used: a number or a word is expected")
        return values

    @model_validator(mode="before")
    @classmethod
    def _only_text_that_files_can_hold(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, str) and any(each == "\0" or "\ud800" <= each <= "\udfff" for each in value):
                raise ValueError(f"{name} = {quoted(value)} cannot be used: no file can hold such a character")
        return values


class RopeScaling(Section):
    """Rotary frequencies changed for texts longer than those a model was first trained on, as in transformers.

    `linear` divides all by `factor`; `llama3` divides those of waves longer than original_max_position /
    low_freq_factor, keeps those shorter than original_max_position / high_freq_factor, and blends between the two.
    """

    kind: Literal["linear", "llama3"]
    factor: Annotated[float, Field(ge=1, le=1e6)]
    low_freq_factor: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    high_freq_factor: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    original_max_position: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> RopeScaling:
        for name in ("low_freq_factor", "high_freq_factor", "original_max_position"):
            if (getattr(self, name) is None) == (self.kind == "llama3"):
                raise ValueError(f"{name} belongs to kind 'llama3', which needs it, and to no other")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high - low < 1e-6:
            raise ValueError(f"high_freq_factor {high} is not larger than low_freq_factor {low}")
        return self


class ModelConfig(Section):
    """Shape of a Llama: RMSNorm, RoPE, SwiGLU, no biases."""

    layers: Annotated[int, Field(ge=1, le=1024)] = 4
    hidden: Annotated[int, Field(ge=16, le=65_536, description="width of the residual stream")] = 256
    heads: Annotated[int, Field(ge=1, le=1024, description="attention heads; hidden / heads is the head width")] = 2
    kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="heads of keys and values (grouped-query attention); None: as many as heads"
    )
    head_dim: Annotated[int, Field(ge=2, le=4096)] | None = Field(default=None, description="None: hidden / heads")
    mlp_hidden: Annotated[int, Field(ge=16, le=262_144)] | None = Field(
        default=None, description="width inside the SwiGLU; None: 8/3 hidden, rounded up to a multiple of 256"
    )
    vocab_size: Annotated[int, Field(ge=2, le=LARGEST_VOCABULARY)] | None = Field(
        default=None, description="None: as many as the tokenizer has"
    )
    tied_head: bool = Field(default=False, description="the output head shares the embedding's weight")
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: RopeScaling | None = None

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is not a multiple of heads {self.heads}")
        if self.head_width % 2:
            raise ValueError(f"head width {self.head_width} is odd, but rotary embeddings need pairs")
        if self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.key_value_heads}")
        return self

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        """Width inside the SwiGLU."""
        if self.mlp_hidden:
            return self.mlp_hidden
        exact = 8 * self.hidden / 3
        return 256 * -(-int(exact + 0.5) // 256)

    @property
    def block_parameters(self) -> int:
        """Parameters of all blocks and the final norm: the 'non-embedding' count N of the scaling law."""
        attention = 2 * self.hidden * self.head_width * (self.heads + self.key_value_heads)
        block = attention + 3 * self.hidden * self.mlp_width + 2 * self.hidden
        return self.layers * block + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, embedding and head included. Needs `vocab_size`."""
        if self.vocab_size is None:
            raise ConfigError("the number of parameters needs model.vocab_size, which is not set yet")
        return self.block_parameters + self.vocab_size * self.hidden * (1 if self.tied_head else 2)


def _with_bits_of_format(values: Any) -> Any:
    """Settings with the bits that follow from their format, unless bits are given."""
    form = values.get("format") if isinstance(values, dict) else None
    if form == "ternary":
        return {"weight_bits": "ternary", "act_bits": "ternary"} | values
    return {"weight_bits": 16} | values if form == "bf16-2:4" else values


class LayerOverride(Section):
    """What is otherwise about the layers that a pattern names; what is left out stays as it is elsewhere."""

    method: str | None = None
    weight_bits: Bits | None = None
    act_bits: Bits | None = None
    format: Format | None = None
    act_format: Literal["int", "fp4", "lloydmax"] | None = None
    trust: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if isinstance(values, int | str):
            return {"weight_bits": values, "act_bits": values, "format": "int", "act_format": "int"}
        return _with_bits_of_format(values)


class QuantSpec(Section):
    """What is quantised, and how. 16 bits means not quantised, so weight-only is `act_bits=16`."""

    method: str = Field(default="quest", description="name in the table of methods; see `quest methods`")
    weight_bits: Bits = 4
    act_bits: Bits = 4
    format: Format = Field(
        default="int", description="grid of the weights; all but the sparse ones are that of the activations too"
    )
    act_format: Literal["int", "fp4", "lloydmax"] | None = Field(
        default=None, description="grid of the activations; None: that of the weights, 'int' beside sparse weights"
    )
    trust: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="outer trust factor s: gradients pass where |x| <= s times the outermost level; None: the method's",
    )
    block_size: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=128,
        description="size of the Hadamard blocks, a power of two; where 128 does not divide a layer's input dimension, "
        "the largest power of two that does, at least 16, is used",
    )
    embeddings: Literal["float", "bf16", "int8"] = Field(
        default="bf16",
        description="what embedding, head and other layers left out are trained and shipped in: 'float' (as the model "
        "has them; packed as bf16), 'bf16', or 'int8' (8-bit rows)",
    )
    gradual: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="share of the training over which quantisation is faded in, layer by layer; None: the method's own",
    )
    backward: Literal["bf16", "float8"] = Field(
        default="bf16",
        description="numbers of the product that gives the gradient of a layer's input; float8 is faster on NVIDIA "
        "GPUs from Hopper on, and not the published method",
    )
    overrides: dict[str, LayerOverride] = Field(
        default={},
        description="for layers by name or pattern, such as {lm_head: 8, mlp.down: {act_bits: 8}}; the more particular "
        "pattern wins; 16 leaves a layer out, and lm_head is left out unless a pattern names it",
    )

    @model_validator(mode="before")
    @classmethod
    def _bits_of_the_format(cls, values: Any) -> Any:
        return _with_bits_of_format(values)

    @field_validator("overrides", mode="before")
    @classmethod
    def _name_the_pattern(cls, values: Any) -> Any:
        for pattern, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, dict | LayerOverride):
                continue
            if value not in get_args(Bits) or isinstance(value, bool):
                raise ValueError(
                    f"{quoted(pattern)} is given {quoted(value)}; it takes bits (1 to 8, 'ternary', 16) or settings, "
                    f"as in {{mlp.down: 8}} or {{mlp.down: {{act_bits: 8}}}}, with a space after each colon"
                )
        return values

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # overrides are a dictionary, which has no hash

    @model_validator(mode="after")
    def _fits(self) -> QuantSpec:
        if self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size {self.block_size} is not a power of two")
        return self

    @property
    def enabled(self) -> bool:
        """Whether any linear layer may be quantised."""
        return self.quantizes or any(self.overridden(override).quantizes for override in self.overrides.values())

    @property
    def quantizes(self) -> bool:
        """Whether layers without an override are quantised."""
        return self.weight_bits != 16 or self.act_bits != 16 or self.format == "bf16-2:4"

    def overridden(self, override: LayerOverride) -> QuantSpec:
        """These settings with an override laid over them."""
        given = override.model_dump(exclude_none=True)
        kept = self.model_dump(exclude={"overrides"})
        return QuantSpec(**kept | given)

    @property
    def label(self) -> str:
        """Short name for tables, such as 'quest-w4a4' or 'bf16'."""
        if not self.enabled:
            return "bf16"
        width = {"ternary": "t"}
        weight, act = (width.get(str(b), str(b)) for b in (self.weight_bits, self.act_bits))
        form = "" if self.format in ("int", "ternary") else f"-{self.format.replace(':', '')}"
        form += f"-a{self.act_format}" if self.act_format and self.act_format != self.format else ""
        return f"{self.method}{form}-w{weight}a{act}{'-mixed' if self.overrides else ''}"


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
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
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
    parallel: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="how the processes of torchrun share the model: 'ddp' (each has all of it; auto) or 'fsdp' (each "
        "has a part of every weight, gathered block by block)",
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
