"""What each token of a packed row attends to, as PyTorch's flex attention takes it.

A token sees two ranges of the row: its own segment up to itself, and the prefix of the segment.
The mask is computed from these ranges where they lie, without a row x row matrix, and nothing
waits for the device.
"""

import math
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens; rows are padded to multiples of it: other lengths can give NaN gradients
# Kinds of layers by transformers' names, and whether their attention has a sliding window.
HAS_WINDOW = {"full_attention": False, "sliding_attention": True}


def row_length(tokens: int, budget: int) -> int:
    """To what length a row is padded for compiled layers, which are compiled for each length.

    Args:
        tokens: of the row.
        budget: tokens of a full row. Lengths are its quarters. A conversation that is longer has a
            row of its own, padded to a quarter of the power of two times the budget below it.

    Returns:
        A multiple of BLOCK.
    """
    doublings = max(0, ((tokens - 1) // budget).bit_length() - 1)
    step = (budget << doublings) / 4
    return BLOCK * math.ceil(math.ceil(tokens / step) * step / BLOCK)


def row_masks(config: Any, ranges: torch.Tensor) -> BlockMask | dict[str, BlockMask]:
    """What a backbone takes as `attention_mask`: a mask, or one for each kind of layer.

    Args:
        config: of the backbone; gives the kinds of its layers and the sliding window.
        ranges: as in `block_mask`.
    """
    window = getattr(config, "sliding_window", None)
    if kinds := set(getattr(config, "layer_types", None) or ()):
        return {
            kind: block_mask(ranges, window if HAS_WINDOW[kind] else None) for kind in sorted(kinds)
        }
    return block_mask(ranges, window)


def block_mask(ranges: torch.Tensor, window: int | None = None) -> BlockMask:
    """The mask of one packed row.

    Args:
        ranges: (4, row) int32. For each token its position in its conversation, where its segment
            starts, and where the prefix of the segment starts and stops.
        window: how many positions a token sees, its own included; None for all.
    """
    position, segment_start, prefix_start, prefix_stop = ranges
    row = ranges.shape[1]
    query = torch.arange(row, device=ranges.device, dtype=ranges.dtype)
    # Positions are contiguous within a segment, and within its prefix.
    own_start = segment_start
    low = prefix_start
    if window:
        own_start = torch.maximum(segment_start, query - window + 1)
        low = torch.maximum(prefix_start, prefix_start + position - window + 1)
        low = torch.minimum(low, prefix_stop)
    edges = torch.arange(0, row, BLOCK, device=ranges.device, dtype=ranges.dtype)
    # (row, blocks): how many keys of each block a token sees
    seen = _overlap(own_start, query + 1, edges) + _overlap(low, prefix_stop, edges)
    seen = seen.view(-1, BLOCK, len(edges))
    whole = (seen == BLOCK).all(dim=1)  # (blocks, blocks)
    partial = (seen > 0).any(dim=1) & ~whole

    def sees(batch: Any, head: Any, q: Any, kv: Any) -> Any:
        in_segment = (kv <= q) & (kv >= own_start[q])
        return in_segment | ((kv >= low[q]) & (kv < prefix_stop[q]))

    return BlockMask.from_kv_blocks(
        *_ordered(partial),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(row, row),
    )


def _overlap(start: torch.Tensor, stop: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """How many positions of [start, stop) lie in each block, (row, blocks)."""
    upper = torch.minimum(stop[:, None], edges + BLOCK)
    return (upper - torch.maximum(start[:, None], edges)).clamp(min=0)


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of blocks how many are set, and the columns with these first; as flex wants."""
    counts = blocks.sum(dim=1, dtype=torch.int32)
    columns = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return counts[None, None], columns[None, None]
