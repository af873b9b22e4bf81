"""
Files of texts and labels, read as what stands in them.

The fields of a .csv or .tsv file are strings until all of them have been read: types guessed from the first rows would
make two classes of `True` and `true`, 1 of 01, and an error of the first 2.5 after many whole numbers.
"""

import csv
import glob
import inspect
import math
import re
from copy import copy
from itertools import islice
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, IterableDataset, load_dataset, load_dataset_builder
from datasets.fingerprint import Hasher
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from .errors import InputError

getLogger("datasets.packaged_modules").setLevel(CRITICAL)  # our own error says what is wrong with a file

FILE_FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
TEXT_FORMATS = {**FILE_FORMATS, ".txt": "text"}
_WHOLE = re.compile(r"\s*[+-]?(0|[1-9][0-9]{0,17})\s*")
# Not all that Python takes for one: 1_1 is a name.
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_LEADING_ZERO = re.compile(r"\s*[+-]?0\d")  # 01 names something, 0.1 and 1.0 are numbers


def read_file(
    path: str, flag: str, formats: dict[str, str], columns: tuple[str, ...] = ("text",), streaming: bool = False
) -> Dataset | IterableDataset:
    """
    What a file holds.

    Args:
        path (`str`): The file.
        flag (`str`): What named it, for the errors.
        formats (`dict[str, str]`): Suffixes allowed, and the builder of `datasets` for each.
        columns (`tuple[str, ...]`, *optional*, defaults to `("text",)`): Names of the columns of texts and, where there
            is one, of labels, by which is found whether `,`, `;` or tabs separate the columns of a .csv or .tsv file.
            The lines of a .txt file get the first of them; labels that are numbers throughout a .csv or .tsv file are
            read as integers or floats, all else there as strings.
        streaming (`bool`, *optional*, defaults to `False`): Read as it is asked for. Labels stay strings then.

    Raises:
        InputError: where there is no such file, or it is empty or not readable.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise InputError(f"{flag} {path!r}: the name must end in one of {', '.join(formats)}.")
    if not Path(path).is_file():
        raise InputError(f"{flag} {path!r}: there is no such file.")
    if Path(path).stat().st_size == 0:
        raise InputError(f"{flag} {path!r} is empty.")
    separator, options = "\t" if suffix == ".tsv" else ",", {}
    if formats[suffix] == "csv":
        options = _csv_options(path, f"{flag} {path!r}", separator, streaming, columns)
    elif formats[suffix] == "json" and not streaming and (line := first_undecodable_line(path)):
        raise InputError(f"{flag} {path!r}, line {line} is not UTF-8: save the file in that encoding.")
    dataset = _load(formats[suffix], [str(path)], f"{flag} {path!r}", streaming, options, columns)
    if formats[suffix] == "text" and columns[0] != "text":
        return dataset.rename_column("text", columns[0])
    is_csv = formats[suffix] == "csv" and not streaming
    return _with_types(dataset, columns, f"{flag} {path!r}", options["sep"]) if is_csv else dataset


def read_dataset(
    name: str,
    config_name: str | None = None,
    columns: tuple[str, ...] = ("text",),
    split: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
) -> DatasetDict | Dataset | IterableDataset:
    """
    What a data set holds: `datasets.load_dataset`, but that a local folder's .csv and .tsv files are read as
    [`read_file`] reads them, unless a card beside them says what their columns are.

    Args:
        name (`str`): A name on the Hub or a local folder.
        config_name (`str`, *optional*): Its configuration.
        columns, streaming: As of [`read_file`].
        split (`str`, *optional*): The split wanted. None: all of them.
        revision (`str`, *optional*): On the Hub, the commit wanted. None: the newest.

    Raises:
        InputError: where a .csv or .tsv file is broken; whatever `load_dataset` raises for anything else.
    """
    builder = load_dataset_builder(name, config_name) if Path(name).is_dir() else None
    files = {str(key): paths for key, paths in (builder.config.data_files or {}).items()} if builder else {}
    is_plain = all(path.lower().endswith((".csv", ".tsv")) for paths in files.values() for path in paths)
    if not (isinstance(builder, Csv) and is_plain) or builder.info.features or builder.config.features:
        if streaming and isinstance(builder, Parquet) and split in files:
            return _load("parquet", files[split], f"the {split} data of {name!r}", streaming, {}, columns)
        return load_dataset(name, config_name, split=split, streaming=streaming, revision=revision)
    if split not in (None, *files):
        raise InputError(f"the data set {name!r} has no split {split!r}, only {sorted(files)}.")
    found = {}
    for key in files if split is None else [split]:
        options = _csv_options(
            files[key][0], f"the file {files[key][0]!r}", builder.config.sep or ",", streaming, columns
        )
        found[key] = _load("csv", files[key], f"the {key} data of {name!r}", streaming, options)
        if not streaming:
            found[key] = _with_types(found[key], columns, f"the {key} data", options["sep"])
    return DatasetDict(found) if split is None else found[split]


class _Json(Json):
    """
    `datasets`' builder for JSON, but that it reads the columns asked for alone, and gives them the type that all of
    their rows allow: it takes the columns and types of a file's first 10 MB for those of the whole file.

    Where a file is read as it is asked for, types are those of its beginning; where it lacks a column, its beginning is
    all that there is, for whoever asked to say so.
    """

    columns: tuple[str, ...] = ()
    lacks_column = False

    def _split_generators(self, dl_manager):
        splits = super()._split_generators(dl_manager)
        first, self.info.features = self.info.features, None
        self.lacks_column = first is not None and not set(self.columns) <= set(first)
        if first is None or self.lacks_column:  # None: an array, which is read as a whole
            self.info.features = first
            return splits
        fields = {column: first.arrow_schema.field(column) for column in self.columns}
        if not dl_manager.is_streaming:
            for _, table in self._generate_tables(**splits[0].gen_kwargs):
                for column in set(self.columns) & set(table.column_names):
                    fields[column] = _common(fields[column], table.schema.field(column))
        found = {}
        for column, field in fields.items():
            if pyarrow.types.is_null(field.type):
                field = field.with_type(pyarrow.string())
            is_first = field.type == first.arrow_schema.field(column).type
            found[column] = first[column] if is_first else Features.from_arrow_schema(pyarrow.schema([field]))[column]
        self.info.features = Features(found)
        return splits

    def _generate_tables(self, *args, **kwargs):
        # Told the columns wanted, `datasets` would take the others for what they are not.
        reader = Json.__new__(Json)
        vars(reader).update(vars(self), info=copy(self.info))
        reader.info.features = None
        tables = reader._generate_tables(*args, **kwargs)
        for key, table in islice(tables, 1) if self.lacks_column else tables:
            if self.info.features is not None:
                table = table.select([column for column in self.info.features if column in table.column_names])
                table = self._cast_table(table)
            yield key, table


def _common(field: pyarrow.Field, other: pyarrow.Field) -> pyarrow.Field:
    """A column of the type that holds the values of both."""
    try:
        return pyarrow.unify_schemas(map(pyarrow.schema, ([field], [other])), promote_options="permissive")[0]
    except pyarrow.ArrowException:
        is_mixed = isinstance(other.type, pyarrow.BaseExtensionType)  # how `datasets` reads a mixture
        kind = "values of several kinds" if is_mixed else other.type
        raise InputError(f"the column {field.name!r} holds {field.type} at first and {kind} further on") from None


def _load(
    kind: str,
    paths: list[str],
    source: str,
    streaming: bool,
    options: dict[str, Any],
    columns: tuple[str, ...] = (),
) -> Dataset | IterableDataset:
    """The rows of files by a builder of `datasets`; says in one sentence what is wrong with them."""
    try:
        # A name is no pattern: `reviews[1].csv` is another file than `reviews1.csv`.
        names = [glob.escape(path) for path in paths]
        if kind == "json" and columns:
            ours = (datasets.__version__, inspect.getsource(_Json), columns)  # what is in the cache was made by these
            builder = _Json(data_files=names, hash=Hasher.hash(ours))
            builder.columns = tuple(dict.fromkeys(columns))
            if streaming:
                return builder.as_streaming_dataset(split="train")
            builder.download_and_prepare()
            return builder.as_dataset(split="train")
        if kind == "parquet" and streaming:
            return _stream_parquet(paths, columns)
        return load_dataset(kind, data_files=names, split="train", streaming=streaming, **options)
    except Exception as error:
        if "no data" in str(error):  # how `datasets` says that a file has no rows
            raise InputError(f"{source} is empty.") from error
        is_said = isinstance(error, (InputError, pyarrow.ArrowException))
        cause = error if is_said else error.__cause__ or error.__context__ or error
        if isinstance(cause, UnicodeDecodeError):
            path, line = next((path, line) for path in paths if (line := first_undecodable_line(path)))
            source = source if len(paths) == 1 else f"{source}, {path!r}"
            raise InputError(f"{source}, line {line} is not UTF-8: save the file in that encoding.") from error
        raise InputError(f"{source} is not readable as {kind}: {cause}") from error


def _with_types(dataset: Dataset, columns: tuple[str, ...], source: str, separator: str) -> Dataset:
    """What a .csv or .tsv file holds, checked, with its labels as the numbers that they are."""
    _check_texts(dataset, columns[0], source)
    # Where a comma is for decimals, spreadsheets separate columns by semicolons.
    return _with_numbers(dataset, columns[1], "," if separator == ";" else ".") if len(columns) > 1 else dataset


def _stream_parquet(paths: list[str], columns: tuple[str, ...]) -> IterableDataset:
    """
    Rows of Parquet files with the columns wanted. Of a file that lacks one it is all columns, and nothing else, for
    whoever asked to say so. `datasets` would read a group of rows at once, which may be a whole file; here it is a page
    of each column.
    """
    lacking = [path for path in paths if not set(columns) <= set(pyarrow.parquet.read_schema(path).names)]

    def rows():
        for path in lacking[:1] or paths:
            with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
                for batch in file.iter_batches(1000, columns=None if lacking else list(columns)):
                    yield from batch.to_pylist()

    return IterableDataset.from_generator(rows)


def _csv_options(path: str, source: str, separator: str, streaming: bool, columns: tuple[str, ...]) -> dict[str, Any]:
    separator = _find_separator(path, separator, columns)
    # A class may be called None and a text be "null": only an empty field is a missing value, or a text without words.
    options = {"sep": separator, "keep_default_na": False, "na_values": [] if streaming else [""]}
    options["chunksize"] = 1000  # rows at once, which may be long: `datasets` would take 10,000
    if separator == "\t" and not _is_quoted(path):
        options["quoting"] = csv.QUOTE_NONE
    names = _read_header(path, source, separator, options.get("quoting", csv.QUOTE_MINIMAL))
    if names:
        options["features"] = datasets.Features({name: datasets.Value("string") for name in names})
    if streaming and len(names) == 1:
        options["skip_blank_lines"] = False  # such a row, too, is to be answered
    return options


def _find_separator(path: str, usual: str, columns: tuple[str, ...]) -> str:
    """What separates the columns wanted in a file's first line: the usual, or what spreadsheets write elsewhere."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline()
    for separator in (usual, ",", ";", "\t"):
        if set(columns) <= {name.strip('"') for name in line.rstrip("\r\n").split(separator)}:
            return separator
    return usual


