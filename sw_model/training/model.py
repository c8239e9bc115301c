"""The reference model as a torch module: a byte-level decoder of the qwen2_moe family.

Every layer is RMSNorm, rotary attention with q/k/v biases, RMSNorm, and an MoE block

    y = sum over the top-k experts e of w_e * E_e(x)  +  sigmoid(g . x) * Shared(x),
    E(x) = down(silu(gate x) * up x),    w = softmax(router x), top-k, divided by their sum.

The module keeps the experts of a layer stacked (one matrix product for all of them); `state_to_checkpoint`
splits them into the tensor names of the family.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sw_model.training.precision import fake_act8

__all__ = ["BOS", "Model", "ModelConfig", "load_checkpoint", "save_checkpoint"]

BOS = 0
"""Beginning of text, and the border between documents: the one byte that no cleaned text holds."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the model. Widths that the accelerator multiplies must be multiples of its block of 32."""

    layers: int
    hidden: int
    heads: int
    experts: int
    top_k: int
    intermediate: int
    shared_intermediate: int
    context: int
    rope_theta: float = 10_000.0
    eps: float = 1e-6
    vocabulary: int = 256

    def __post_init__(self) -> None:
        for field in ("hidden", "intermediate", "shared_intermediate"):
            if getattr(self, field) % 32:
                raise ValueError(f"{field} must be a multiple of 32, not {getattr(self, field)}")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of twice heads ({self.heads})")

    def as_huggingface(self) -> dict:
        """The `config.json` of a qwen2_moe checkpoint."""
        return {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "head_dim": self.hidden // self.heads,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "qkv_bias": True,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "norm_topk_prob": True,
            "moe_intermediate_size": self.intermediate,
            "shared_expert_intermediate_size": self.shared_intermediate,
            "intermediate_size": self.shared_intermediate,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "hidden_act": "silu",
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.context,
            "use_sliding_window": False,
            "attention_dropout": 0.0,
            "router_aux_loss_coef": 0.01,
            "output_router_logits": False,
            "tie_word_embeddings": False,
            "bos_token_id": BOS,
            "eos_token_id": BOS,
            "torch_dtype": "bfloat16",
            "dtype": "bfloat16",
        }

    @classmethod
    def from_huggingface(cls, config: dict) -> "ModelConfig":
        """The shape that a `config.json` written by `as_huggingface` describes."""
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            experts=config["num_experts"],
            top_k=config["num_experts_per_tok"],
            intermediate=config["moe_intermediate_size"],
            shared_intermediate=config["shared_expert_intermediate_size"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            eps=config["rms_norm_eps"],
            vocabulary=config["vocab_size"],
        )


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions (halves of a head rotate against each other)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.k_proj = nn.Linear(config.hidden, config.hidden)
        self.v_proj = nn.Linear(config.hidden, config.hidden)
        self.o_proj = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: "Past | None" = None) -> Tensor:
        """x [B, T, H]; cos and sin [T, head]. With `past`, T is 1 unless `past` is empty."""
        batch, length, hidden = x.shape

        def split(z: Tensor) -> Tensor:
            return z.view(batch, length, self.heads, -1).transpose(1, 2)

        def rotate(z: Tensor) -> Tensor:
            low, high = z.chunk(2, dim=-1)
            return (z * cos + torch.cat((-high, low), dim=-1) * sin).to(z.dtype)

        q, k, v = rotate(split(self.q_proj(x))), rotate(split(self.k_proj(x))), split(self.v_proj(x))
        if past is not None:
            k, v = past.append(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, hidden))


