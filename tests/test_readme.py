"""The README's Python, as it stands there."""

import re

import pytest
from conftest import ROOT, make_reviews
from test_remote_code import run_without_package

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: re.findall(r"import (\w+)", code)[-1])
def test_it_runs(code, book_run, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    for name in ("default", "book"):
        (tmp_path / "runs" / name).symlink_to(book_run)
    make_reviews(100).to_csv(tmp_path / "reviews.csv", index=False)
    (tmp_path / "reviews.txt").write_text("a wonderful film\ndull\n")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    if "save_model" in code:
        use = 'print(pipeline("text-classification", model=folder, **trusted)("a wonderful film"))'
        assert "'label': 'pos'" in run_without_package(tmp_path, tmp_path / "my-model", use).stdout
