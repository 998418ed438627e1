"""Hooks of MkDocs: add the generated pages, mend links that leave docs/, and write llms.txt."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from reference_pages import COPIED, PAGES, licences_table

ORIGINS = {page: name for name, page in COPIED.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)<?([^)#\s>]+)(#[^)\s>]*)?>?\)")
LICENCES = "<!-- licences -->"
ABSTRACT = (
    "Universal image segmentation by mask classification: Mask2Former, MaskFormer and MP-Former in PyTorch, for "
    "panoptic, instance and semantic segmentation, as one command line (m2f) and one Python package (m2f_cli)."
)
_summaries: dict[str, tuple[str, str]] = {}


def on_files(files: Files, config: Any) -> Files:
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    path = page.file.src_uri
    if LICENCES in markdown:
        markdown = markdown.replace(LICENCES, licences_table())
    _summaries[path] = _summary(markdown)
    return relinked(markdown, ORIGINS.get(path, f"docs/{path}"), path)


def relinked(markdown: str, origin: str, page: str) -> str:
    """Return a page whose links lead to pages of the site. A link to another file of the repository becomes its name.

    Args:
        markdown: the page.
        origin: the file of the repository in which it is written.
        page: its place below docs/.
    """

    def mended(match: re.Match[str]) -> str:
        mark, text, link, anchor = match.groups()
        target = os.path.normpath(os.path.join(os.path.dirname(origin), link))
        if target.startswith("docs/") and mark:
            return match[0]
        place = COPIED.get(target) or COPIED.get(f"{target}/README.md") or target.removeprefix("docs/")
        if place == target:
            return text if mark == "" else match[0]
        return f"[{text}]({os.path.relpath(place, os.path.dirname(page) or '.')}{anchor or ''})"

    return LINK.sub(mended, markdown)


def _summary(markdown: str) -> tuple[str, str]:
    """Return the title of a page and its first sentence."""
    title = re.search(r"^# (.+)$", markdown, re.M)
    body = re.sub(
        r"^---\n.*?^---\n|<!--.*?-->|^```.*?^```$", "", markdown[title.end() if title else 0 :], flags=re.M | re.S
    )
    paragraph = next((p for p in body.split("\n\n") if re.match(r"\s*[A-Z`*]", p) and not p.startswith("* ")), "")
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    sentence = re.split(r"(?<=\.)\s(?=[A-Z`*])", plain)[0].replace("*", "")
    return (title[1] if title else ""), sentence or (title[1] if title else "")


def on_post_build(config: Any) -> None:
    """Write llms.txt: a list of all pages for people who work with assistants (llmstxt.org)."""
    lines = ["# m2f", "", f"> {ABSTRACT}", "", "Licence: Apache-2.0. Install: pip install -e . in a checkout."]
    for section in config.nav:
        [(name, entries)] = section.items() if isinstance(section, dict) else [("Start", [section])]
        lines += ["", f"## {name}", ""]
        for path in _paths(entries):
            title, sentence = _summaries[path]
            lines.append(f"- [{title}]({Path(path).with_suffix('.html')}): {sentence}")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _paths(entries: Any) -> list[str]:
    """Return the pages of a part of the navigation, in order."""
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [path for each in values for path in _paths(each)]
