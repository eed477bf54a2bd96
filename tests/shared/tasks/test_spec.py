import subprocess
import sys

import pytest

from shared.errors import SettingsError
from shared.tasks.spec import Categorical, TaskSpec, parse_task

TASK = """
name = "loans"
kind = "binary"

[label]
column = "late"
positive = ["yes"]
base_rate = 0.2

[[numeric]]
columns = "p0..p3"
minimum = 0
maximum = 16

[[categorical]]
columns = ["sector"]
categories = [11, "23", 44.0]

[model]
type = "mlp"
hidden = [8]
"""


def parse(text: str) -> TaskSpec:
    return parse_task(text, source="task.toml")


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    return str(caught.value)


def test_a_pattern_of_columns_stands_for_each_of_them() -> None:
    assert parse(TASK).columns == ("p0", "p1", "p2", "p3", "sector", "late")


def test_the_inputs_are_numbers_categories_and_one_for_anything_else() -> None:
    assert parse(TASK).inputs == 4 + 3 + 1


def test_a_category_written_as_a_number_is_the_same_as_its_text() -> None:
    (sector,) = parse(TASK).categorical

    assert isinstance(sector, Categorical)
    assert sector.categories == ("11", "23", "44")


def test_comments_layout_and_shorthand_do_not_change_the_hash() -> None:
    spelled_out = TASK.replace('"p0..p3"', '["p0", "p1", "p2", "p3"]').replace("base_rate = 0.2", "base_rate = 0.20 # a comment")

    assert parse(spelled_out).hash == parse(TASK).hash


def test_another_range_is_another_hash() -> None:
    assert parse(TASK.replace("maximum = 16", "maximum = 15")).hash != parse(TASK).hash


def test_updates_travel_in_bytes_and_models_in_float32_unless_the_task_says_otherwise() -> None:
    assert (parse(TASK).transport.updates, parse(TASK).transport.models) == ("int8", "float32")
    other = parse(TASK + '[transport]\nupdates = "float16"\nmodels = "bfloat16"\n')
    assert (other.transport.updates, other.transport.models) == ("float16", "bfloat16")
    assert other.hash != parse(TASK).hash


def test_numbers_of_an_unknown_type_are_refused() -> None:
    assert "transport.updates" in refusal(TASK + '[transport]\nupdates = "int4"\n')


def test_training_settings_have_defaults() -> None:
    assert (parse(TASK).training.steps, parse(TASK).training.updates) == (10, 20)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "binary"', 'kind = "binray"', "'kind'"),
        ('name = "loans"', 'name = "loans"\ncolour = 1', "unknown key 'colour'"),
        ("minimum = 0", "minimum = 0\nminimun = 0", "unknown key 'numeric.0.minimun'"),
        ("minimum = 0", "minimum = 20", "minimum 20 must be below maximum 16"),
        ("minimum = 0", "minimum = -2\nlog = true", "log needs a minimum above -1"),
        ("minimum = 0\n", "", "'numeric.0.minimum' is missing"),
        ('"p0..p3"', '"p3..p0"', "must count upwards"),
        ('columns = ["sector"]', 'columns = ["p1"]', "the column 'p1' is named twice"),
        ('kind = "binary"', 'kind = "binary"\nperson = "p1"', "the column 'p1' is named twice"),
        ('kind = "binary"', 'kind = "binary"\nperson = "late"', "the column 'late' is named twice"),
        ('[11, "23", 44.0]', '[11, "11"]', "the category '11' is named twice"),
        ('positive = ["yes"]', "", "label.positive must list"),
        ('positive = ["yes"]', 'positive = ["yes"]\nnegative = ["yes"]', "share a value"),
        ("base_rate = 0.2", "base_rate = 0.2\nthreshold = 0.5", "exclude each other"),
        ("base_rate = 0.2", "minimum = 1", "label.minimum has no meaning in a binary task"),
        ("base_rate = 0.2", "base_rate = 1.2", "label.base_rate"),
        ('type = "mlp"', 'type = "linear"', "'linear' does not fit a binary task"),
        ("hidden = [8]", "", "model.hidden must list"),
        ('type = "mlp"', 'type = "logistic"', "model.hidden has no meaning for 'logistic'"),
        ('kind = "binary"', 'kind = "binary"\nmetric = "rmse"', "metric 'rmse' is not a figure of a binary task"),
        ("hidden = [8]", "hidden = [8]\n[training]\nsteps = true", "training.steps"),
        ("hidden = [8]", 'hidden = [8]\n[training]\nlearning_rate = "1"', "training.learning_rate"),
        ("hidden = [8]", "hidden = [8]\n[training]\nsample_rate = 1.5", "training.sample_rate"),
        ("maximum = 16", "maximum = inf", "numeric.0.maximum"),
    ],
)
def test_a_wrong_key_is_named_in_one_line(old: str, new: str, said: str) -> None:
    assert old in TASK

    text = refusal(TASK.replace(old, new, 1))

    assert text.startswith("task.toml: ")
    assert said in text
    assert "\n" not in text


def test_a_column_of_persons_is_read_from_the_file_and_is_no_input() -> None:
    with_persons = parse(TASK.replace('kind = "binary"', 'kind = "binary"\nperson = "customer"'))

    assert with_persons.columns == ("customer", "p0", "p1", "p2", "p3", "sector", "late")
    assert with_persons.inputs == parse(TASK).inputs
    assert with_persons.hash != parse(TASK).hash


def test_each_wrong_key_gets_its_own_line() -> None:
    assert len(refusal(TASK.replace("minimum = 0", "colour = 1")).splitlines()) == 2


def test_text_that_is_not_toml_is_refused() -> None:
    assert "not TOML" in refusal("name = ")


def test_a_task_without_features_is_refused() -> None:
    text = TASK[: TASK.index("[[numeric]]")] + '[model]\ntype = "logistic"\n'

    assert "no feature is declared" in refusal(text)
    assert "no feature is declared" in refusal('person = "customer"\n' + text)


def test_a_regression_needs_the_range_of_its_label() -> None:
    text = TASK.replace('"binary"', '"regression"').replace('positive = ["yes"]\nbase_rate = 0.2', "")

    assert "label.minimum and label.maximum" in refusal(text)


def test_a_class_named_twice_is_refused() -> None:
    text = TASK.replace('"binary"', '"multiclass"').replace('positive = ["yes"]\nbase_rate = 0.2', "classes = [1, 1]")

    assert "label.classes must name every class once" in refusal(text)


def test_reading_a_task_loads_neither_torch_nor_scikit_learn() -> None:
    code = "import shared.tasks.spec, sys; print(sorted({'torch', 'sklearn', 'pyarrow'} & set(sys.modules)))"

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "[]"
