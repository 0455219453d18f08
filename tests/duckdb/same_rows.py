"""same_rows.py REQUEST.json: do the outputs hold exactly the rows of the inputs, each output sorted?

REQUEST is {"outputs": [...], "inputs": [...]}. An independent check with DuckDB: nothing here knows
gigamerge. Prints one line; exit code 0 when all is well, 1 when not.
"""
import json
import sys

import duckdb

ORDER = "__timestamp"


def columns(con, files):
    rows = con.execute("DESCRIBE SELECT * FROM read_parquet(?, union_by_name = true, hive_partitioning = false)", [files]).fetchall()
    return {row[0] for row in rows}


def tally(con, files, names):
    """Row count and an order-independent sum of row hashes over `names`; a missing column counts as null."""
    have = columns(con, files)
    values = ", ".join(f'"{n}"::VARCHAR' if n in have else "NULL::VARCHAR" for n in names)
    query = f"SELECT count(*), sum(hash({values})::HUGEINT), bit_xor(hash({values})) FROM read_parquet(?, union_by_name = true, hive_partitioning = false)"
    return con.execute(query, [files]).fetchone()


def main():
    with open(sys.argv[1]) as file:
        request = json.load(file)
    con = duckdb.connect()
    outputs, inputs = request["outputs"], request["inputs"]
    if not outputs:
        sys.exit("there are no outputs")
    names = sorted(columns(con, inputs) | columns(con, outputs))
    want, got = tally(con, inputs, names), tally(con, outputs, names)
    if want != got:
        sys.exit(f"rows differ: inputs have {want}, outputs {got}")
    for path in outputs:
        times = con.execute(f'SELECT "{ORDER}" FROM read_parquet(?, hive_partitioning = false)', [path]).fetchnumpy()[ORDER]
        if len(times) > 1 and (times[1:] < times[:-1]).any():
            sys.exit(f"{path} is not sorted by {ORDER}")
    print(f"{got[0]} rows in {len(inputs)} inputs and {len(outputs)} outputs, every output sorted")


main()