class Past:
    """Keys and values of the tokens so far, of one layer; room for `length` of them."""

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self.keys = self.values = torch.empty(0)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k and v [B, heads, T, head]; all that is kept."""
        if not self.used:
            self.keys = k.new_empty(*k.shape[:2], self.length, k.shape[-1])
            self.values = torch.empty_like(self.keys)
        now = slice(self.used, self.used + k.shape[2])
        self.keys[:, :, now], self.values[:, :, now] = k, v
        self.used = now.stop
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]


class MoE(nn.Module):
    """The MoE block, computed for all experts at once and masked.

    At these widths eight small experts are one ordinary matrix product, faster than gathering tokens.

    With `act8` the experts' inputs and inner vectors are rounded as the array takes them.
    Forward: x [N, H] to (y [N, H], balance): `balance` is the load-balancing loss E * sum f_e p_e, with f_e
    the share of choices and p_e the mean router probability of expert e; it is 1 at perfect balance.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.act8 = config.top_k, False
        experts, inner, hidden = config.experts, config.intermediate, config.hidden
        self.router = nn.Linear(hidden, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, inner, hidden))
        self.up = nn.Parameter(torch.empty(experts, inner, hidden))
        self.down = nn.Parameter(torch.empty(experts, inner, hidden))  # transposed: [E, I, H]
        self.shared_gate = nn.Linear(hidden, config.shared_intermediate, bias=False)
        self.shared_up = nn.Linear(hidden, config.shared_intermediate, bias=False)
        self.shared_down = nn.Linear(config.shared_intermediate, hidden, bias=False)
        self.shared_weight = nn.Linear(hidden, 1, bias=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x [N, H]: probabilities [N, E], which experts are chosen (0 or 1) [N, E], and weights [N, E]."""
        with torch.autocast(x.device.type, enabled=False):  # the choice of experts deserves full precision
            probability = F.softmax(self.router(x.float()), dim=-1)
        top, chosen = probability.topk(self.top_k, dim=-1)
        mask = torch.zeros_like(probability).scatter(-1, chosen, 1.0)
        return probability, mask, probability * mask / top.sum(dim=-1, keepdim=True)

    def combine(self, x: Tensor, weight: Tensor) -> Tensor:
        """The block's output [N, H] with these weights [N, E] of the routed experts."""
        experts, inner, hidden = self.gate.shape
        share = torch.sigmoid(self.shared_weight(x))
        act = fake_act8 if self.act8 else lambda z: z
        x = act(x)
        inside = F.silu(x @ self.gate.view(-1, hidden).T) * (x @ self.up.view(-1, hidden).T)
        inside = act(inside.view(-1, experts, inner)) * weight.to(inside.dtype)[:, :, None]
        y = inside.view(-1, experts * inner) @ self.down.view(-1, hidden)
        return y + share * self.shared_down(act(F.silu(self.shared_gate(x)) * self.shared_up(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probability, mask, weight = self.route(x)
        share = mask.mean(dim=0) / self.top_k
        return self.combine(x, weight), len(self.gate) * (share * probability.mean(dim=0)).sum()


class Layer(nn.Module):
    """One decoder layer; `dropout` acts on what each branch adds to the residual stream."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=config.eps)
        self.attention = Attention(config)
        self.moe_norm = nn.RMSNorm(config.hidden, eps=config.eps)
        self.moe = MoE(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor]:
        x = x + self.dropout(self.attention(self.attention_norm(x), cos, sin, past))
        y, balance = self.moe(self.moe_norm(x).flatten(0, 1))
        return x + self.dropout(y.view_as(x)), balance


class Model(nn.Module):
    """Byte-level language model.

    Forward: tokens int64 [B, T] to (logits [B, T, vocabulary], mean load-balancing loss over the layers).
    """

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.eps)
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.dropout = nn.Dropout(dropout)
        half = config.hidden // config.heads // 2
        frequency = config.rope_theta ** (-torch.arange(half) / half)
        angle = torch.arange(config.context)[:, None] * frequency.repeat(2)[None, :]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal 0.02; what writes into the residual stream smaller, so that depth does not add up."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_stream = name.endswith(("o_proj.weight", "down", "shared_down.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / (2 * self.config.layers) ** 0.5 if into_stream else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dropout(self.embedding(tokens))
        length = tokens.shape[1]
        balances = []
        for layer in self.layers:
            x, balance = layer(x, self.cos[:length], self.sin[:length])
            balances.append(balance)
        return self.head(self.norm(x)), torch.stack(balances).mean()


_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "moe_norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.gate.weight",
    "moe.shared_gate.weight": "mlp.shared_expert.gate_proj.weight",
    "moe.shared_up.weight": "mlp.shared_expert.up_proj.weight",
    "moe.shared_down.weight": "mlp.shared_expert.down_proj.weight",
    "moe.shared_weight.weight": "mlp.shared_expert_gate.weight",
    **{f"attention.{p}_proj.weight": f"self_attn.{p}_proj.weight" for p in "qkvo"},
    **{f"attention.{p}_proj.bias": f"self_attn.{p}_proj.bias" for p in "qkv"},
}
_OUTER = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def state_to_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The module's state under the tensor names and shapes of qwen2_moe (linear weights [out, in])."""
    tensors = {}
    for name, value in state.items():
        if name in _OUTER:
            tensors[_OUTER[name]] = value
            continue
        _, layer, rest = name.split(".", 2)
        prefix = f"model.layers.{layer}."
        if rest in _NAMES:
            tensors[prefix + _NAMES[rest]] = value
            continue
        kind = rest.removeprefix("moe.")
        for expert, matrix in enumerate(value):
            weight = matrix.T if kind == "down" else matrix
            tensors[f"{prefix}mlp.experts.{expert}.{kind}_proj.weight"] = weight
    return tensors


def checkpoint_to_state(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The inverse of `state_to_checkpoint`."""
    state = {ours: tensors[theirs] for ours, theirs in _OUTER.items()}
    for layer in range(config.layers):
        prefix, ours = f"model.layers.{layer}.", f"layers.{layer}."
        state |= {ours + name: tensors[prefix + theirs] for name, theirs in _NAMES.items()}
        for kind in ("gate", "up", "down"):
            each = [tensors[f"{prefix}mlp.experts.{e}.{kind}_proj.weight"] for e in range(config.experts)]
            state[f"{ours}moe.{kind}"] = torch.stack([w.T if kind == "down" else w for w in each])
    return state


def save_checkpoint(state: dict[str, Tensor], config: ModelConfig, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` (BF16) under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in state_to_checkpoint(state).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.as_huggingface(), indent=2) + "\n")


def load_checkpoint(folder: Path) -> Model:
    """The float32 model of a folder that `save_checkpoint` wrote."""
    config = ModelConfig.from_huggingface(json.loads((folder / "config.json").read_text()))
    model = Model(config)
    tensors = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(checkpoint_to_state(tensors, config))
    return model


def shape(config: ModelConfig) -> dict[str, int]:
    """Numbers for the model card: parameters in all, active for a token, and MoE weights of one layer."""
    expert = 3 * config.hidden * config.intermediate
    shared = 3 * config.hidden * config.shared_intermediate
    total = sum(p.numel() for p in Model(config).parameters())
    idle = config.layers * (config.experts - config.top_k) * expert
    return {
        "parameters": total,
        "active": total - idle,
        "moe_layer": config.experts * expert + shared,
        **{k: v for k, v in asdict(config).items() if isinstance(v, int)},
    }
