#!/usr/bin/env python3
"""check.py --order COLUMN[:desc][:nulls_first] ... OUTPUT INPUT...

Reads a merged file and its inputs with DuckDB and compares them: the same columns, the same
rows as often (a column that an input lacks is null there, widened numbers compare by value),
in the wanted order, rows with equal keys in the order of inputs. Prints one line and exits
with 0 when all holds, with 1 when something does not.
"""
import argparse
import sys

import duckdb


def quote(name):
    return '"' + name.replace('"', '""') + '"'


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def order_clause(order):
    parts = []
    for spec in order:
        name, *flags = spec.split(":")
        unknown = set(flags) - {"desc", "nulls_first"}
        if unknown:
            sys.exit(f"--order {spec}: unknown {', '.join(sorted(unknown))}")
        direction = "DESC" if "desc" in flags else "ASC"
        nulls = "FIRST" if "nulls_first" in flags else "LAST"
        parts.append(f"{quote(name)} {direction} NULLS {nulls}")
    return ", ".join(parts)


def check(order, output, inputs):
    db = duckdb.connect(":memory:", config={"threads": 2})
    files = "[" + ", ".join(literal(path) for path in inputs) + "]"
    read_inputs = f"read_parquet({files}, union_by_name = true, filename = true, file_row_number = true, hive_partitioning = false)"
    read_output = f"read_parquet({literal(output)}, file_row_number = true, hive_partitioning = false)"
    technical = {"filename", "file_row_number"}

    def columns(relation):
        rows = db.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        return {name: kind for name, kind, *_ in rows if name not in technical}

    wanted, found = columns(read_inputs), columns(read_output)
    if set(wanted) != set(found):
        return f"columns differ: inputs {sorted(wanted)}, output {sorted(found)}"
    casts = ", ".join(f"CAST({quote(name)} AS {kind}) AS {quote(name)}" for name, kind in found.items())
    names = ", ".join(quote(name) for name in found)
    clause = order_clause(order)
    db.execute(
        f"CREATE TABLE wanted AS SELECT {casts}, row_number() OVER (ORDER BY {clause}, "
        f"list_position({files}, filename), file_row_number) AS row_place FROM {read_inputs}"
    )
    db.execute(f"CREATE TABLE found AS SELECT {names}, file_row_number + 1 AS row_place FROM {read_output}")

    count_wanted, count_found = (db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("wanted", "found"))
    if count_wanted != count_found:
        return f"inputs have {count_wanted} rows, the output {count_found}"
    for left, right, what in (("wanted", "found", "lost"), ("found", "wanted", "made up")):
        rest = db.execute(f"SELECT {names} FROM {left} EXCEPT ALL SELECT {names} FROM {right}").fetchall()
        if rest:
            return f"{len(rest)} rows were {what}, first {rest[0]}"
    misplaced = db.execute(
        f"SELECT count(*) FROM (SELECT row_place, row_number() OVER (ORDER BY {clause}, row_place) AS place FROM found) "
        "WHERE row_place <> place"
    ).fetchone()[0]
    if misplaced:
        return f"{misplaced} rows are out of order"
    differ = " OR ".join(f"w.{quote(name)} IS DISTINCT FROM f.{quote(name)}" for name in found)
    unstable = db.execute(f"SELECT count(*) FROM wanted w JOIN found f USING (row_place) WHERE {differ}").fetchone()[0]
    if unstable:
        return f"{unstable} rows with equal keys are not in the order of inputs"
    print(f"ok: {count_found} rows of {len(inputs)} files, {len(found)} columns")
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--order", action="append", required=True, help="a sort column; repeat for more")
    parser.add_argument("--inputs-from", help="a file with one input path in each line, besides those given")
    parser.add_argument("output")
    parser.add_argument("inputs", nargs="*")
    arguments = parser.parse_args()
    inputs = list(arguments.inputs)
    if arguments.inputs_from:
        with open(arguments.inputs_from, encoding="utf-8") as lines:
            inputs += [line.rstrip("\n") for line in lines if line.strip()]
    problem = check(arguments.order, arguments.output, inputs)
    if problem:
        print(problem)
        sys.exit(1)


if __name__ == "__main__":
    main()
