"""The form of the bundled texts, and that they are this repository's own."""

import hashlib
import re
import string
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
CANONICAL = {  # the files of the lectures, other people's compilations
    "names.txt": "0a30b555",
    "input.txt": "86c4e6aa",
}


def read(name):
    return (ROOT / name).read_bytes().decode("ascii")


def test_names_are_distinct_lower_case_words():
    text = read("names.txt")
    assert text.endswith("\n")
    names = text[:-1].split("\n")
    assert len(names) >= 8000
    assert [name for name in names if not re.fullmatch("[a-z]{2,15}", name)] == []
    assert [name for name, n in Counter(names).items() if n > 1] == []


def test_names_use_the_whole_alphabet_and_begin_with_common_ones():
    names = read("names.txt").split()
    assert set("".join(names)) == set(string.ascii_lowercase)
    common = {"mary", "john", "maria", "anna", "emma", "olivia", "james", "muhammad", "david", "sofia"}
    assert common <= set(names[:1000])


def speeches():
    """(speaker, lines) of every speech of input.txt."""
    return [(lines[0], lines[1:]) for lines in (s.split("\n") for s in read("input.txt")[:-1].split("\n\n"))]


def test_shakespeare_has_the_alphabet_of_the_lectures():
    text = read("input.txt")
    assert len(text) >= 300_000
    assert set(text) <= set(string.ascii_letters + " \n!&',-.:;?$")
    assert set(string.ascii_letters) <= set(text)


def test_shakespeare_is_speeches_parted_by_single_blank_lines():
    text = read("input.txt")
    assert text.endswith("\n") and not text.endswith("\n\n") and "\n\n\n" not in text
    assert [line for line in text.split("\n") if line != line.rstrip() or "  " in line] == []
    assert [speaker for speaker, _ in speeches() if not re.fullmatch(r"[A-Z][A-Za-z ,'&-]*:", speaker)] == []
    assert [speaker for speaker, lines in speeches() if not any(lines)] == []


def test_shakespeare_repeats_no_speech():
    passages = Counter("\n".join(lines) for _, lines in speeches())
    assert [passage for passage, n in passages.items() if n > 1 and len(passage) > 60] == []


def test_shakespeare_repeats_no_passage():
    """No three lines in a row occur twice, whoever speaks them: songs have refrains, but shorter ones."""
    triples = Counter()
    for _, lines in speeches():
        triples.update({tuple(lines[i : i + 3]) for i in range(len(lines) - 2)})
    assert [triple for triple, n in triples.items() if n > 1 and len("\n".join(triple)) > 60] == []


def test_the_plays_that_were_promised_are_there():
    text = read("input.txt")
    famous = (
        "To be, or not to be|To-morrow, and to-morrow|Put out the light|Blow, winds|Friends, Romans|quality of mercy|"
        "course of true love|All the world's a stage|food of love|Sigh no more|The barge she sat in|a summer's day"
    )
    missing = [words for words in famous.split("|") if words not in text]
    assert missing == []


def test_the_bundled_texts_are_not_the_canonical_files():
    for name, digest in CANONICAL.items():
        assert not hashlib.sha256((ROOT / name).read_bytes()).hexdigest().startswith(digest)


def test_the_bundled_texts_hold_no_passage_of_the_canonical_files():
    """The opening words of the canonical file's plays and of its longest scenes must be unseen text."""
    text = read("input.txt")
    for words in ("Before we proceed any further", "Now is the winter of our discontent", "Gregory, o' my word"):
        assert words not in text
