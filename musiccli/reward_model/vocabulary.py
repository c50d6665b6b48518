"""Tokens that a tokenizer has and the model has no embedding of, and how the embedding grows.

A tokenizer to which somebody added a token, say [PAD], without resizing the embedding can write
ids that no row stands for. Looking these up would end a run, or read other memory on a GPU.
"""

from typing import Any

import torch

from musiccli.core.errors import InputError
from musiccli.core.quiet_libraries import quiet_libraries
from musiccli.reward_model.chat_template import ChatTemplate


def embedding_rows(core: Any) -> int:
    """How many tokens a model has an embedding of."""
    rows: int = core.get_input_embeddings().weight.shape[0]
    return rows


def has_embedding(tokenizer: Any, token: str, core: Any) -> bool:
    """Whether a model has an embedding of a token."""
    return bool(tokenizer.convert_tokens_to_ids(token) < embedding_rows(core))


def forget_padding_outside(config: Any) -> None:
    """Remove a padding id that the embedding has no row for: no model could be made with it."""
    for part in (config, config.get_text_config()):
        padding, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if padding is not None and rows is not None and padding >= rows:
            part.pad_token_id = None


def resize_embedding(core: Any, rows: int) -> None:
    """Give the embedding this many rows. New ones are the mean of the others."""
    before = embedding_rows(core)
    with quiet_libraries():
        core.resize_token_embeddings(rows, mean_resizing=False)
    weight = core.get_input_embeddings().weight
    if rows > before:
        with torch.no_grad():
            weight[before:] = weight[:before].float().mean(dim=0).to(weight)


def embed_template(name: str, template: ChatTemplate, core: Any, *, resize: bool) -> str | None:
    """Give each token that the chat template writes an embedding.

    Args:
        name: the model's, for errors.
        template: its chat template, which learns how many rows there are.
        core: the sequence-classification model.
        resize: whether the embedding may be resized; otherwise such a token is an error.

    Returns:
        What was done in one sentence, or None where nothing was.

    Raises:
        InputError: a token has no embedding, and the embedding may not be resized.
    """
    highest = template.highest_token()
    if highest < embedding_rows(core):
        return None
    token = template.tokenizer.convert_ids_to_tokens(highest)
    if not resize:
        raise InputError(
            f"{name}: the chat template writes {token}, a token that the model has no embedding "
            "of; was the embedding resized in training, and not saved?"
        )
    resize_embedding(core, highest + 1)
    template.vocabulary = embedding_rows(core)
    return (
        f"the chat template writes {token}, a token that {name} has no embedding of; it gets one, "
        "the mean of the others"
    )
