"""The documentation as a site: it builds, loads nothing from elsewhere, and has no broken link."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hybridize

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# Elements that make a browser load a file, and the attribute with its address.
_LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in _LOADED and found.get(_LOADED[tag]):
            self.loaded.append(found[_LOADED[tag]])


def is_elsewhere(address: str) -> bool:
    """Whether an address has a scheme or another host, and so is outside the site."""
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def is_broken(site: Path, page: Path, address: str, pages: dict[Path, Page]) -> bool:
    """Whether an address inside the site names a missing file or a missing anchor."""
    parts = urlsplit(address)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if site not in target.parents or not target.is_file():
        return True
    known = pages[target].anchors if target in pages else set()
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


def test_pages_load_nothing_from_other_servers(site, pages):
    loaded = [address for page in pages.values() for address in page.loaded]
    assert len(loaded) > len(pages)
    assert not [address for address in loaded if is_elsewhere(address)]
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:|//)", style.read_text("utf-8"))


def test_no_link_is_broken(site, pages):
    checked = 0
    for path, page in pages.items():
        # Links on this page start at the root of the site.
        if path.name == "404.html":
            continue
        for address in page.links + page.loaded:
            if not is_elsewhere(address):
                assert not is_broken(site, path, address, pages), f"{path.name}: {address}"
                checked += 1
    assert checked > 500


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_repository_reach_a_file_and_a_heading(name, site, pages):
    links = re.findall(r"\]\(([^)#\s]+)(?:#([^)]+))?\)", (ROOT / name).read_text("utf-8"))
    inside = [(path, anchor) for path, anchor in links if not is_elsewhere(path)]
    assert inside or name != "README.md"
    for path, anchor in inside:
        assert (ROOT / path).exists(), path
        if anchor:
            page = site / Path(path).relative_to("docs").with_suffix(".html")
            assert anchor in pages[page].anchors, f"{path}#{anchor}"


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "a.html"
    page.write_text('<a href="b.html">b</a> <p id="here">')
    pages = {page: Page(page.read_text())}
    assert not is_broken(tmp_path, page, "#here", pages)
    assert not is_broken(tmp_path, page, "a.html#here", pages)
    assert is_broken(tmp_path, page, "#there", pages)
    assert is_broken(tmp_path, page, "b.html", pages)
    assert is_broken(tmp_path, page, "../outside.html", pages)
    assert is_elsewhere("https://example.org/x.js")
    assert is_elsewhere("//example.org/x.js")
    assert not is_elsewhere("x/y.html#z")


def test_every_public_name_is_documented(site, pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    missing = []
    for name in set(hybridize.__all__) - {"__version__"}:
        thing = getattr(hybridize, name)
        if f"{thing.__module__}.{name}" not in anchors:
            missing.append(f"{thing.__module__}.{name}")
    assert missing == []


def test_every_option_is_documented(site):
    functions = [getattr(hybridize, name) for name in hybridize.__all__]
    configs = [
        each.config_class
        for each in functions
        if inspect.isfunction(each) and hasattr(each, "config_class")
    ]
    assert len(configs) > 7
    source = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    text = "".join(page.read_text("utf-8") for page in (site / "api").glob("*.html"))
    for config in configs:
        assert f"<!-- options: {config.__module__}.{config.__name__} -->" in source
        for each in fields(config):
            assert f"<td><code>{each.name}</code></td>" in text


def test_links_between_documents_in_the_repository():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        for address in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
            if not is_elsewhere(address) and urlsplit(address).path:
                assert (document.parent / urlsplit(address).path).exists(), (document, address)
