"""Values of documents as text."""

from m2f_cli.report.records import flat


def test_a_long_list_is_told_by_its_first_values_and_their_number():
    tree = {"data": {"things": [True] * 80, "classes": list("ab"), "empty": [], "none": None}, "seed": 0}
    assert list(flat(tree)) == [
        ("data.things", ", ".join(["True"] * 12) + ", … (80 in all)"),
        ("data.classes", "a, b"),
        ("seed", "0"),
    ]
