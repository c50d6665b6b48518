"""SHP: a post, and two comments on it, of which readers preferred one.

Source: the dataset card of stanfordnlp/SHP.
"""

from collections.abc import Iterator
from typing import Any

from musiccli.core.records import Record
from musiccli.core.row_messages import user_message
from musiccli.sample.columns import Format
from musiccli.sample.replies import Reply, ReplyContext, make_vote, read_whole_number


def read(row: Record, source: str) -> Iterator[dict[str, Any]]:
    """Yield the comparison of the two comments. `score_ratio` in the metadata is its strength."""
    label = read_whole_number(row, "labels", 0, 1)  # 1: comment A is the better one
    id = f"{row['post_id']}/{row['c_root_id_A']}-{row['c_root_id_B']}"
    text_columns = {"history", "human_ref_A", "human_ref_B"}
    history = [user_message(row["history"])]
    context = ReplyContext(row, source, history, id=id, text_columns=text_columns)
    winner = None if label is None else "ba"[label]
    yield make_vote(context, Reply(row["human_ref_A"]), Reply(row["human_ref_B"]), winner)


FORMATS = [
    Format(
        "SHP",
        order=33,
        columns=frozenset(
            {
                "post_id",
                "history",
                "c_root_id_A",
                "c_root_id_B",
                "human_ref_A",
                "human_ref_B",
            }
        ),
        read=read,
    )
]
