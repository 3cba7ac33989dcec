"""The reference is what the tables say, and links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _generator() -> object:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    for name, page in _generator().PAGES.items():  # type: ignore[attr-defined]
        assert (ROOT / "docs/reference" / name).read_text() == page(), f"run python docs/generate.py: {name}"


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_files_named_in_the_threat_model_exist() -> None:
    for name in re.findall(r"`(tests/[\w./*]+)`", (ROOT / "SECURITY.md").read_text()):
        assert list(ROOT.glob(name)), name
