"""The reference is what the tables say, and links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from quillon.config.load import load

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


def test_the_unit_lets_quillon_write_where_its_defaults_are(tmp_path: Path) -> None:
    (tmp_path / "ecelerity.conf").write_text('ESMTP_Listener { Listen ":25" {} }\nec_logger "main" {}\n')
    loaded = load(tmp_path / "ecelerity.conf")
    assert loaded.config is not None
    unit = (ROOT / "packaging/quillon.service").read_text()
    [writable] = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert loaded.config.node().spoolbase in [path.removeprefix("-") for path in writable.split()]
    [folders] = re.findall(r"^LogsDirectory=(.*)$", unit, re.MULTILINE)
    [logger] = loaded.config.stanzas.loggers()
    for log in filter(None, (logger.mainlog, logger.rejectlog, logger.paniclog)):
        assert Path(log).parent in [Path("/var/log") / folder for folder in folders.split()]
