"""The options of `music simulate` with their defaults."""

from dataclasses import dataclass

from musiccli.core.errors import InputError


@dataclass(frozen=True)
class SimulateConfig:
    """Who plays, for how long, and what is contrasted.

    Attributes:
        assistant: the model that plays the assistant, as litellm names it or local/NAME.
        user: the model that plays the user; None for the assistant's.
        contraster: the model that writes contrasted replies; None for the assistant's.
        user_turns: "plain" for one call per user message; "review" for two, a reviewer's and a
            chairman's (ReviewInstruct, arXiv 2505.11010).
        persona: a JSONL file of personas of the user, see `personas.Personas`; None for those that
            the seeds have in `user_persona`.
        follow_ups: the shares of the user's messages that need the history, as
            "refer=0.4,change=0.3,correct=0.3"; empty for none.
        turns: assistant replies added to each seed.
        contrast: the policy that says which turns of the rejected branch are contrasted.
        samples: conversations simulated from each seed.
        contrast_calls: 1 to rewrite and answer in one call, as the paper does; 2 for two calls.
        prompts: a prompt set's name, or a folder.
        assistant_tokens: the token limit of an assistant's reply.
        user_tokens: the token limit of a user's message.
        temperature: sampling temperature of every first attempt; a retry's is higher.
        top_p: total probability of the tokens that are sampled from, in every call.
        retries: how often a message with a fault is asked for again.
        seed: everything random follows from it.

    Raises:
        InputError: `top_p` is not above 0 and at most 1. Servers refuse such a value, and without
            it they would sample from all tokens. Or `persona` or `follow_ups` stand beside
            reviewed users, whose messages follow from the review.
    """

    assistant: str = "local/smollm2"
    user: str | None = None
    contraster: str | None = None
    user_turns: str = "plain"
    persona: str | None = None
    follow_ups: str = ""
    turns: int = 5
    contrast: str = "all"
    samples: int = 1
    contrast_calls: int = 1
    prompts: str = "paper"
    assistant_tokens: int = 512
    user_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    retries: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise InputError(
                f"`top_p` {self.top_p:g}: should be above 0 and at most 1; `temperature` 0 always "
                "takes the most likely token"
            )
        if self.user_turns == "review" and (self.persona or self.follow_ups):
            raise InputError(
                f"`{'persona' if self.persona else 'follow_ups'}` is for `user_turns` plain: a "
                "reviewed user asks for what the last reply lacks"
            )

    @property
    def user_model(self) -> str:
        return self.user or self.assistant

    @property
    def contrast_model(self) -> str:
        return self.contraster or self.assistant