def _is_quoted(path: str) -> bool:
    """
    Whether quotes enclose fields of a .tsv file, as in a .csv file. They are characters like others, as in many such
    files, where every line has all of the columns and in one of them a quote is opened that is not closed.
    """
    is_open = False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        columns = file.readline().count("\t")
        for line in file:
            if line.count("\t") != columns and line.strip():
                return True
            if '"' in line:
                fields = line.rstrip("\n").split("\t")
                is_open |= any(field.startswith('"') and field.count('"') % 2 for field in fields)
    return not (is_open and columns)  # of one column every line has all


def _read_header(path: str, source: str, separator: str, quoting: int) -> list[str]:
    """
    Names of the columns, none where the file is broken.

    Raises:
        InputError: for what would be read as something else in silence: a column that stands twice, and a first row of
            more fields than there are columns, whose first field would be taken for a name of the row.
    """
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = filter(None, csv.reader(file, delimiter=separator, quoting=quoting))
        longest = csv.field_size_limit((1 << 31) - 1)  # a text may be longer than what Python takes for a mistake
        try:
            names, first = next(rows, []), next(rows, [])
        except csv.Error:  # whoever reads it will say what it is
            return []
        finally:
            csv.field_size_limit(longest)
    if len(first) > len(names):
        raise InputError(
            f"{source}, row 1 has {len(first)} fields for {len(names)} columns: is there a text with "
            f"{separator!r} in it that is not in quotes?"
        )
    names = [name or f"Unnamed: {index}" for index, name in enumerate(names)]  # as pandas calls them
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise InputError(f"{source} has more than one column {twice!r}.")
    return names


