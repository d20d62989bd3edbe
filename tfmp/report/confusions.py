"""Which classes an evaluation found to be taken for which."""

from tfmp.report.blocks import Picture, Shade, Table

TITLE = "True classes by row, predicted ones by column"
# Above this number of classes the picture and the most frequent confusions are shown.
MOST_CLASSES = 30
MOST_CONFUSIONS = 20


def blocks(source, data):
    """The matrix as a table, or what there is in its place.

    Args:
        source: The `Source` of evaluation.json.
        data: The data set's name there.
    """
    labels = [*map(str, source.items("made_with", "data", "class_names")), "not finite"]
    matrix = source.items("confusion", data)
    # The last column, of logits that are not finite, is there for whom it says something.
    columns = len(matrix) + any(row[-1] for row in matrix)
    if 0 < len(matrix) <= MOST_CLASSES:
        rows = tuple(
            (labels[true], *_row(source, data, true, columns, max(sum(row), 1)))
            for true, row in enumerate(matrix)
        )
        yield Table(TITLE, ("", *labels[:columns]), rows, matrix=True)
        return
    file = source.path.with_name("confusion.png")
    if file.is_file():
        yield Picture(TITLE, file.read_bytes())
    wrong = [
        (count, true, predicted)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    wrong = sorted(wrong, key=lambda x: -x[0])[:MOST_CONFUSIONS]
    rows = tuple(
        (labels[true], labels[predicted], source.count("confusion", data, true, predicted))
        for _, true, predicted in wrong
    )
    if rows:
        heads = ("True class", "Predicted as", "Images")
        yield Table("The most frequent confusions", heads, rows)


def _row(source, data, true, columns, total):
    for predicted in range(columns):
        count = source.count("confusion", data, true, predicted)
        yield Shade(count, count.value / total)
