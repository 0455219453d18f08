"""many_rows.py REQUEST.json: an independent look, with DuckDB, at many states of a lake.

REQUEST is a list of {"name", "outputs", "inputs", "may_lack"}. The outputs must hold exactly the rows of
the inputs, each as often; with may_lack some may not be there yet, but none twice. Outputs that are no
writers' files (.1.parquet) must be sorted, and together the outputs must have every column of the inputs.
Prints a line for each state that is wrong; exit code 0 when none is.
"""
import json
import sys

import duckdb

ORDER = "__timestamp"
READ = "read_parquet(?, union_by_name = true, hive_partitioning = false)"


def columns(con, files):
    return {row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {READ}", [files]).fetchall()}


def problem(con, state):
    outputs, inputs, may_lack = state["outputs"], state["inputs"], state.get("may_lack", False)
    if not outputs:
        return None if may_lack else "the index names no file"
    names = sorted(columns(con, inputs))
    have = columns(con, outputs)
    if not may_lack and not set(names) <= have:
        return f"columns are lost: {sorted(set(names) - have)}"

    def select(there):
        return ", ".join(f'"{n}"::VARCHAR AS "{n}"' if n in there else f'NULL::VARCHAR AS "{n}"' for n in names)

    con.execute(f"CREATE OR REPLACE TABLE wanted AS SELECT {select(set(names))} FROM {READ}", [inputs])
    con.execute(f"CREATE OR REPLACE TABLE found AS SELECT {select(have)} FROM {READ}", [outputs])
    doubled = con.execute("SELECT count(*) FROM (FROM found EXCEPT ALL FROM wanted)").fetchone()[0]
    if doubled:
        return f"{doubled} rows are doubled or made up"
    lost = con.execute("SELECT count(*) FROM (FROM wanted EXCEPT ALL FROM found)").fetchone()[0]
    if lost and not may_lack:
        return f"{lost} rows are lost"
    for path in outputs:
        if path.endswith(".1.parquet"):
            continue
        times = con.execute(f'SELECT "{ORDER}" FROM {READ}', [[path]]).fetchnumpy()[ORDER]
        if len(times) > 1 and (times[1:] < times[:-1]).any():
            return f"{path} is not sorted by {ORDER}"
    return None


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        states = json.load(file)
    con = duckdb.connect(config={"threads": 2})
    problems = [(state["name"], problem(con, state)) for state in states]
    problems = [(name, text) for name, text in problems if text]
    for name, text in problems:
        print(f"{name}: {text}")
    if not problems:
        print(f"{len(states)} states are as they should be")
    sys.exit(1 if problems else 0)


main()
