"""Tokens against transformers' and OpenCLIP's tokenizers, weights against ComfyUI's and A1111's rules."""

import gzip
import html
import re

import ftfy
import numpy as np
import pytest
from transformers import CLIPTokenizer

from gm.errors import UserError
from gm.networks import tokenizer
from gm.networks.prompt import A1111, COMFYUI, OFF, Prompt, token_blocks, weighted_parts
from gm.networks.tokenizer import END, START, clean, tokens_of

WORDS = """a photo of an astronaut riding a horse on mars, highly detailed, 8k, f/1.4 bokeh; masterpiece
don't we're it's she'd I'll naïve café Ünïcödé 日本語の写真 中文图片 한국어 emoji 😀👩‍👩‍👧 🇩🇪 x²+y²=½ 1234 5.6
100% $5 €7 !!! ??? ... __init__ foo_bar &lt;b&gt; &amp;amp; &eacute; â€œquoteâ€ ｆｕｌｌｗｉｄｔｈ STRASSE
straße İstanbul (round) [square] {curly} <angle> #tag @user https://example.org/a?b=c snake_case CamelCase
antidisestablishmentarianism supercalifragilisticexpialidocious zzz"""


def prompts():
    """200: the empty one, one of 120 words, white space of all kinds, and random sentences of the words above."""
    rng = np.random.default_rng(0)
    words = WORDS.split()
    fixed = ["", " ", "word " * 120, "tab\tand\nnew\u00a0line  twice", "a" * 300, "\u200b zero width"]
    return fixed + [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(200 - len(fixed))]


@pytest.fixture(scope="module")
def vocabulary():
    """The names of all tokens and the merges, read from the file by other code than the project's."""
    with gzip.open(tokenizer.VOCABULARY) as file:
        merges = [tuple(line.split(" ")) for line in file.read().decode().splitlines()[1:48895]]
    kept = [b for b in range(256) if chr(b).isprintable() and b not in (0x20, 0xA0, 0xAD)]
    letters = [chr(b) for b in kept] + [chr(256 + n) for n in range(256 - len(kept))]
    byte_names = dict(zip(kept + [b for b in range(256) if b not in kept], letters))
    names = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    return {name: token for token, name in enumerate(names)}, merges, byte_names


@pytest.fixture(scope="module")
def openclip(vocabulary):
    """OpenCLIP's way from a text to tokens: pairs are merged one by one, the first in the list first."""
    names, merges, byte_names = vocabulary
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    # Python's `re` has no \\p{L}: letters are what is a word character but neither number nor underscore.
    word = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:(?![^\W\d_]|\d)\S)+")

    def merge(text):
        pieces = [byte_names[byte] for byte in text.encode()]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(pieces, pieces[1:])))
            if rank == len(ranks):
                break
            pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
        return [names[piece] for piece in pieces]

    def encode(text):
        text = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        return [token for match in word.findall(text) for token in merge(match)]

    return encode


def test_tokens_are_openclip_s(openclip):
    texts = [text for text in prompts() if not set(text) & set("½²")]  # numbers that \\d does not know
    assert len(prompts()) == 200 and len(texts) > 100
    for text in texts:
        assert tokens_of(clean(text)) == openclip(text), text


def test_tokens_are_transformers(vocabulary):
    """Of cleaned text, as it neither mends it nor replaces HTML entities."""
    names, merges, _ = vocabulary
    theirs = CLIPTokenizer(vocab={**names, "<|startoftext|>": START, "<|endoftext|>": END}, merges=merges)
    for text in prompts():
        assert [START, *tokens_of(clean(text)), END] == theirs(clean(text))["input_ids"], text


def test_without_its_vocabulary(monkeypatch, tmp_path):
    tokenizer._tokenizer.cache_clear()
    monkeypatch.setattr(tokenizer, "VOCABULARY", tmp_path / "none.gz")
    with pytest.raises(UserError, match=r"cannot read CLIP's vocabulary, .*none\.gz: No such file"):
        tokens_of("a")
    (tmp_path / "none.gz").write_bytes(b"no gzip file")
    with pytest.raises(UserError, match=r"cannot read CLIP's vocabulary, .*none\.gz: "):
        tokens_of("a")


@pytest.mark.parametrize(
    "text, comfyui, a1111",
    [
        ("a cat", [("a cat", 1)], [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)], None),
        ("(red:1.5) cat", [("red", 1.5), (" cat", 1)], None),
        ("((red))", [("red", 1.21)], None),
        ("(a (b:1.2) c:1.5)", [("a ", 1.5), ("b", 1.2), (" c", 1.5)], [("a ", 1.5), ("b", 1.8), (" c", 1.5)]),
        ("(a (b) c:1.5)", [("a ", 1.5), ("b", 1.65), (" c", 1.5)], None),
        ("(a:-.5)", [("a", -0.5)], None),
        (r"a \(b\) (c)", [("a (b) ", 1), ("c", 1.1)], None),
        ("a [b] c", [("a [b] c", 1)], [("a ", 1), ("b", 1 / 1.1), (" c", 1)]),
        ("sad :( face", [("sad :( face", 1)], [("sad :", 1), (" face", 1.1)]),
        ("end ) here: 1.5)", [("end ) here: 1.5)", 1)], None),
        ("16:9 (a: b)", [("16:9 ", 1), ("a: b", 1.1)], None),
        ("", [], None),
    ],
)
def test_weights(text, comfyui, a1111):
    for rule, expected in ((COMFYUI, comfyui), (A1111, a1111 or comfyui)):
        parts = weighted_parts(Prompt(text, rule))
        assert [part for part, _ in parts] == [part for part, _ in expected]
        np.testing.assert_allclose([weight for _, weight in parts], [weight for _, weight in expected])
    assert weighted_parts(Prompt(text, OFF)) == [(text, 1.0)]


def test_blocks():
    tokens, weights = token_blocks(Prompt("a (cat:1.5)"), pad=0)
    assert tokens.tolist() == [[START, *tokens_of("a cat"), END, *[0] * 73]]
    assert weights.tolist() == [[1, 1, 1.5, *[1] * 74]]
    tokens, _ = token_blocks(Prompt("dog " * 74 + "antidisestablishmentarianism cat"), pad=END)
    word = tokens_of("antidisestablishmentarianism")
    assert len(tokens) == 2 and 1 < len(word) < 8, "a word that would be divided goes to the next block"
    assert tokens[0, 75:].tolist() == [END, END] and tokens[1, 1 : len(word) + 1].tolist() == word
    long_word = "9" * 80
    tokens, _ = token_blocks(Prompt("dog " + long_word), pad=0)
    assert (tokens[0, 2:76] == tokens_of("9")[0]).all() and (tokens[1, 1:7] == tokens_of("9")[0]).all()
    assert tokens[1, 7] == END
    assert token_blocks(Prompt(""), pad=0)[0].tolist() == [[START, END, *[0] * 75]]
