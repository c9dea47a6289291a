"""What was probably meant: the nearest of the known words, or of the names in a folder."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like another, in any case of letters; empty: none is like it.

    >>> nearest("Linaer", ["knn", "linear"]), nearest("pixels", ["knn", "linear"])
    ('linear', '')
    """
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1)), "")


def unknown(what: str, word: str, known: Iterable[str]) -> str:
    """Say that there is no such word, which was probably meant, and which there are.

    >>> unknown("protocol", "kn", ["knn", "linear"])
    "no protocol 'kn'; did you mean knn? There are: knn, linear"
    """
    near = nearest(word, known := list(known))
    return f"no {what} {word!r}; {f'did you mean {near}? There' if near else 'there'} are: {', '.join(known)}"


def beside(path: Path, folders: bool = False) -> str:
    """The path in the same folder whose name is most like that of one that is not there; empty: none is.

    Args:
        path: what is not there.
        folders: look at folders alone.
    """
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [each.name for each in there if each.is_dir() or not folders]
    near = difflib.get_close_matches(path.name, names, n=1)
    return str(path.parent / near[0]) if near else ""
