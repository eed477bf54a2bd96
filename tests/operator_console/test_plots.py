from xml.etree import ElementTree

from operator_console.plots import Repeated, epsilon_seeds, standalone

SVG = "{http://www.w3.org/2000/svg}"


def test_a_plot_of_its_own_is_an_svg_file_that_says_what_is_seen_and_fetches_nothing() -> None:
    plot = epsilon_seeds([Repeated("none", [0.8, 0.7]), Repeated("3", [0.7, 0.6], wanted=0.6)], name="AUC")
    file = standalone(plot, title="AUC < 1 & more", style=":root { --ink: #000; }\n")
    root = ElementTree.fromstring(file)

    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == "AUC < 1 & more"
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"none", "3", "AUC", "0.750", "0.650"} <= words
    assert "http" not in file.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_the_same_figures_give_the_same_bytes() -> None:
    first, again = (epsilon_seeds([Repeated("none", [0.8, 0.7])], name="AUC") for _ in range(2))

    assert first == again
