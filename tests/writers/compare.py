#!/usr/bin/env python3
"""compare.py FOLDER: compares what `cases.json` in FOLDER lists with what came out of merging it.

The output of case NAME is FOLDER/NAME.out.parquet. Two readers that share no code with the merge
are asked. pyarrow: the rows of the inputs, sorted stably by `__timestamp`, must be the rows of the
output, cell by cell, and one writer's types must come out as they went in. DuckDB: the same types,
the same rows as often, in order. Prints every difference; exits with 1 when there is one.
"""
import json
import os
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "duckdb"))
import check  # noqa: E402  (tests/duckdb/check.py)

KEY = "__timestamp"


def comparable(column):
    """Floats as their bits, because NaN is unlike itself; extension types as what they store."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return comparable(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if storage(kind) != kind:
        return column.cast(storage(kind))
    if pa.types.is_floating(kind):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[kind.bit_width]
        return pa.chunked_array([chunk.view(bits) for chunk in column.chunks], bits)
    return column


def storage(kind):
    """A type that pyarrow can sort rows of: what an extension stores, views as plain texts."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


def expected(inputs, schema):
    """The rows of the inputs under the output's schema, in order."""
    parts = []
    for table in inputs:
        columns = []
        for field in schema:
            wanted = storage(field.type)
            if field.name not in table.column_names:
                columns.append(pa.chunked_array([pa.nulls(table.num_rows, wanted)]))
                continue
            column = table[field.name]
            if isinstance(column.type, pa.BaseExtensionType):
                column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
            columns.append(column if column.type == wanted else column.cast(wanted))
        parts.append(pa.table(columns, names=schema.names))
    rows = pa.concat_tables(parts)
    return rows.take(pc.sort_indices(rows, sort_keys=[(KEY, "ascending")]))


def problems(case, folder):
    output_path = os.path.join(folder, f"{case['name']}.out.parquet")
    # pyarrow, too, would let far INT96 timestamps wrap around.
    unit = "us" if "far_int96" in case["name"] else "ns"
    inputs = [pq.read_table(path, coerce_int96_timestamp_unit=unit) for path in case["inputs"]]
    output = pq.read_table(output_path)
    names = list(dict.fromkeys(name for table in inputs for name in table.column_names))
    if output.column_names != names:
        yield f"columns are {output.column_names}, not {names}"
        return
    if all(table.schema.equals(inputs[0].schema) for table in inputs):
        for before, after in zip(inputs[0].schema, output.schema):
            if not before.equals(after, check_metadata=True):
                yield f"column {before} with {before.metadata} became {after} with {after.metadata}"
        notes = output.schema.metadata or {}
        if any(notes.get(key) != value for key, value in (inputs[0].schema.metadata or {}).items()):
            yield f"notes {inputs[0].schema.metadata} became {output.schema.metadata}"
    wanted = expected(inputs, output.schema)
    if wanted.num_rows != output.num_rows:
        yield f"inputs have {wanted.num_rows} rows, the output {output.num_rows}"
        return
    for name in names:
        before, after = comparable(wanted[name]), comparable(output[name])
        if before.type != after.type:
            yield f"column {name} is {after.type}, not {before.type}"
        elif not before.equals(after):
            row = next(i for i in range(len(before)) if not before[i].equals(after[i]))
            yield f"column {name}, row {row}: {before[row]} became {after[row]}"
    found = check.check([KEY], output_path, case["inputs"])
    if found:
        yield f"DuckDB: {found}"
    yield from changed_types(case["inputs"], output_path)


def changed_types(inputs, output):
    """Types as DuckDB names them, when all inputs agree."""
    def described(path):
        return dict(check.duckdb.sql(f"DESCRIBE SELECT * FROM {check.literal(path)}").project("column_name, column_type").fetchall())

    known = [described(path) for path in inputs]
    for name, kind in described(output).items():
        before = {types[name] for types in known if name in types}
        # DuckDB cuts INT96 off at microseconds; in the output all of its digits are there.
        if len(before) == 1 and before != {kind} and (before, kind) != ({"TIMESTAMP"}, "TIMESTAMP_NS"):
            yield f"column {name} was {before.pop()} for DuckDB and became {kind}"


def main(folder):
    with open(os.path.join(folder, "cases.json"), encoding="utf-8") as file:
        cases = json.load(file)
    count = 0
    for case in cases:
        for problem in problems(case, folder):
            print(f"{case['name']}: {problem}")
            count += 1
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main(sys.argv[1])
