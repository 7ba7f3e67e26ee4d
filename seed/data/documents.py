"""Documents of a source: copies count once, few are cut into passages, all are shared out to the streams."""

import hashlib
from collections.abc import Iterable, Sequence

SPLITS = ("recovery", "validation", "test")
MANY_DOCUMENTS = 30  # fewer are cut into passages
FEW_PASSAGES = 20  # fewer are cut once more, finer
PASSAGE_CHARACTERS = 2000  # a text is cut at blank lines into passages of at least this length
LONGEST_PASSAGE = 10 * PASSAGE_CHARACTERS  # a longer one is cut at something finer
# Judged text is compared with all other text, so there is an end to it, far above what a limit in tokens takes.
JUDGED_CHARACTERS = 4_000_000
JUDGED_TOKEN_CHARACTERS = 16  # for each token of a limit, where that is more
UNLIMITED_CHARACTERS = 16_000_000  # where no limit is given
THINNED_DOCUMENTS = 100  # so many are left at least
LONG_PARAGRAPH = 100  # characters; shorter ones, such as titles, come again in what is no copy
SEPARATORS = ("\n\n", "\n", " ")
WHITESPACE = b" \t\n\r\v\f"


def identify_text(text: str) -> bytes:
    """A hash that case, spaces and line ends do not change."""
    return hashlib.blake2b(text.casefold().encode().translate(None, WHITESPACE), digest_size=16).digest()


def keep_distinct(documents: Sequence[str], *, kind: str = "document") -> tuple[list[str], tuple[str, ...]]:
    """Return documents without empty ones and without copies of earlier ones, and how many were left out, in words."""
    filled = [text for text in documents if text and not text.isspace()]
    distinct: dict[bytes, str] = {}
    for text in filled if len(filled) > 1 else ():
        distinct.setdefault(identify_text(text), text)
    kept = list(distinct.values()) or filled
    copies, empty = len(filled) - len(kept), len(documents) - len(filled)
    notes = [
        f"{copies:,} of {len(filled):,} {kind}s left out as copies of others" if copies else "",
        f"{empty:,} empty {kind}{'s' * (empty > 1)} left out" if empty else "",
    ]
    return kept, tuple(filter(None, notes))


def split_documents(documents: Sequence[str]) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """Split documents 8 : 1 : 1 by a hash of their text; fewer than thirty are cut into passages first. In words what left.

    Passages of one text go to the streams in blocks (first 80 %, then 10 and 10 %, two at least), since neighbours are alike.
    """
    if len(documents) >= MANY_DOCUMENTS:
        split: dict[str, list[str]] = {name: [] for name in SPLITS}
        for text in documents:
            digit = hashlib.sha256(text.encode()).digest()[0] % 10
            split[{8: "validation", 9: "test"}.get(digit, "recovery")].append(text)
        return split, ()
    passages, copies = cut_documents(documents)
    first = max(0, min(int(len(passages) * 0.8), len(passages) - 4))
    second = max(first, min(int(len(passages) * 0.9), len(passages) - 2))
    return {"recovery": passages[:first], "validation": passages[first:second], "test": passages[second:]}, copies


def thin_judged(documents: list[str], max_tokens: int | None) -> tuple[list[str], tuple[str, ...]]:
    """Return the documents that are judged where no more than ``max_tokens`` will be, and in words what was left out.

    Only where the text is far longer: then long documents lose their ends, and the documents left are spread evenly.
    """
    wanted = JUDGED_TOKEN_CHARACTERS * (max_tokens or 0)
    most = UNLIMITED_CHARACTERS if max_tokens is None else max(JUDGED_CHARACTERS, wanted)
    total = sum(map(len, documents))
    if total <= most:
        return documents, ()
    documents, copies = part_single(documents)
    longest = most // min(len(documents), THINNED_DOCUMENTS)
    count = len(documents)
    num_kept = min(count, int(count * most / sum(min(len(text), longest) for text in documents)))
    kept = [documents[number * count // num_kept][:longest] for number in range(num_kept)]
    return kept, (
        *copies,
        f"{num_kept:,} of its {count:,} documents judged, spread evenly, none beyond {longest:,} characters: "
        f"{sum(map(len, kept)):,} of {total:,} characters",
    )


def part_single(documents: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The passages of a document that is alone, and what left; several documents as they are."""
    return (documents, ()) if len(documents) != 1 else cut_documents(documents)


def cut_documents(documents: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """The passages of documents, copies once, and in words what left; where they are few, long ones are cut further."""
    passages, copies = keep_distinct([part for text in documents for part in cut_passages(text)], kind="passage")
    if len(passages) >= FEW_PASSAGES:
        return passages, copies
    finer = [part for passage in passages for part in cut_passages(passage, longest=2 * PASSAGE_CHARACTERS)]
    passages, more = keep_distinct(finer, kind="passage")
    return passages, (*copies, *more)


def cut_passages(text: str, separators: Sequence[str] = SEPARATORS, *, longest: int = LONGEST_PASSAGE) -> list[str]:
    """Cut a text at blank lines into passages of ``PASSAGE_CHARACTERS`` or more.

    Where none is blank it is cut at lines, else at spaces, else anywhere; so is a passage of more than ``longest`` characters.
    Copies of a part are cut alike: a long paragraph that began a passage begins one again.
    """
    passages: list[str] = []
    begun: set[str] = set()
    current: list[str] = []
    length = 0
    separator, *finer = [one for one in separators if one in text] or [""]
    for paragraph in text.split(separator) if separator else text:
        if length and len(paragraph) >= LONG_PARAGRAPH and paragraph in begun:
            passages.append(separator.join(current))
            current, length = [], 0
        if not current:
            begun.add(paragraph)
        current.append(paragraph)
        length += len(paragraph)
        if length >= PASSAGE_CHARACTERS:
            passages.append(separator.join(current))
            current, length = [], 0
    if current and "".join(current).strip():
        passages.append(separator.join(current))
    return [
        part
        for passage in passages
        for part in (
            cut_passages(passage, finer, longest=longest) if separator and len(passage) > longest else [passage]
        )
    ]


def join_articles(lines: Sequence[str]) -> list[str]:
    r"""Join WikiText's lines as papers do (two line ends between lines), one document for each article.

    The documents' concatenation is the text that papers score: "\\n\\n".join(lines), then a last "\\n\\n".
    """
    articles: list[list[str]] = [[]]
    for line in lines:
        is_title = line.startswith(" = ") and not line.startswith(" = = ") and line.rstrip().endswith(" =")
        if is_title and any(articles[-1]):
            articles.append([])
        articles[-1].append(line)
    return ["\n\n".join(article) + "\n\n" for article in articles if any(article)]
