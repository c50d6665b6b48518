"""The reward as a function of tokens: a backbone, a linear head, and where in the row it is read."""

from collections.abc import Sequence

import torch
from torch import nn

from musiccli.reward_model.attention import NAME
from musiccli.reward_model.chat_template import EncodedConversation
from musiccli.reward_model.packing import pack, packed_length


class RewardNetwork(nn.Module):
    """An `AutoModelForSequenceClassification` with one label, plain or with LoRA, called on packed or padded tokens."""

    def __init__(self, model, *, packed: bool = True):
        super().__init__()
        self.model, self.packed = model, packed
        if packed:
            self.core.config._attn_implementation = NAME
            self.backbone.config._attn_implementation = NAME

    @property
    def core(self):
        """The sequence-classification model itself, without LoRA's wrapping."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def backbone(self):
        return getattr(self.core, self.core.base_model_prefix)

    @property
    def unused_modules(self) -> list[str]:
        """Names of the core's parts that no text passes through: a vision tower and its projector."""
        text = self.backbone.get_decoder()
        parts = [] if text is self.backbone else self.backbone.named_children()
        return [
            f"{self.core.base_model_prefix}.{name}"
            for name, part in parts
            if part not in (text, self.backbone.get_input_embeddings())
        ]

    @property
    def _no_split_modules(self) -> list[str]:
        """The classes of the backbone's layers, by which FSDP shards it layer by layer."""
        there = {type(module).__name__ for module in self.modules()}
        return sorted(there & set(self.core._no_split_modules or []))

    def token_count(self, group: Sequence[EncodedConversation]) -> int:
        """Tokens that a group takes by itself in a forward pass."""
        return (
            packed_length(group) if self.packed else len(group) * max(len(one.ids) for one in group)
        )

    def forward(self, groups: Sequence[Sequence[EncodedConversation]]) -> list[torch.Tensor]:
        """Rewards of each sequence of each group, in order: per sequence a tensor (turns,), one value per read."""
        hidden, reward_positions = self._packed(groups) if self.packed else self._padded(groups)
        rewards = self._read(hidden).split([len(read) for read in reward_positions])
        return [
            one.clone() for one in rewards
        ]  # FSDP hangs hooks on what is returned; on views they may be lost

    def _read(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head's rewards in fp32 also where the rest is bf16, of which 10.81 and 10.85 would be the same number."""
        head = self.core.score
        if not isinstance(getattr(head, "weight", None), torch.Tensor):
            return head(hidden)[:, 0].float()
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(
                hidden.float(),
                head.weight.float(),
                None if head.bias is None else head.bias.float(),
            )[:, 0]

    def _packed(self, groups):
        row = pack(groups)
        device = self.backbone.device
        ids = torch.tensor([row.ids], device=device)
        positions = torch.tensor([row.positions], device=device)
        hidden = self.backbone(
            input_ids=ids, position_ids=positions, use_cache=False, segments=row.segments
        ).last_hidden_state
        places = [place for read in row.reward_positions for place in read]
        return hidden[0, torch.tensor(places, device=device)], row.reward_positions

    def _padded(self, groups):
        sequences = [one for group in groups for one in group]
        device, longest = self.backbone.device, max(len(one.ids) for one in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, one in enumerate(sequences):
            ids[index, : len(one.ids)], mask[index, : len(one.ids)] = torch.tensor(one.ids), 1
        ids, mask = ids.to(device), mask.to(device)
        hidden = self.backbone(
            input_ids=ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        rows = torch.tensor(
            [index for index, one in enumerate(sequences) for _ in one.reward_positions],
            device=device,
        )
        ends = torch.tensor(
            [end for one in sequences for end in one.reward_positions], device=device
        )
        return hidden[rows, ends], [one.reward_positions for one in sequences]


def last_rewards(rewards: Sequence[torch.Tensor]) -> torch.Tensor:
    """The reward of each whole sequence, (sequences,), of those at all its reads."""
    return torch.stack([one[-1] for one in rewards])
