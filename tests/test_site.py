"""The documentation as a site: it builds, fetches nothing, and no link leads nowhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hybridize

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# What a browser gets for a page by itself, and the attribute that says from where.
_LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """Where a page's links lead, what it loads, and the places in it that links may name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in _LOADED and found.get(_LOADED[tag]):
            self.loaded.append(found[_LOADED[tag]])


def is_elsewhere(address: str) -> bool:
    """Whether an address is outside the site: with a scheme, or of another host."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def lost(site: Path, page: Path, address: str, pages: dict[Path, Page]) -> bool:
    """Whether an address inside the site leads to no file, or to no place in it."""
    parts = urlsplit(address)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if site not in target.parents or not target.is_file():
        return True
    known = pages[target].places if target in pages else set()
    return bool(parts.fragment) and unquote(parts.fragment) not in known


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("needs mkdocs: pip install 'hybridize[docs]'")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_every_document_is_a_page(site):
    for document in PAGES:
        page = site / document.relative_to(ROOT / "docs").with_suffix(".html")
        assert page.is_file(), page
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched(site, pages):
    loaded = [address for page in pages.values() for address in page.loaded]
    assert len(loaded) > len(pages)
    assert not [address for address in loaded if is_elsewhere(address)]
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:|//)", style.read_text("utf-8"))


def test_no_link_leads_nowhere(site, pages):
    checked = 0
    for path, page in pages.items():
        # What is served for addresses that do not exist names files from the site's root.
        if path.name == "404.html":
            continue
        for address in page.links + page.loaded:
            if not is_elsewhere(address):
                assert not lost(site, path, address, pages), f"{path.name}: {address}"
                checked += 1
    assert checked > 500


def test_a_lost_link_is_found(tmp_path):
    page = tmp_path / "a.html"
    page.write_text('<a href="b.html">b</a> <p id="here">')
    pages = {page: Page(page.read_text())}
    assert not lost(tmp_path, page, "#here", pages)
    assert not lost(tmp_path, page, "a.html#here", pages)
    assert lost(tmp_path, page, "#there", pages)
    assert lost(tmp_path, page, "b.html", pages)
    assert lost(tmp_path, page, "../outside.html", pages)
    assert is_elsewhere("https://example.org/x.js")
    assert is_elsewhere("//example.org/x.js")
    assert not is_elsewhere("x/y.html#z")


def test_every_public_name_is_documented(site, pages):
    places = set().union(*(page.places for page in pages.values()))
    missing = []
    for name in set(hybridize.__all__) - {"__version__"}:
        thing = getattr(hybridize, name)
        module = "hybridize.conversion.convert" if name == "convert" else thing.__module__
        if f"{module}.{name}" not in places:
            missing.append(f"{module}.{name}")
    assert missing == []


def test_links_between_the_documents_in_the_repository():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        for address in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
            if not is_elsewhere(address) and urlsplit(address).path:
                assert (document.parent / urlsplit(address).path).exists(), (document, address)
