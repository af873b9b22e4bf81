"""The chapter's pages run from beginning to end, in their small setting."""

import re
import sys

import pytest
from conftest import ROOT, run

nbformat = pytest.importorskip("nbformat")
PAGES = sorted((ROOT / "docs" / "chapter15").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "LICENSE").write_text((ROOT / "LICENSE").read_text())
    for name in ("configuration", "benchmarks"):  # what pages read of the repository
        (tmp_path / name).symlink_to(ROOT / name)
    code = "\n\n".join(cell.source for cell in nbformat.read(page, 4).cells if cell.cell_type == "code")
    (tmp_path / "page" / "page.py").write_text(code)
    environment = {"CHAPTER15_SMALL": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    result = run(sys.executable, "page/page.py", cwd=tmp_path, **environment)
    assert "Traceback" not in result.stderr


def test_every_idea_has_a_page_whose_outputs_are_there():
    assert [page.stem[:2] for page in PAGES] == [f"{number:02}" for number in range(1, len(PAGES) + 1)]
    for page in PAGES:
        cells = [cell for cell in nbformat.read(page, 4).cells if cell.cell_type == "code"]
        assert any(cell.outputs for cell in cells), page.stem
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
        assert not re.search(r"/(root|home|work)/", page.read_text())
