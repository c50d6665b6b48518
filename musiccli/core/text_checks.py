"""Recognize by pattern what a text says: a refusal, a leaked instruction, the same as another text.

The patterns are English; `is_english` tells whether they mean anything for a text. What compares
two texts reads any language.
"""

import re
from collections import Counter
from difflib import SequenceMatcher
from functools import lru_cache

_CANNOT = (
    r"i ?(can't|cannot|can not|am not able to|'m not able to|am unable to|'m unable to|"
    r"won't|will not|must decline to|have to decline|"
    r"(don't|do not) have the (ability|capability|capacity) to)"
)
_HELP = (
    r"(\w+ly |be able to )?(help|assist|fulfil+|comply|provide|do (that|this)|continue|create|"
    r"write|generate|engage|participate|answer|discuss|rewrite|respond|support|offer|give you|"
    r"tell you)"
)
_REFUSAL = re.compile(
    r"(((i'm|i am) (really |very |so |truly )?sorry|sorry|i apologi[sz]e|unfortunately)"
    r"( (for|about) [^,.;!?]{1,60})?[,.;!]* (but )?)?"
    rf"({_CANNOT} {_HELP}|as an? ([\w-]+ ){{0,2}}(ai|chatbot|language model)\b|"
    r"(i'm|i am) (just |only )?(an ai|a language model)\b|"
    r"i must (respectfully )?(decline|refuse)|"
    r"(i don't feel|i'm not|i am not) comfortable (\w+ing|with (this|that))\b)",
    re.IGNORECASE,
)

_TASK = r"(instruction|request|prompt|question|query|message)s?"
LEAK = re.compile(
    rf"\b(rewritten|modified|altered|contrastive|reworded|rephrased) (\w+ )?{_TASK}\b|"
    r"\b(different|original|changed|new) (user )?(instruction|request|prompt)s?\b|"
    r"\banswer\w* (to )?(a|the|your) (different|original|other) question|"
    r"<(instruction|reply)>|"
    r"instead of (what you asked|your (question|request)|the original)",
    re.IGNORECASE,
)  # words about an instruction that is not the user's

# Characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana and Han.
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)
# Frequent words of English, and of Latin-script languages: German, French, Spanish, Portuguese,
# Italian, Dutch, Swedish, Danish, Norwegian, Polish, Czech, Turkish, Indonesian, Vietnamese,
# Romanian, Finnish and Hungarian. No word is in both.
_ENGLISH = """
the and of to is are was be have has it its this that these you your i my we they he she what how
why which who when where can could would should do does did not for with from on at by as or if but
about there please more some in a an
"""
_FOREIGN = """
der das und ist nicht ich ein eine mit auf für von zu sich wie wenn aber sind dem
le la les une est et pour dans que qui vous je pas avec sur du au ce
el los las por para con es en del una como mi su está muy
uma não você com os em da dos mais são isso um
il che di per non sono gli della è un più anche
het een van niet dat zijn voor met ik wat maar
och att det som är jag inte för og ikke jeg til hvad
nie się jest że na czy jak je jsem není
bir ve için bu değil yang dan untuk dengan tidak ini adalah
và của là không một cho được și este nu să ja ei että ovat mutta és nem hogy az egy
"""
_ENGLISH_WORDS, _FOREIGN_WORDS = frozenset(_ENGLISH.split()), frozenset(_FOREIGN.split())

MIN_QUOTED_WORDS = 4  # fewer words in a row may occur in any text by chance
MAX_REPEATED_SHARE = 2 / 3  # of a message's words; two like questions in a row have less
CHARACTERS_PER_WORD = 2  # in scripts without spaces
SHORT_TEXT = 100  # characters; in a shorter text one changed word may change the meaning
MAX_COMPARED_WORDS = 400  # of a long text: the time grows with the square of the length


def refuses(text: str) -> bool:
    """Whether a message opens with a refusal, or with the statement that it comes from an AI."""
    return bool(_REFUSAL.match(straight_quotes(text).strip().lstrip("\"'*")))


def leaks(text: str, instruction: str) -> bool:
    """Whether a contrasted reply shows that it answers another instruction."""
    return names_an_instruction(text) or quotes(text, instruction)


def names_an_instruction(text: str) -> bool:
    """Whether a reply speaks of an altered or another instruction."""
    return bool(LEAK.search(straight_quotes(text)))


