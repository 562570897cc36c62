"""Three ways to choose 4-bit codes: round to nearest, GPTQ and AWQ.

Notebook 03.5 derives them; these give the same codes, for storage in `Int4Linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from projects.llama3_qlora.model import Llama
from utils.runtime import Problem

GROUP = 64  # weights of a row that share a scale and a zero
HIGHEST = 15  # codes go from 0 to this
ALPHAS = torch.linspace(0, 1, 11)  # the exponents that AWQ tries
# whose weights AWQ divides, and whose it multiplies: norm or matrix, and its readers
AWQ_PLACES = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


@dataclass(frozen=True)
class Coded:
    """Codes uint8 (outputs, inputs), 0 to 15; the scale of each group and the code that
    stands for zero, float32 (outputs, groups)."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def decoded(self) -> Tensor:
        """The weights that the codes stand for, float32 (outputs, inputs)."""
        groups = self.codes.unflatten(1, (self.scale.shape[1], -1))
        return ((groups - self.zero[..., None]) * self.scale[..., None]).flatten(1)


def grid(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero (...) of sixteen marks that span weights (..., group) and 0."""
    low = weights.amin(-1).clamp(max=0)
    high = weights.amax(-1).clamp(min=0)
    scale = ((high - low) / HIGHEST).clamp(min=1e-12)
    return scale, -(low / scale).round()


def snap(weights: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The codes of the nearest marks."""
    return ((weights * (1 / scale)).round() + zero).clamp(0, HIGHEST)


def nearest(weight: Tensor, group: int = GROUP) -> Coded:
    """Codes of weights (outputs, inputs), each by itself."""
    groups = in_groups(weight, group)
    scale, zero = grid(groups)
    codes = snap(groups, scale[..., None], zero[..., None])
    return Coded(codes.flatten(1).byte(), scale, zero)


def in_groups(weight: Tensor, group: int) -> Tensor:
    """Weights (outputs, inputs) as float32 (outputs, groups, group). Raises `Problem`
    when groups of this size do not fit rows of `inputs`."""
    inputs = weight.shape[1]
    if group < 1 or inputs % group:
        raise Problem(f"Groups of {group} do not divide rows of {inputs} weights.")
    return weight.detach().float().unflatten(1, (-1, group))


def gptq(
    weight: Tensor,
    hessian: Tensor,
    group: int = GROUP,
    damping: float = 0.01,
    ordered: bool = False,
) -> Coded:
    """Codes of weights (outputs, inputs), column by column: what one is rounded off by,
    the later ones make up for (Frantar et al. 2022, arXiv 2210.17323).

    `hessian` (inputs, inputs) is the sum of x x' over calibration inputs x; `damping`,
    as a share of its mean diagonal, is added there, so that it can be inverted. With
    `ordered` the columns with the largest inputs come first; the grids are then those
    of the weights as they were, for a group's columns have different turns.
    """
    scale, zero = grid(in_groups(weight, group))  # (outputs, groups)
    inputs, order = weight.shape[1], list(range(weight.shape[1]))
    if ordered:
        order = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    rest, codes = weight.detach().float()[:, order], torch.empty_like(weight)
    factor = inverse_factor(hessian[order][:, order], damping)
    for start in range(0, inputs, group):
        stop = start + group
        if not ordered:
            place = start // group
            scale[:, place], zero[:, place] = grid(rest[:, start:stop])
        errors = torch.empty(len(weight), group)
        for i in range(start, stop):
            place = order[i] // group
            s, z = scale[:, place], zero[:, place]
            codes[:, order[i]] = code = snap(rest[:, i], s, z)
            error = (rest[:, i] - (code - z) * s) / factor[i, i]
            rest[:, i:stop] -= error[:, None] * factor[i, i:stop]
            errors[:, i - start] = error
        # the columns of later groups move once a group: the same sum, and faster
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return Coded(codes.byte(), scale, zero)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular factor of the damped inverse: (inputs, inputs).

    Raises `Problem` when it does not exist.
    """
    added = damping * hessian.diagonal().mean()
    damped = hessian + added * torch.eye(len(hessian))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError:
        raise Problem(
            f"GPTQ cannot invert this Hessian with damping {damping}: give it more "
            "calibration text or more damping."
        ) from None


@torch.no_grad()
def hessians(model: Llama, rows: Tensor) -> dict[str, Tensor]:
    """The sum of x x' (inputs, inputs) over the inputs of each linear layer of the
    blocks, by name, when the model reads rows of ids (count, time) one by one."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in block_linears(model).items():

        def see(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            x = inputs[0].flatten(0, -2).float()
            found[name] = found.get(name, 0) + x.T @ x

        hooks.append(layer.register_forward_pre_hook(see))
    try:
        for row in rows:
            model.model(row[None])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def block_linears(model: Llama) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, by their names in the model."""
    found = model.model.layers.named_modules(prefix="model.layers")
    return {name: layer for name, layer in found if isinstance(layer, nn.Linear)}


def awq_factors(
    weights: Sequence[Tensor], hessian: Tensor, group: int = GROUP
) -> Tensor:
    """What to multiply the columns of matrices by that read the same input, before
    they are rounded to nearest: (inputs,).

    The factors are the input's size to a power from 0 (nothing changes) to 1: that
    with the smallest error of all outputs together (Lin et al. 2023, arXiv 2306.00978,
    section 3.2).
    """
    size = hessian.diagonal().clamp(min=1e-12).sqrt()
    tried = []
    for alpha in ALPHAS.tolist():
        factors = size**alpha
        factors = factors / (factors.max() * factors.min()).sqrt()
        error = 0.0
        for weight in weights:
            change = nearest(weight * factors, group).decoded() / factors - weight
            error += float(((change @ hessian) * change).sum())
        tried.append((error, factors))
    return min(tried, key=lambda one: one[0])[1]


@torch.no_grad()
def fold_awq(model: Llama, found: dict[str, Tensor], group: int = GROUP) -> Llama:
    """Scale the columns of the blocks' matrices for rounding, and divide what they read
    by the same factors where it is made, in place: the model computes what it did.

    `o_proj` stays, as in the authors' code: where queries share values, no matrix
    before it has an output for each of its inputs. `found` is from `hessians`.
    """
    for index in range(model.config.n_layers):
        block = f"model.layers.{index}"
        for maker, readers in AWQ_PLACES:
            names = [f"{block}.{reader}" for reader in readers]
            weights = [
                model.get_submodule(name).get_parameter("weight") for name in names
            ]
            factors = awq_factors(weights, found[names[0]], group)
            for weight in weights:
                weight.mul_(factors)
            made = model.get_submodule(f"{block}.{maker}").get_parameter("weight")
            made.div_(factors if made.dim() == 1 else factors[:, None])
    return model
