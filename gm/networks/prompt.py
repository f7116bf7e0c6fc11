"""Prompts: how much each part of a text weighs, and the blocks of tokens that a text tower takes."""

import re
from typing import List, Literal, NamedTuple, Tuple

import numpy as np

from gm.networks.tokenizer import END, START, TEXT_CONTEXT, clean, tokens_of

COMFYUI, A1111, OFF = "comfyui", "a1111", "off"
Rule = Literal[COMFYUI, A1111, OFF]
EMPHASIS = 1.1  # of what stands in brackets without a number
LONG_WORD = 8  # tokens, from which on a word may be divided between two blocks
_NUMBER = r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
_PIECES = re.compile(rf"\\([()\[\]\\])|{_NUMBER}|[^\\()\[\]:]+|.", re.DOTALL)
_FACTORS = {"(": EMPHASIS, "[": 1 / EMPHASIS}
_CLOSING = {"(": ")", "[": "]"}


class Prompt(NamedTuple):
    """What a picture should show.

    Attributes:
        text: of any length.
        rule: how weights are read and what they do: comfyui moves a token's output away from the empty prompt's, a1111
            multiplies it and restores the mean of all; off takes brackets for text.
    """

    text: str
    rule: Rule = COMFYUI


class _Part:
    """A piece of text and its weight."""

    def __init__(self, text: str = "") -> None:
        self.text, self.weight, self.given = text, 1.0, False


def weighted_parts(prompt: Prompt) -> List[Tuple[str, float]]:
    r"""The parts of a prompt and their weights.

    `(x)` weighs 1.1 times what is around it; `(x:1.2)` weighs 1.2 for ComfyUI, 1.2 times what is around it for A1111,
    where `[x]` weighs 1/1.1. `\(` is a bracket of the text. So is, for ComfyUI, one without its partner, while for
    A1111 the end of the text closes it.
    """
    if prompt.rule == OFF:
        return [(prompt.text, 1.0)]
    openers = "([" if prompt.rule == A1111 else "("
    parts, opened = [_Part()], []  # `opened`: where the brackets that are not closed yet stand among the parts

    def close(factor: float, given: bool) -> None:
        first = opened.pop()
        parts[first].text = ""
        for part in parts[first:]:
            if not part.given:
                part.weight, part.given = part.weight * factor, given and prompt.rule == COMFYUI
        parts.append(_Part())

    for match in _PIECES.finditer(prompt.text):
        piece, (escaped, number) = match.group(), match.groups()
        bracket = parts[opened[-1]].text if opened else ""
        if piece in openers:
            opened.append(len(parts))
            parts += [_Part(piece), _Part()]
        elif number is not None and bracket == "(":
            close(float(number), given=True)
        elif bracket and piece == _CLOSING[bracket]:
            close(_FACTORS[bracket], given=False)
        else:
            parts[-1].text += escaped or piece
    while opened and prompt.rule == A1111:
        close(_FACTORS[parts[opened[-1]].text], given=False)
    for first in reversed(opened):
        before, bracket, after = parts[first - 1 : first + 2]
        before.text += bracket.text + after.text
        del parts[first : first + 2]
    return [(part.text, part.weight) for part in parts if part.text]


def token_blocks(prompt: Prompt, pad: int) -> Tuple[np.ndarray, np.ndarray]:
    """A prompt as blocks of 77 tokens, start and end included, which a text tower takes one by one.

    A word of fewer than eight tokens is not divided between two of them (as in ComfyUI).

    Args:
        pad: the token that fills a block.

    Returns:
        The tokens and their weights, (n, 77), int32 and fp32.
    """
    blocks, room = [[]], TEXT_CONTEXT - 2
    for text, weight in weighted_parts(prompt):
        for word in clean(text).split():
            tokens = [(token, weight) for token in tokens_of(word)]
            while len(blocks[-1]) + len(tokens) > room:
                first = room - len(blocks[-1]) if len(tokens) >= LONG_WORD else 0
                blocks[-1] += tokens[:first]
                blocks.append([])
                tokens = tokens[first:]
            blocks[-1] += tokens
    rows = [[(START, 1.0), *block, (END, 1.0), *[(pad, 1.0)] * (room - len(block))] for block in blocks]
    table = np.array(rows)  # n 77 2
    return table[..., 0].astype(np.int32), table[..., 1].astype(np.float32)
