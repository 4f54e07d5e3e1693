"""The tutorials run as they are, and the outputs that they are stored with are of the kind that they give."""

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="the tutorials need the extra docs")
nbclient = pytest.importorskip("nbclient", reason="the tutorials need the extra docs")
pytest.importorskip("ipykernel", reason="the tutorials need the extra docs")

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def kinds(notebook):
    """For each cell of code, which kinds of output it has: text it prints, a value, a picture."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        {kind for output in cell.outputs for kind in ([output.name] if "name" in output else output.get("data", {}))}
        for cell in cells
    ]


def test_there_are_two_tutorials():
    assert [path.stem for path in TUTORIALS] == ["features-in-ten-minutes", "fine-tuning-on-your-own-csv"]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_and_gives_what_it_shows(path):
    notebook = nbformat.read(path, as_version=4)
    shown = kinds(notebook)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()  # raises CellExecutionError at the first cell that fails
    assert kinds(notebook) == shown


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_stored_outputs_are_whole_and_name_nobodys_folders(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert not any(folder in str(outputs) for folder in ("/home/", "/root/", "/tmp/", "/Users/", str(ROOT)))