def _check_texts(dataset: Dataset, column: str, source: str):
    """Raises `InputError` where the texts are numbers, every one of them: another column was meant."""
    if column not in dataset.column_names:
        return
    number = None
    for row, text in enumerate(dataset[column], start=1):  # one at a time: a file may be larger than memory
        if text is not None and not is_number(text):
            return
        if text is not None and number is None:
            number = f"{text} in row {row}"
    if number is not None:
        raise InputError(f"{source}: the column {column!r} must hold strings, got {number} and no text.")


def _with_numbers(dataset: Dataset, column: str, decimal: str) -> Dataset:
    """The data set with the strings of `column` as integers or floats, where they are that throughout."""
    if column not in dataset.column_names:
        return dataset
    # Each string once, and a number for every row: some bytes of a row where Python's objects are fifty and more.
    encoded = dataset.data.column(column).dictionary_encode().unify_dictionaries().combine_chunks()
    held = [value.replace(decimal, ".") for value in encoded.dictionary.to_pylist()]
    if not held or any(_LEADING_ZERO.match(value) for value in held):
        return dataset
    if all(_WHOLE.fullmatch(value) for value in held):
        kind, feature = int, datasets.Value("int64")
    elif all(map(is_number, held)):
        kind, feature = float, datasets.Value("float64")
    else:
        return dataset
    numbers = pyarrow.array(map(kind, held), feature.pa_type).take(encoded.indices)
    return dataset.remove_columns(column).add_column(column, numbers, feature=feature)


def is_number(text: str) -> bool:
    """Whether a string stands for a finite number."""
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def first_undecodable_line(path: str) -> int | None:
    """Number of the first line that is not UTF-8, if there is one."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None
