"""The choice of a padding token that cannot be mistaken for the end of a conversation."""

from typing import Any

from musiccli.core.errors import InputError

PREFERRED = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<|endoftext|>",
    "<|finetune_right_pad_id|>",
    "<unk>",
)


def choose_padding_token(tokenizer: Any, model: Any, last: int, rows: int) -> str | None:
    """Set the padding token in the tokenizer and in the model's config.

    transformers reads the reward at the last token that is not padding. So padding must be no
    token that ends or begins a conversation, and one that the model has an embedding of.

    Args:
        tokenizer: keeps its padding token where that is safe.
        model: the sequence-classification model.
        last: the token id that the chat template writes last.
        rows: how many tokens the model has an embedding of.

    Returns:
        The padding token that had to be replaced, or None.

    Raises:
        InputError: the tokenizer has no other special token to use.
    """
    before = tokenizer.pad_token
    unsafe = {last, tokenizer.eos_token_id, tokenizer.bos_token_id, None}
    if tokenizer.pad_token_id in unsafe or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = _safe_special_token(tokenizer, unsafe, rows)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return before if before != tokenizer.pad_token else None


def _safe_special_token(tokenizer: Any, unsafe: set[int | None], rows: int) -> str:
    special = {
        token.content: id
        for id, token in tokenizer.added_tokens_decoder.items()
        if token.special and id < rows
    }
    candidates = [name for name in PREFERRED if name in special] + list(special)
    safe = [name for name in candidates if special[name] not in unsafe]
    if not safe:
        raise InputError(
            f"{tokenizer.name_or_path}: its padding token also ends conversations, or has no "
            "embedding, and there is no other special token to use; add one to its tokenizer as "
            "pad_token"
        )
    return safe[0]
