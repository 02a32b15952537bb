"""Tables as text."""

from semaim.core.tables import markdown_table, text_table

ROWS = [("run", "steps", "state"), ("a", "1000", "finished"), ("seed=1", "20", "")]


def test_a_text_table_has_aligned_columns_without_spaces_at_the_ends_of_lines():
    assert text_table(ROWS, right=[1]) == "run     steps  state\na        1000  finished\nseed=1     20"


def test_a_markdown_table_is_compact_unless_it_is_to_be_read_as_plain_text():
    assert markdown_table(ROWS) == (
        "| run | steps | state |\n| --- | --- | --- |\n| a | 1000 | finished |\n| seed=1 | 20 |  |"
    )
    assert markdown_table(ROWS, padded=True) == (
        "| run    | steps | state    |\n| ------ | ----- | -------- |\n"
        "| a      | 1000  | finished |\n| seed=1 | 20    |          |"
    )


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table([("a", "b"), ("x|y", "z")]).splitlines()[-1] == "| x\\|y | z |"
