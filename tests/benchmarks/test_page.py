"""The tables of the performance page; nothing here is timed."""

from benchmarks.page import write_page

RESULTS = """commit,device,what,value,unit,versions
aaa,two cores,speed of a,1.5,slices/s,
bbb,two cores,speed of a,3,slices/s,
bbb,"one, large",speed of a,60,slices/s,
bbb,two cores,weight of a,7,GB,
"""


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
