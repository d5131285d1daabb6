"""The tables and plots of the performance page.

Nothing here is timed.
"""

from benchmarks.cost import FORWARD, MEMORY, OPERATIONS, SECONDS, draw_cost
from benchmarks.page import write_page
from benchmarks.parts import draw_parts
from benchmarks.results import RESULTS as MEASURED

RESULTS = """commit,device,what,value,unit,versions
aaa,two cores,speed of a,1.5,slices/s,
bbb,two cores,speed of a,3,slices/s,
bbb,"one, large",speed of a,60,slices/s,
bbb,two cores,weight of a,7,GB,
"""
SPEEDS = """commit,device,what,value,unit,versions
aaa,two cores,"evaluating unet, 32x32, batch 4",1,slices/s,
bbb,two cores,"evaluating unet, 32x32, batch 4",2,slices/s,
bbb,two cores,"the same, of a matrix product: evaluating unet, 32x32, batch 4",0.5,,
bbb,two cores,"total memory of training unet, 32x32, batch 4",3,GB,
bbb,two cores,"training ViT-B, float32, batch 4",7,slices/s,
ccc,two cores,"evaluating unet, 32x32, batch 4",4,slices/s,
"""
CASES = {"image size": (224, 512), "classes": (3, 17), "points": (0, 4)}


def test_page_shows_first_and_last_value_per_device(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.csv"
    results.write_text(RESULTS)
    page.write_text("Before.\n<!-- results: speed -->\nold\n<!-- end of results -->\nAfter.\n")
    for _ in range(2):  # a filled page can be filled again
        write_page(page, results)
        text = page.read_text()
        assert text.startswith("Before.\n<!-- results: speed -->\n\ntwo cores:\n")
        assert text.endswith("\n<!-- end of results -->\nAfter.\n")
        assert "| speed of a | 1.5 | aaa | 3 | bbb | slices/s |" in text
        assert "| speed of a |  |  | 60 | bbb | slices/s |" in text.split("one, large:")[1]
        assert "old" not in text
        assert "weight" not in text


def test_speed_table_has_a_row_per_network_with_its_last_values(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.csv"
    results.write_text(SPEEDS)
    page.write_text("<!-- speeds -->\nold\n<!-- end of speeds -->\n")
    write_page(page, results)
    start, *rows, end = [x for x in page.read_text().splitlines() if x]
    assert (start, end) == ("<!-- speeds -->", "<!-- end of speeds -->")
    assert rows[0] == "two cores:"
    assert rows[3:] == ["| `unet` | 32x32, batch 4 | 4 | 0.5 |  |  |  | 3 |  | ccc |"]


def test_plots_are_drawn_from_results(tmp_path):
    device = "Intel(R) Xeon(R) Processor, 2 cores"
    draw_parts(tmp_path / "parts.png", MEASURED, device)
    units = (SECONDS, MEMORY, OPERATIONS)
    cases = [f"{x} {y}" for x, ys in CASES.items() for y in ys]
    rows = [(f"{FORWARD}, {x}", 2.0, unit) for x in cases for unit in units]
    draw_cost(tmp_path / "cost.png", rows)
    assert {x.name for x in tmp_path.iterdir()} == {"parts.png", "cost.png"}
