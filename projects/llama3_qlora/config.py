"""The sizes and constants of a Llama, and their Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.runtime import Problem


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches its rotary embedding to longer texts.

    Wavelengths shorter than `original_positions / high_freq_factor` stay, those longer
    than `original_positions / low_freq_factor` are stretched by `factor`, and those
    between are blended (Llama 3 report, section 3.4.3, and its published code).
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise Problem(
                "RopeScaling needs factor >= 1 and 0 < low_freq_factor < "
                f"high_freq_factor, not {self}."
            )


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a `Llama`. `n_kv_heads` key and value heads are shared by `n_heads`
    query heads; 0 for `n_kv_heads` or `head_dim` means the usual: as many as query
    heads, and hidden_size / n_heads.

    Raises `Problem` when the sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int = 0
    head_dim: int = 0
    max_positions: int = 2048
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # frozen: the two derived defaults are the only values set after construction
        object.__setattr__(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        object.__setattr__(
            self, "head_dim", self.head_dim or self.hidden_size // max(1, self.n_heads)
        )
        for name in SIZES:
            if getattr(self, name) < 1:
                raise Problem(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.hidden_size % self.n_heads:  # transformers asks for it too
            raise Problem(
                f"hidden_size {self.hidden_size} must be a multiple of n_heads "
                f"{self.n_heads}."
            )
        if self.n_heads % self.n_kv_heads:
            raise Problem(
                f"n_heads {self.n_heads} must be a multiple of n_kv_heads "
                f"{self.n_kv_heads}: each key and value head serves a group of queries."
            )
        if self.head_dim % 2:
            raise Problem(f"head_dim {self.head_dim} must be even: RoPE turns pairs.")

    @classmethod
    def from_hf(cls, values: dict[str, Any]) -> LlamaConfig:
        """From the contents of a `config.json`, of transformers 4 or 5; what it leaves
        out is what transformers takes it to be.

        Raises `Problem` for another architecture or a feature that Llama 3 lacks.
        """
        if values.get("model_type") != "llama":
            raise Problem(f"This is a {values.get('model_type')!r} model, not a Llama.")
        biased = [k for k in ("attention_bias", "mlp_bias") if values.get(k)]
        if biased or values.get("hidden_act", "silu") != "silu":
            raise Problem("Llama 3 has no biases and uses SiLU; this config differs.")
        if values.get("quantization_config"):
            raise Problem("This model is quantized; take the one it was made from.")
        missing = [theirs for _, theirs in HF_NAMES[:5] if theirs not in values]
        if missing:
            raise Problem(f"config.json lacks {', '.join(missing)}.")
        values = HF_DEFAULTS | values
        fields = {o: values[t] for o, t in HF_NAMES if values.get(t) is not None}
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        eos = values["eos_token_id"]
        eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
        return cls(
            **fields,
            rope_theta=float(rope.get("rope_theta", values["rope_theta"])),
            rope_scaling=_scaling_from_hf(rope),
            eos_ids=tuple(i for i in eos_ids if i is not None),
        )

    def to_hf(self) -> dict[str, Any]:
        """The contents of `config.json`, readable by transformers and LitGPT."""
        scaling: dict[str, Any] | None = None
        if self.rope_scaling:
            scaling = {t: getattr(self.rope_scaling, o) for o, t in SCALING_NAMES}
            scaling["rope_type"] = "llama3"
        rope = scaling or {"rope_type": "default"}
        eos = list(self.eos_ids)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            **{theirs: getattr(self, ours) for ours, theirs in HF_NAMES},
            "rope_parameters": rope | {"rope_theta": self.rope_theta},
            # what readers of the older format look for
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        }

    @classmethod
    def load(cls, folder: Path) -> LlamaConfig:
        """From `folder/config.json`. Raises `Problem` when it is missing or damaged."""
        path = Path(folder) / "config.json"
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise Problem(f"There is no config.json in {Path(folder).name}.") from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            values = None
        if not isinstance(values, dict):
            raise Problem(f"{path.name} in {path.parent.name} is damaged.")
        return cls.from_hf(values)

    def save(self, folder: Path) -> None:
        """Write `folder/config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "config.json.partial"
        partial.write_text(json.dumps(self.to_hf(), indent=2) + "\n", "utf-8")
        partial.replace(folder / "config.json")


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "max_positions",
]
HF_NAMES = (  # ours, Hugging Face's; without the first five there is no model
    ("vocab_size", "vocab_size"),
    ("hidden_size", "hidden_size"),
    ("intermediate_size", "intermediate_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("n_kv_heads", "num_key_value_heads"),
    ("head_dim", "head_dim"),
    ("max_positions", "max_position_embeddings"),
    ("norm_eps", "rms_norm_eps"),
    ("tie_embeddings", "tie_word_embeddings"),
    ("bos_id", "bos_token_id"),
)
# what transformers' LlamaConfig takes when config.json says nothing
HF_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALING_NAMES = (
    ("factor", "factor"),
    ("low_freq_factor", "low_freq_factor"),
    ("high_freq_factor", "high_freq_factor"),
    ("original_positions", "original_max_position_embeddings"),
)


def _scaling_from_hf(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise Problem(f"RoPE scaling {kind!r} is not Llama 3's; only 'llama3' is.")
    missing = [theirs for _, theirs in SCALING_NAMES if theirs not in rope]
    if missing:
        raise Problem(f"The RoPE scaling in config.json lacks {', '.join(missing)}.")
    return RopeScaling(**{ours: rope[theirs] for ours, theirs in SCALING_NAMES})
