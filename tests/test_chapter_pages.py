"""The chapter's pages run in a Jupyter kernel from beginning to end, in their small setting."""

import re

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
PAGES = sorted((ROOT / "docs" / "chapter15").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    folder = tmp_path / "docs" / "chapter15"
    folder.mkdir(parents=True)
    for name in ("configuration", "benchmarks", "LICENSE"):  # what pages read of the repository
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("CHAPTER15_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(page, 4)
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()  # raises at the first cell that does
    assert any(cell.outputs for cell in book.cells if cell.cell_type == "code")


def test_every_idea_has_a_page_whose_outputs_are_there():
    assert [page.stem[:2] for page in PAGES] == [f"{number:02}" for number in range(1, len(PAGES) + 1)]
    for page in PAGES:
        cells = [cell for cell in nbformat.read(page, 4).cells if cell.cell_type == "code"]
        assert any(cell.outputs for cell in cells), page.stem
        assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
        assert not re.search(r"/(root|home|work)/", page.read_text())
