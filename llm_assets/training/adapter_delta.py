"""What an adapter does to the rows of one weight, in float32 and in the order of operations peft uses.

A weight is merged a block of rows at a time, so that neither the weight nor its change is ever whole in memory. Blocks
hold a multiple of 64 rows: their products then have the bits of the whole product, which the tests compare with peft.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llm_assets.training.block_memory import BlockMemory

if TYPE_CHECKING:
    import torch

BLOCK_VALUES = 1 << 19  # 2 MiB of float32: a block stays in the core's cache through every step
BLOCK_ROWS = 64


class Delta(Protocol):
    """A change with its tensors in memory."""

    def apply(self, rows: "torch.Tensor", first: int, memory: BlockMemory) -> "torch.Tensor":
        """Change a block of a weight.

        Args:
            rows: float32, shape `(rows, ...)`; may be overwritten.
            first: Which row of the weight the block begins at.
            memory: For temporary tensors.

        Returns:
            The changed rows, float32.
        """
        ...


@dataclass(frozen=True)
class LowRank:
    """`weight + scale * b @ a`; with DoRA, each row then scaled to a learned length.

    Attributes:
        a: float32, shape `(rank, inputs)`.
        b: float32, shape `(outputs, rank)`.
        scale: Factor on `b @ a`.
        magnitude: float32, shape `(outputs,)`, for DoRA.
        transposed: The weight is stored `(inputs, outputs)`, as embeddings and Conv1D layers are.
    """

    a: "torch.Tensor"
    b: "torch.Tensor"
    scale: float
    magnitude: "torch.Tensor | None" = None
    transposed: bool = False

    def apply(self, rows: "torch.Tensor", first: int, memory: BlockMemory) -> "torch.Tensor":
        """Add the block's product; DoRA norms are over the changed row, as in training."""
        import torch

        last = first + len(rows)
        b, a = (self.b, self.a[:, first:last]) if self.transposed else (self.b[first:last], self.a)
        product = torch.mm(b, a, out=memory.take("product", (len(b), a.shape[1]), "float32"))
        merged = rows.add_((product.T if self.transposed else product).mul_(self.scale))
        if self.magnitude is None:
            return merged
        return merged.mul_((self.magnitude[first:last] / torch.linalg.norm(merged, dim=1)).unsqueeze(1))


@dataclass(frozen=True)
class Replaced:
    """A weight that was trained whole (modules_to_save)."""

    values: "torch.Tensor"

    def apply(self, rows: "torch.Tensor", first: int, memory: BlockMemory) -> "torch.Tensor":
        """The trained rows."""
        return self.values[first : first + len(rows)].float()


@dataclass(frozen=True)
class TokenRows:
    """Rows of single tokens that were trained (trainable_token_indices); the other rows stay.

    Attributes:
        tokens: int64, shape `(tokens,)`.
        values: float32, shape `(tokens, width)`.
    """

    tokens: "torch.Tensor"
    values: "torch.Tensor"

    def apply(self, rows: "torch.Tensor", first: int, memory: BlockMemory) -> "torch.Tensor":
        """Put the trained rows that lie in the block in their places."""
        here = (self.tokens >= first) & (self.tokens < first + len(rows))
        rows[self.tokens[here] - first] = self.values[here]
        return rows


@dataclass(frozen=True)
class BiasShift:
    """`bias + scale * shift`, for an adapter whose own B has a bias (lora_bias)."""

    shift: "torch.Tensor"
    scale: float

    def apply(self, rows: "torch.Tensor", first: int, memory: BlockMemory) -> "torch.Tensor":
        """Add the block's shift."""
        return rows.add_(self.shift[first : first + len(rows)] * self.scale)


def row_blocks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last row of each block of a tensor, in order; the last one takes in a remainder.

    shape (1000, 2048)  ->  [(0, 256), (256, 512), (512, 1000)]
    """
    rows = shape[0] if shape else 1
    width = 1
    for size in shape[1:]:
        width *= size
    step = max(BLOCK_ROWS, BLOCK_VALUES // max(1, width) // BLOCK_ROWS * BLOCK_ROWS)
    starts = [step * number for number in range(max(1, rows // step))]
    return list(zip(starts, [*starts[1:], rows], strict=True))
