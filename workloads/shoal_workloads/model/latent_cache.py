"""What MLA keeps of past tokens when generating: the key-value latent and the shared rotated key, not keys and values.

Shapes: B sequences, S tokens so far, n new ones, C rank of the latent, R width of the RoPE part.
"""

from __future__ import annotations

import torch

__all__ = ["LatentCache"]


class LatentCache:
    """The past of one attention layer: C + R numbers a token (report, section 2.1.1)."""

    def __init__(self) -> None:
        self._latent: torch.Tensor | None = None
        self._rotated: torch.Tensor | None = None

    def __len__(self) -> int:
        """Tokens held: the position of the next one."""
        return 0 if self._latent is None else self._latent.shape[1]

    def extend(self, latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new tokens, latent (B, n, C) and rotated key (B, n, R); returns all: (B, S+n, C) and (B, S+n, R)."""
        if self._latent is not None and self._rotated is not None:
            latent = torch.cat([self._latent, latent], dim=1)
            rotated = torch.cat([self._rotated, rotated], dim=1)
        self._latent, self._rotated = latent, rotated
        return latent, rotated

    def cut(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        if self._latent is not None and self._rotated is not None:
            self._latent, self._rotated = self._latent[:, :length], self._rotated[:, :length]