def is_english(text: str) -> bool:
    """Whether a text may be English: its script is, and no other language's words prevail.

    Of a text of a few words it cannot be told, and they pass.
    """
    letters = [character for character in text if character.isalpha()]
    if sum(character < "\u0250" for character in letters) * 2 < len(letters):  # Latin letters
        return False
    words = plain_words(text).split()
    foreign = sum(word in _FOREIGN_WORDS for word in words)
    return foreign < 2 or foreign <= sum(word in _ENGLISH_WORDS for word in words)


def quotes(text: str, instruction: str) -> bool:
    """Whether a reply holds all words of an instruction in a row. Short ones never count."""
    words = _split_words(instruction)
    unspaced = sum(bool(_UNSPACED.match(word)) for word in words)
    if len(words) - unspaced + unspaced / CHARACTERS_PER_WORD < MIN_QUOTED_WORDS:
        return False
    return f" {' '.join(words)} " in f" {' '.join(_split_words(text))} "


def is_altered(instruction: str, original: str) -> bool:
    """Whether a rewritten instruction asks for something else than the original.

    An instruction that is a part of the original does not: its answer may be an answer to both.
    """
    return not (alike(instruction, original) or quotes(original, instruction))


def repeats_itself(text: str) -> bool:
    """Whether most of a message's words stand in runs of words that occur in it more than once."""
    words = _split_words(text)
    runs = list(zip(*(words[first:] for first in range(MIN_QUOTED_WORDS)), strict=False))
    counts = Counter(runs)
    repeated = {
        place
        for start, run in enumerate(runs)
        if counts[run] > 1
        for place in range(start, start + MIN_QUOTED_WORDS)
    }
    return len(repeated) > MAX_REPEATED_SHARE * len(words)


def alike(first: str, second: str) -> bool:
    """Whether two messages say the same in nearly the same words.

    Messages with different numbers are not alike; nor are short messages with a different word.
    """
    # Every reply is compared with every earlier message, so the fastest checks come first:
    # lengths, numbers, common words (an upper bound of the ratio), and the ratio itself.
    longest = max(len(first), len(second))
    if min(len(first), len(second)) < 0.8 * longest - 20:  # 20 characters of punctuation
        return False
    first, second = plain_words(first), plain_words(second)
    if first == second:
        return True
    if re.findall(r"\d+", first) != re.findall(r"\d+", second):
        return False
    if min(len(first), len(second)) < SHORT_TEXT:
        if 2 * min(len(first), len(second)) <= 0.95 * (len(first) + len(second)):
            return False  # an upper bound of the ratio
        return SequenceMatcher(None, first, second, autojunk=False).ratio() > 0.95
    first_words = _split_words(first)[:MAX_COMPARED_WORDS]
    second_words = _split_words(second)[:MAX_COMPARED_WORDS]
    least = 0.9 * (len(first_words) + len(second_words)) / 2
    if (Counter(first_words) & Counter(second_words)).total() <= least:
        return False
    return _common_words(first_words, second_words, least) > least


def _common_words(first: list[str], second: list[str], least: float) -> int:
    """How many words the matching blocks of two texts hold; 0 as soon as that is at most `least`.

    The blocks are those of difflib: the longest, then the longest on each side of it, and so on.
    """
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    regions = [(0, len(first), 0, len(second))]
    matched, open_words = 0, min(len(first), len(second))
    while regions and matched + open_words > least:
        region = regions.pop()
        start, end, second_start, second_end = region
        open_words -= min(end - start, second_end - second_start)
        i, j, size = matcher.find_longest_match(*region)
        if size:
            matched += size
            before = (start, i, second_start, j)
            after = (i + size, end, j + size, second_end)
            regions += [before, after]
            open_words += sum(min(r[1] - r[0], r[3] - r[2]) for r in (before, after))
    return 0 if regions else matched


@lru_cache(maxsize=1024)  # a message is compared again in every later turn of its conversation
def plain_words(text: str) -> str:
    """The words of a text in lower case, with single spaces and without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _split_words(text: str) -> list[str]:
    """The words of a text as `plain_words`; of a script without spaces, the characters."""
    return _UNSPACED.sub(r" \g<0> ", plain_words(text)).split()


def straight_quotes(text: str) -> str:
    """The text with ASCII apostrophes, as the patterns have them."""
    return text.replace("’", "'")
