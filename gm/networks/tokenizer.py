"""CLIP's tokens: byte pairs of the lower-cased text (Radford et al. 2021), as OpenCLIP cleans and splits it."""

import gzip
import html
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Tuple

from gm.errors import UserError
from gm.files import open_input, reason

if TYPE_CHECKING:  # both are slow to import, and few commands take prompts
    from tokenizers import Tokenizer

TEXT_CONTEXT = 77  # tokens that a text tower takes
VOCABULARY = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")  # OpenAI's, under the MIT License
MERGES = 49152 - 256 - 2  # of the file's lines, after a line of comment
START, END = 49406, 49407
END_OF_WORD = "</w>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clean(text: str) -> str:
    """Broken Unicode mended, HTML entities replaced, white space folded, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def tokens_of(text: str) -> List[int]:
    """The tokens of a text as :func:`clean` gives it, without start and end.

    Raises:
        UserError: the vocabulary's file cannot be read.
    """
    return _tokenizer().encode(text, add_special_tokens=False).ids


@lru_cache(maxsize=1)
def _tokenizer() -> "Tokenizer":
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    tokenizer = Tokenizer(BPE(*read_vocabulary(), end_of_word_suffix=END_OF_WORD))
    words = Split(Regex(WORDS), "removed", invert=True)
    tokenizer.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer


def read_vocabulary() -> Tuple[Dict[str, int], List[Tuple[str, str]]]:
    """Every token by its name, without start and end, and the pairs that are merged, the first first.

    Raises:
        UserError: the vocabulary's file cannot be read.
    """
    try:
        with open_input(VOCABULARY) as file, gzip.open(file, "rt", encoding="utf-8") as lines:
            merges = [tuple(line.split()) for line in lines.read().split("\n")[1 : MERGES + 1]]
    except (OSError, EOFError, ValueError) as error:
        problem = reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"cannot read CLIP's vocabulary, {VOCABULARY}: {problem}; get the project anew") from error
    letters = _byte_letters()
    names = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(merge) for merge in merges)]
    return {name: token for token, name in enumerate(names)}, merges


def _byte_letters() -> List[str]:
    """The letter that stands for each byte, in the vocabulary's order: printable ones first, for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
