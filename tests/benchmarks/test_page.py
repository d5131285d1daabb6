"""What the benchmark writes; nothing here is timed."""

from benchmarks.page import write_page

RESULTS = """commit,device,what,figure,unit,versions
aaa,two cores,speed of a,1.5,slices/s,
bbb,two cores,speed of a,3,slices/s,
bbb,"one, large",speed of a,60,slices/s,
bbb,two cores,weight of a,7,GB,
"""


def test_the_page_gets_the_first_and_the_last_of_each_figure_it_asks_for(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results.csv"
    results.write_text(RESULTS)
    page.write_text("Before.\n<!-- figures: speed -->\nold\n<!-- end of figures -->\nBehind.\n")
    for _ in range(2):  # a filled page is filled again
        write_page(page, results)
        text = page.read_text()
        assert text.startswith("Before.\n<!-- figures: speed -->\n\ntwo cores:\n")
        assert text.endswith("\n<!-- end of figures -->\nBehind.\n")
        assert "| speed of a | 1.5 | aaa | 3 | bbb | slices/s |" in text
        assert "| speed of a |  |  | 60 | bbb | slices/s |" in text.split("one, large:")[1]
        assert "old" not in text
        assert "weight" not in text
