from trl_rlp.report.elements import Table


def test_columns_of_numbers_are_found():
    table = Table(("name", "number", "unknown", "mixed"), [["a", 1, None, 1.5], ["b", 2.5, None, "-"]])
    assert table.are_numbers == [False, True, True, False]
    assert table.are_numbers is table.are_numbers  # read for each cell of the page
