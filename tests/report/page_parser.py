"""Reading of a page as a browser does, far enough to say that it is whole and needs nobody."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "input", "link", "source", "wbr"}
ADDRESSES = ("src", "href", "srcset", "poster", "data", "action", "xlink:href")


class PageParser(HTMLParser):
    """Tags of a page.

    Attributes:
        errors: end tags that close nothing that is open, and tags that stay open.
        tags: name and attributes of each tag.
        text: all text that is shown.
        raw: content of each script and style by the name of its tag; JSON for scripts is "json".
    """

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.errors: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {}
        self.stack: list[str] = []
        self.feed(page)
        self.close()
        self.errors += self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        if tag in ("script", "style"):
            self.kind = "json" if dict(attrs).get("type") == "application/json" else tag
            self.raw.setdefault(self.kind, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.errors.append(f"/{tag}")

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("script", "style"):
            self.raw[self.kind][-1] += data
        else:
            self.text += data

    def addresses(self) -> list[str]:
        """Return what the page would fetch, and where it leads to."""
        return [attributes[name] or "" for _, attributes in self.tags for name in ADDRESSES if name in attributes]
