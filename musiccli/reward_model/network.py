"""The reward as a function of tokens: a backbone, and a linear head on its last hidden states."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from musiccli.gpu.block_mask import row_length, row_masks
from musiccli.gpu.transfer import copy_to_device
from musiccli.reward_model import DEFAULT_BUDGET
from musiccli.reward_model.attention import NAME
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.histories import HistoryCache
from musiccli.reward_model.packing import PackedRow, count_tokens, pack, row_table
from musiccli.reward_model.router_loss import router_loss

# Kinds of rotary embeddings that depend on the longest conversation of a row.
CHANGING_ROTATIONS = ("dynamic", "longrope")


class RewardNetwork(nn.Module):
    """An `AutoModelForSequenceClassification` with one label, plain or with LoRA.

    Attributes:
        model: the model, within peft's wrapping where it has LoRA.
        packed: whether conversations are laid out in one row; otherwise they are padded.
        flex: whether a row is attended to by flex attention. Its layers must be compiled.
        balances_experts: whether a mixture of experts computes its load-balancing loss in training.
        histories: conversations that were computed before; None computes everything anew.
    """

    def __init__(self, model: Any, *, packed: bool = True, flex: bool = False):
        super().__init__()
        self.model, self.packed, self.flex = model, packed, flex
        self.balances_experts = False
        self.histories: HistoryCache | None = None
        if flex:
            self.core.set_attn_implementation("flex_attention")
        elif packed:
            self.core.config._attn_implementation = NAME
            self.backbone.config._attn_implementation = NAME

    @property
    def core(self) -> Any:
        """The sequence-classification model, without peft's wrapping."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def backbone(self) -> Any:
        """The model below the head."""
        return getattr(self.core, self.core.base_model_prefix)

    @property
    def layout(self) -> str:
        """How conversations are laid out and attended to, as the notes of a checkpoint name it."""
        if self.flex:
            return "packed, compiled flex attention"
        return "packed, segment by segment" if self.packed else "padded"

    @property
    def layers(self) -> Any:
        """The layers of the decoder, in order."""
        children = self.backbone.get_decoder().children()
        lists = (child for child in children if isinstance(child, nn.ModuleList))
        return max(lists, key=len, default=[])  # "layers" of most, "h" of GPT-2

    @property
    def unused_modules(self) -> list[str]:
        """Names of the core's modules that no text passes through, such as a vision tower."""
        decoder = self.backbone.get_decoder()
        modules = [] if decoder is self.backbone else self.backbone.named_children()
        used = (decoder, self.backbone.get_input_embeddings())
        return [
            f"{self.core.base_model_prefix}.{name}"
            for name, module in modules
            if module not in used
        ]

    def keep_histories(self, max_bytes: int) -> None:
        """Keep the conversations that are computed last, where the layout allows it.

        One thread alone may then use this network, in evaluation mode.

        Args:
            max_bytes: the most that their keys and values may take.
        """
        rotations = [str(getattr(module, "rope_type", "")) for module in self.backbone.modules()]
        is_changing = any(name in text for name in CHANGING_ROTATIONS for text in rotations)
        if not self.packed or self.flex or is_changing:
            return
        config = self.backbone.config.get_text_config()
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        token_size = 2 * config.num_hidden_layers * key_heads * size * self.core.dtype.itemsize
        self.histories = HistoryCache(max_bytes // token_size)

    def token_count(self, group: Sequence[EncodedConversation]) -> int:
        """Tokens that a group takes in a forward pass by itself."""
        return count_tokens(group, packed=self.packed)

    def forward(
        self,
        groups: Sequence[Sequence[EncodedConversation]],
        *,
        budget: int = DEFAULT_BUDGET,
        states: bool = False,
    ) -> list[torch.Tensor]:
        """For each conversation of each group, in order: (turns,) rewards at its positions.

        Rows for flex attention are padded to few lengths by `budget`, the tokens of a full row.
        With `states` the hidden states that they are read from stand behind them, for each
        conversation (turns, size) in fp32. In training with `balances_experts` the load-balancing
        loss, a scalar, is the last.
        """
        hidden, counts, router_losses = (
            self._packed(groups, budget) if self.packed else self._padded(groups)
        )
        # FSDP puts hooks on what is returned; on views they may be lost.
        outputs = [rewards.clone() for rewards in self._head(hidden).split(counts)]
        if states:
            outputs += [hidden.clone() for hidden in hidden.float().split(counts)]
        return outputs + router_losses

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (positions, size) -> rewards (positions,) in fp32.

        The head computes in fp32 even where the rest is bf16, in which 10.81 and 10.85 are equal.
        """
        head = self.core.score
        if not isinstance(getattr(head, "weight", None), torch.Tensor):
            return head(hidden)[:, 0].float()
        bias = None if head.bias is None else head.bias.float()
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), head.weight.float(), bias)[:, 0]

    def _run_backbone(
        self, inputs: dict[str, Any], mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states (rows, tokens, size); and, where it is computed, the router loss.

        Args:
            inputs: of the backbone.
            mask: 1 for a token and 0 for padding (rows, tokens); None where there is no padding.
        """
        if not (self.balances_experts and self.training):
            return self.backbone(**inputs, use_cache=False).last_hidden_state, []
        output = self.backbone(**inputs, use_cache=False, output_router_logits=True)
        return output.last_hidden_state, [router_loss(self.backbone, output, mask)]

    def _packed(self, groups, budget: int) -> tuple[torch.Tensor, list[int], list[torch.Tensor]]:
        """Of all conversations in one row: hidden states and more.

        Returns:
            Hidden states (positions, size) at reward positions; how many positions a conversation
            has; and, where it is computed, the router loss.
        """
        mask = None
        histories = self.histories
        beginnings = [histories.beginning(group) for group in groups] if histories else []
        row = pack(groups, beginnings)
        device = self.backbone.device
        if self.flex:
            inputs = self._flex_inputs(row, budget)
            mask = torch.zeros_like(inputs["input_ids"])
            mask[:, : len(row)] = 1
        else:
            inputs = {
                "input_ids": torch.tensor([row.ids], device=device),
                "position_ids": torch.tensor([row.positions], device=device),
                "segments": row.segments,
            }
        hidden, router_losses = self._run_backbone(inputs, mask)  # (1, row, size)
        for beginning in beginnings:
            if histories and beginning.recorded:
                histories.add(beginning.recorded)
        positions = [position for positions in row.reward_positions for position in positions]
        counts = [len(positions) for positions in row.reward_positions]
        return hidden[0, copy_to_device(torch.tensor(positions), device)], counts, router_losses

    def _flex_inputs(self, row: PackedRow, budget: int) -> dict[str, Any]:
        """What the backbone takes under flex attention, of a row padded to one of few lengths."""
        table = row_table(row, row_length(len(row), budget))
        table = copy_to_device(torch.from_numpy(table), self.backbone.device)
        return {
            "input_ids": table[:1],
            "position_ids": table[1:2],
            "attention_mask": row_masks(self.backbone.config.get_text_config(), table[1:]),
        }

    def _padded(self, groups) -> tuple[torch.Tensor, list[int], list[torch.Tensor]]:
        """The same of padded conversations."""
        conversations = [conversation for group in groups for conversation in group]
        device = self.backbone.device
        longest = max(len(conversation.ids) for conversation in conversations)
        ids = torch.zeros(len(conversations), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, conversation in enumerate(conversations):
            ids[index, : len(conversation.ids)] = torch.tensor(conversation.ids)
            mask[index, : len(conversation.ids)] = 1
        mask = mask.to(device)
        inputs = {"input_ids": ids.to(device), "attention_mask": mask}
        hidden, router_losses = self._run_backbone(inputs, mask)  # (conversations, longest, size)
        counts = [len(conversation.reward_positions) for conversation in conversations]
        rows = [index for index, count in enumerate(counts) for _ in range(count)]
        columns = [
            position for conversation in conversations for position in conversation.reward_positions
        ]
        positions = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
        return hidden[positions], counts, router_losses


def last_rewards(rewards: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each conversation's rewards (turns,) the last, which is the whole conversation's.

    Returns:
        (conversations,).
    """
    return torch.stack([turn_rewards[-1] for turn_rewards in rewards])
