"""What lets a drafter read its target: states of the target made one, and joined to the embedding of the next token.

EAGLE (Li et al., ICML 2024, 2401.15077); states of several layers: EAGLE-3 (Li et al., 2503.01840).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynatree.errors import UserError, readable
from dynatree.files import FUSION, replacing


class Fusion(nn.Module):
    """Rows for a drafter of `width` from tokens' embeddings and from `reads` states of the target at the token before.

    At the start, which no seed decides, the last state goes through unchanged but for its norm, and the token does not
    count.
    """

    def __init__(self, reads: int, width: int, eps: float):
        super().__init__()
        self.reads, self.width, self.eps = reads, width, eps
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps) for _ in range(reads))
        self.fuse = nn.Linear(reads * width, width, bias=False)
        self.embedding_norm, self.state_norm = nn.RMSNorm(width, eps), nn.RMSNorm(width, eps)
        self.join = nn.Linear(2 * width, width, bias=False)
        with torch.no_grad():
            self.fuse.weight.zero_()[:, -width:] = torch.eye(width)
            self.join.weight.zero_()

    @torch.no_grad()
    def scale(self, states: Tensor) -> None:
        """Let the norms give each state at its usual size in `states` [n, reads * width]: so a layer expects them.

        What is joined to the last of them gets its size, too: its weights then have less far to go.
        """
        sizes = [part.square().mean(-1).sqrt().median() for part in states.float().split(self.width, dim=-1)]
        norms = [*self.norms, self.embedding_norm, self.state_norm]
        for norm, size in zip(norms, [*sizes, sizes[-1], sizes[-1]], strict=True):
            norm.weight.fill_(size)

    def fused(self, states: Tensor) -> Tensor:
        """One state [..., width] of the target's `states` [..., reads * width]."""
        parts = states.split(self.width, dim=-1)
        normed: list[Tensor] = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        fused: Tensor = self.fuse(torch.cat(normed, dim=-1))
        return fused

    def joined(self, embedded: Tensor, state: Tensor) -> Tensor:
        """The drafter's input [..., width]: a token's embedding and the state of the position before it."""
        both = torch.cat([self.embedding_norm(embedded), self.state_norm(state)], dim=-1)
        joined: Tensor = state + self.join(both)
        return joined


def save(fusion: Fusion, folder: Path) -> None:
    """Write the weights beside a drafter's, as contiguous float tensors."""
    with replacing(folder / FUSION) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in fusion.state_dict().items()}, temporary)
        temporary.chmod(0o644)


def load(folder: Path, reads: int, width: int, eps: float) -> Fusion:
    """The fusion in `folder`, in the dtype that it was written in. Raises UserError if it is none of these sizes."""
    path = folder / FUSION
    if not path.is_file():
        raise UserError(f"{folder}: no {FUSION}, which a drafter with draft_reads in its config has")
    with readable(str(path)):
        values = load_file(path)
    fusion = Fusion(reads, width, eps)
    shapes = {name: tuple(value.shape) for name, value in fusion.state_dict().items()}
    if {name: tuple(value.shape) for name, value in values.items()} != shapes:
        raise UserError(f"{path}: not the weights that fuse {reads} states of width {width}")
    fusion.to(next(iter(values.values())).dtype).load_state_dict(values)
    return fusion.eval().requires_grad_(False)
