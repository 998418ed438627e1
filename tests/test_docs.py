"""Links of the documentation, and citations of the published behaviour in the code, lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods" / "published-behaviour.md"
CITING = ("m2f_cli", "tests", "presets", "benchmarks", "examples", "docs")  # folders, where they exist
TEXT = {".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".json"}
# Pages that are made when the site is built. tests/test_site.py builds it strictly, with links and anchors.
GENERATED = {
    ROOT / "docs" / name
    for name in re.findall(r'"([\w-]+/[\w-]+\.md)"', (ROOT / "docs" / "reference_pages.py").read_text(encoding="utf-8"))
}
ANCHOR = r"[a-z0-9]+(?:-[a-z0-9]+)*"
CITATION = re.compile(rf"published-behaviour\.md((?:#{ANCHOR})(?:(?:,\s+and|,|\s+and|\s+to)\s+#{ANCHOR})*)")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|<(?:img|a)\s[^>]*?(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.M)


def texts() -> list[Path]:
    """Every text file of the repository that may cite the page."""
    found = [path for folder in CITING for path in (ROOT / folder).rglob("*") if path.suffix in TEXT]
    return sorted(path for path in [*found, *ROOT.glob("*.md")] if "__pycache__" not in path.parts)


def pages() -> list[Path]:
    return sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])


def plain(markdown: str) -> str:
    """Markdown without blocks of code and without code in lines: what stands there is no link."""
    markdown = re.sub(r"^( *)(```+|~~~+).*?^\1\2\s*$", "", markdown, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?\1", "", markdown, flags=re.S)


def anchors(page: Path) -> set[str]:
    """Names that a link may end in: written ones, and those that GitHub and MkDocs make of headings."""
    text = re.sub(r"^( *)(```+|~~~+).*?^\1\2\s*$", "", page.read_text(), flags=re.M | re.S)
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    seen: dict[str, int] = {}
    for heading in HEADING.findall(text):
        bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
        slug = re.sub(r"[^\w\- ]", "", bare).strip()
        github, mkdocs = slug.replace(" ", "-"), re.sub(r"[-\s]+", "-", slug)
        again = seen.get(github, 0)
        seen[github] = again + 1
        found |= {github, mkdocs} if not again else {f"{github}-{again}", f"{mkdocs}_{again}"}
    return found


def cited(text: str) -> list[str]:
    """Anchors of the page that a text names. One path may be followed by several: "…md#4-1, #4-2 and #4-3"."""
    joined = re.sub(r"\n[ \t]*(?:# )?", " ", text)  # a citation may go on in the next line of a comment
    return [anchor for names in CITATION.findall(joined) for anchor in re.findall(rf"#({ANCHOR})", names)]


def test_citations_are_found_in_every_form():
    assert cited("(docs/methods/published-behaviour.md#5-1, step 5)") == ["5-1"]
    assert cited("see docs/methods/published-behaviour.md#7-2 to\n    # #7-5.") == ["7-2", "7-5"]
    assert cited("published-behaviour.md#4-1, #4-2 and #9; #10") == ["4-1", "4-2", "9"]


def test_every_citation_of_the_published_behaviour_has_its_heading():
    known = set(re.findall(r"<a id=\"([^\"]+)\"", PAGE.read_text()))
    wrong = {
        f"{path.relative_to(ROOT)}: #{anchor}"
        for path in texts()
        if path != Path(__file__).resolve()
        for anchor in cited(path.read_text())
        if anchor not in known
    }
    assert not wrong


def test_every_numbered_section_has_its_anchor_directly_above():
    lines = PAGE.read_text().splitlines()
    headings = [(i, re.match(r"#{2,3} (\d+(?:\.\d+)?)\.? ", line)) for i, line in enumerate(lines)]
    numbered = [(i, match[1]) for i, match in headings if match]
    names = [number.replace(".", "-") for _, number in numbered]
    assert [lines[i - 1] for i, _ in numbered] == [f'<a id="{name}"></a>' for name in names]
    assert len(names) == len(set(names)) and [name for name in names if "-" not in name] == [*map(str, range(1, 12))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page):
    wrong = []
    for match in LINK.finditer(plain(page.read_text())):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target in GENERATED:
            continue
        has_anchor = not anchor or (target.suffix == ".md" and target.is_file() and anchor in anchors(target))
        if not target.exists() or not has_anchor:
            wrong.append(link)
    assert not wrong


def test_nobody_cites_the_facts_by_a_number_alone():
    old = re.compile(
        r"\bfacts(?:\.md)?,?\s+(?:#\s+)?(?:sections?\s+|§\s*)?[0-9]|\bfacts, first table|\bfacts of section [0-9]", re.I
    )
    left = {
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in texts()
        if path != Path(__file__).resolve()
        for match in old.finditer(path.read_text())
    }
    assert not left
