#!/usr/bin/env python3
"""make.py FOLDER: Parquet files of every writer that a lake may have, with every type that it makes.

Each writer makes three files below FOLDER: two unsorted ones that overlap, and a sorted one that
follows them in row groups that may be copied undecoded. `cases.json` in FOLDER lists what is to be
merged: each writer's files alone, and files of several writers together. The same files each time.
"""
import datetime as dt
import decimal
import json
import os
import random
import sys

import duckdb
import fastparquet
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 900
GROUP_ROWS = 300
EPOCH = dt.datetime(1970, 1, 1)
FILES = ("a", "b", "c")


def times(file):
    """Keys: many are equal, within a file and between `a` and `b`; those of `c` follow, sorted."""
    rng = random.Random(file)
    if file == "c":
        return [10**18 + 10_000 + i // 2 for i in range(ROWS)]
    return [10**18 + rng.randrange(500) for _ in range(ROWS)]


def values(file, name, make, null_share=0.2):
    """A column of Python values, some of them null."""
    rng = random.Random(f"{file} {name}")
    return [None if rng.random() < null_share else make(rng) for _ in range(ROWS)]


def whole(bits, signed=True):
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return lambda rng: rng.choice([low, high, 0, rng.randint(low, high)])


def real(rng):
    return rng.choice([float("nan"), float("inf"), float("-inf"), -0.0, 0.0, rng.uniform(-1e9, 1e9)])


def text(rng):
    return rng.choice(["", "é", "Ω" * 40, "x" * 200, str(rng.random())])


def tag(rng):
    return f"host-{rng.randrange(9)}"


def octets(rng):
    return rng.randbytes(rng.choice([0, 1, 3, 80]))


def number(precision, scale):
    def make(rng):
        digits = rng.randint(-(10**precision - 1), 10**precision - 1)
        return decimal.Decimal(digits).scaleb(-scale, decimal.Context(prec=80))
    return make


def day(rng):
    return dt.date(1970, 1, 1) + dt.timedelta(days=rng.randint(-90_000, 90_000))


def clock(rng):
    return dt.time(rng.randrange(24), rng.randrange(60), rng.randrange(60), rng.randrange(1000) * 1000)


def moment(rng):
    """Between 1700 and 2250, whole seconds, so that every unit holds it."""
    return EPOCH + dt.timedelta(seconds=rng.randint(-8_500_000_000, 8_800_000_000))


def span(rng):
    return dt.timedelta(seconds=rng.randint(-(10**9), 10**9))


def numbers_list(rng):
    return [rng.choice([None, rng.randrange(100)]) for _ in range(rng.randrange(4))]


def arrow_flat():
    """Every flat type that Arrow writes to Parquet, as (name, type, maker)."""
    yield from ((f"int{bits}", getattr(pa, f"int{bits}")(), whole(bits)) for bits in (8, 16, 32, 64))
    yield from ((f"uint{bits}", getattr(pa, f"uint{bits}")(), whole(bits, False)) for bits in (8, 16, 32, 64))
    yield "float16", pa.float16(), lambda rng: np.float16(rng.uniform(-100, 100))
    yield "float32", pa.float32(), real
    yield "float64", pa.float64(), real
    yield "bool", pa.bool_(), lambda rng: rng.random() < 0.5
    for precision, scale in ((4, 2), (9, 0), (18, 6), (38, 10)):
        yield f"decimal{precision}", pa.decimal128(precision, scale), number(precision, scale)
    yield "decimal60", pa.decimal256(60, 20), number(60, 20)
    yield "small_decimal32", pa.decimal32(7, 3), number(7, 3)
    yield "small_decimal64", pa.decimal64(16, 3), number(16, 3)
    yield "date32", pa.date32(), day
    yield "date64", pa.date64(), day
    yield "time32", pa.time32("ms"), clock
    for unit in ("us", "ns"):
        yield f"time64_{unit}", pa.time64(unit), clock
    for unit in ("s", "ms", "us", "ns"):
        yield f"timestamp_{unit}", pa.timestamp(unit), moment
        for zone in ("UTC", "Europe/Berlin", "+05:30"):
            yield f"timestamp_{unit}_{zone}", pa.timestamp(unit, zone), moment
        yield f"duration_{unit}", pa.duration(unit), span
    for name in ("string", "large_string", "string_view"):
        yield name, getattr(pa, name)(), text
    for name in ("binary", "large_binary", "binary_view"):
        yield name, getattr(pa, name)(), octets
    yield "fixed", pa.binary(5), lambda rng: rng.randbytes(5)
    yield "uuid", pa.uuid(), lambda rng: rng.randbytes(16)
    yield "json", pa.json_(), lambda rng: json.dumps({"n": rng.randrange(9)})
    for index in (pa.int8(), pa.int32(), pa.uint16()):
        yield f"dictionary_{index}", pa.dictionary(index, pa.string()), tag
    yield "dictionary_int64", pa.dictionary(pa.int32(), pa.int64()), whole(64)
    yield "nothing", pa.null(), lambda rng: None


def arrow_nested():
    item = pa.struct([("n", pa.int32()), ("s", pa.string())])
    record = lambda rng: {"n": rng.choice([None, rng.randrange(9)]), "s": rng.choice([None, text(rng)])}
    yield "list", pa.list_(pa.int64()), numbers_list
    yield "large_list", pa.large_list(pa.string()), lambda rng: [text(rng) for _ in range(rng.randrange(3))]
    yield "fixed_list", pa.list_(pa.int16(), 3), lambda rng: [rng.randrange(9) for _ in range(3)]
    yield "struct", item, record
    yield "deep", pa.struct([("a", item), ("l", pa.list_(item))]), lambda rng: {"a": record(rng), "l": [record(rng)] * rng.randrange(3)}
    yield "list_of_lists", pa.list_(pa.list_(pa.float64())), lambda rng: [[rng.random()] * rng.randrange(3), None, []]
    yield "map", pa.map_(pa.string(), pa.int64()), lambda rng: [(f"k{i}", rng.choice([None, i])) for i in range(rng.randrange(3))]
    yield "map_of_structs", pa.map_(pa.int32(), item), lambda rng: [(i, record(rng)) for i in range(rng.randrange(3))]


def arrow_table(file, kinds):
    arrays, fields = [pa.array(times(file))], [pa.field("__timestamp", pa.int64(), nullable=False, metadata={"role": "key"})]
    for name, kind, make in kinds:
        cells = values(file, name, make)
        if isinstance(kind, pa.BaseExtensionType):
            arrays.append(pa.ExtensionArray.from_storage(kind, pa.array(cells, kind.storage_type)))
        else:
            arrays.append(pa.array(cells, kind))
        fields.append(pa.field(name, kind))
    return pa.table(arrays, schema=pa.schema(fields, metadata={"made by": "a writer"}))


def pyarrow_writer(kinds, **options):
    def write(path, file):
        settings = {"row_group_size": GROUP_ROWS, "compression": "zstd"} | options
        pq.write_table(arrow_table(file, kinds()), path, **settings)
    return write


def arrow_go(path, file):
    """As GigAPI writes: row groups of 8,124 rows, plain pages, statistics, no page index, no Arrow schema."""
    rng = random.Random(file)
    rows = 20_000
    first = 10**18 + (10**9 if file == "c" else 0)
    keys = sorted(first + rng.randrange(10**6) for _ in range(rows)) if file == "c" else [first + rng.randrange(10**6) for _ in range(rows)]
    table = pa.table({
        "__timestamp": pa.array(keys, pa.int64()),
        "host": pa.array([f"host-{rng.randrange(64)}" for _ in range(rows)]),
        "value": pa.array([rng.random() for _ in range(rows)]),
        "count": pa.array([rng.randrange(1 << 40) for _ in range(rows)], pa.uint64()),
    })
    pq.write_table(table, path, row_group_size=8124, compression="snappy", use_dictionary=False, store_schema=False, version="2.6")


def far_int96(path, file):
    """Days that nanoseconds in 64 bits do not reach; Spark's way to say "for ever"."""
    seen = values(file, "far", lambda rng: rng.choice([dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999_999), moment(rng)]))
    table = pa.table({"__timestamp": pa.array(times(file), pa.int64()), "seen": pa.array(seen, pa.timestamp("us"))})
    pq.write_table(table, path, row_group_size=GROUP_ROWS, use_deprecated_int96_timestamps=True)


def duckdb_writer(path, file):
    with duckdb.connect() as db:
        db.execute("SELECT setseed(?)", [{"a": 0.1, "b": 0.2, "c": 0.3}[file]])
        db.execute("SET threads = 1")
        db.execute("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")
        keys = "1000000000000010000 + i // 2" if file == "c" else "1000000000000000000 + (random() * 500)::BIGINT"
        kinds = {
            **{kind.lower(): f"(random() * 100 - 50)::{kind}" for kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE")},
            **{kind.lower(): f"(random() * 100)::{kind}" for kind in ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")},
            **{f"decimal{p}": f"(random() * 90)::DECIMAL({p}, 2)" for p in (4, 9, 18, 38)},
            "flag": "random() < 0.5",
            "day": "DATE '1970-01-01' + (random() * 30000)::INTEGER",
            "clock": "TIME '01:02:03.456789'",
            "clock_tz": "TIMETZ '01:02:03+02'",
            **{kind.lower(): f"(TIMESTAMP '2001-02-03 04:05:06' + INTERVAL (i) SECOND)::{kind}" for kind in ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS")},
            "timestamp_tz": "TIMESTAMPTZ '2001-02-03 04:05:06+02' + INTERVAL (i) SECOND",
            "interval": "INTERVAL (i) MONTH + INTERVAL 2 DAY + INTERVAL 3 SECOND",
            "words": "repeat('w', (random() * 9)::INTEGER)",
            "blob": "encode(i::VARCHAR)",
            "id": "uuid()",
            "mood": "enum_range(NULL::mood)[1 + i % 3]",
            "json": "('{\"n\": ' || i || '}')::JSON",
            "list": "CASE i % 3 WHEN 0 THEN [] WHEN 1 THEN [i, NULL] END",
            "array": "array_value(i, i + 1, i + 2)",
            "struct": "{'n': i, 's': CASE WHEN i % 2 = 0 THEN i::VARCHAR END}",
            "map": "map {'a': i, 'b': NULL}",
            "nothing": "NULL",
        }
        # A null ARRAY is written in a form that pyarrow cannot read.
        kinds_with_nulls = {name: sql for name, sql in kinds.items() if name != "array"}
        columns = kinds["array"] + " AS array_, " + ", ".join(f"CASE WHEN i % 7 <> {place % 7} THEN {sql} END AS {name}_" for place, (name, sql) in enumerate(kinds_with_nulls.items()))
        db.execute(f"COPY (SELECT {keys} AS __timestamp, {columns} FROM range({ROWS}) t(i)) TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {GROUP_ROWS})")


def polars_writer(path, file):
    kinds = {
        **{f"int{bits}": (getattr(pl, f"Int{bits}"), whole(bits)) for bits in (8, 16, 32, 64)},
        **{f"uint{bits}": (getattr(pl, f"UInt{bits}"), whole(bits, False)) for bits in (8, 16, 32, 64)},
        "float32": (pl.Float32, real),
        "float64": (pl.Float64, real),
        "flag": (pl.Boolean, lambda rng: rng.random() < 0.5),
        "decimal": (pl.Decimal(18, 4), number(18, 4)),
        "decimal38": (pl.Decimal(38, 10), number(38, 10)),
        "day": (pl.Date, day),
        "clock": (pl.Time, clock),
        **{f"datetime_{unit}": (pl.Datetime(unit), moment) for unit in ("ms", "us", "ns")},
        "datetime_zone": (pl.Datetime("us", "Europe/Berlin"), lambda rng: moment(rng).replace(tzinfo=dt.timezone.utc)),
        "duration": (pl.Duration("us"), span),
        "text": (pl.String, text),
        "octets": (pl.Binary, octets),
        "category": (pl.Categorical, tag),
        "enum": (pl.Enum([f"host-{i}" for i in range(9)]), tag),
        "nothing": (pl.Null, lambda rng: None),
        "list": (pl.List(pl.Int64), numbers_list),
        "array": (pl.Array(pl.Int32, 2), lambda rng: [rng.randrange(9), rng.randrange(9)]),
        "struct": (pl.Struct({"n": pl.Int32, "s": pl.String}), lambda rng: {"n": rng.randrange(9), "s": text(rng)}),
    }
    frame = pl.DataFrame(
        [pl.Series("__timestamp", times(file), pl.Int64)]
        + [pl.Series(name, values(file, name, make), kind) for name, (kind, make) in kinds.items()]
    )
    frame.write_parquet(path, compression="zstd", row_group_size=GROUP_ROWS)


def fastparquet_writer(time_kind):
    def write(path, file):
        frame = pd.DataFrame({"__timestamp": np.array(times(file), dtype="int64")})
        for bits in (8, 16, 32, 64):
            frame[f"int{bits}"] = np.array(values(file, f"int{bits}", whole(bits), 0), dtype=f"int{bits}")
            frame[f"uint{bits}"] = np.array(values(file, f"uint{bits}", whole(bits, False), 0), dtype=f"uint{bits}")
        frame["nullable"] = pd.array(values(file, "nullable", whole(32)), dtype="Int64")
        frame["float32"] = np.array(values(file, "float32", real, 0), dtype="float32")
        frame["float64"] = np.array(values(file, "float64", real, 0))
        frame["flag"] = np.array(values(file, "flag", lambda rng: rng.random() < 0.5, 0))
        frame["text"] = pd.Series(values(file, "text", text), dtype=object)
        frame["octets"] = pd.Series(values(file, "octets", octets), dtype=object)
        frame["category"] = pd.Categorical(values(file, "category", tag))
        frame["moment"] = pd.Series(values(file, "moment", moment, 0), dtype="datetime64[ns]")
        # Written as a time of day, so no more than one.
        frame["span"] = pd.to_timedelta(values(file, "span", lambda rng: rng.randrange(86_400), 0), unit="s")
        fastparquet.write(path, frame, compression="ZSTD", row_group_offsets=GROUP_ROWS, write_index=False, times=time_kind,
                          object_encoding={"text": "utf8", "octets": "bytes"})
    return write


def shared(path, file, writer):
    """The columns that every writer makes alike: what a table has whose writers differ."""
    columns = {
        "__timestamp": pa.array(times(file), pa.int64()),
        "host": pa.array(values(file + writer, "host", tag), pa.string()),
        "small": pa.array(values(file + writer, "small", whole(32), 0), pa.int32()),
        "large": pa.array(values(file + writer, "large", whole(64), 0), pa.int64()),
        "load": pa.array(values(file + writer, "load", lambda rng: rng.uniform(-9, 9), 0), pa.float64()),
        "flag": pa.array(values(file + writer, "flag", lambda rng: rng.random() < 0.5, 0), pa.bool_()),
        "seen": pa.array(values(file + writer, "seen", moment, 0), pa.timestamp("us")),
        f"only_{writer}": pa.array(values(file + writer, "own", tag), pa.string()),
    }
    table = pa.table(columns)
    if writer == "pyarrow":
        pq.write_table(table, path, row_group_size=GROUP_ROWS)
    elif writer == "int96":
        pq.write_table(table, path, use_deprecated_int96_timestamps=True, store_schema=False)
    elif writer == "arrow_go":
        pq.write_table(table, path, row_group_size=8124, use_dictionary=False, store_schema=False, data_page_version="2.0")
    elif writer == "duckdb":
        with duckdb.connect() as db:
            db.register("shared", table)
            db.execute(f"COPY shared TO '{path}' (FORMAT parquet)")
    elif writer == "polars":
        pl.from_arrow(table).write_parquet(path)
    elif writer == "fastparquet":
        frame = table.to_pandas()
        frame["host"], frame[f"only_{writer}"] = (frame[name].astype(object).where(frame[name].notna(), None) for name in ("host", f"only_{writer}"))
        fastparquet.write(path, frame, write_index=False, object_encoding={"host": "utf8", f"only_{writer}": "utf8"})


DELTAS = {"int64": "DELTA_BINARY_PACKED", "string": "DELTA_BYTE_ARRAY", "binary": "DELTA_LENGTH_BYTE_ARRAY", "float64": "BYTE_STREAM_SPLIT", "fixed": "DELTA_BYTE_ARRAY"}


def some_flat():
    return (kind for kind in arrow_flat() if kind[0] in (*DELTAS, "bool", "int32", "timestamp_ns", "timestamp_us"))


WRITERS = {
    "pyarrow_flat": pyarrow_writer(arrow_flat),
    "pyarrow_nested": pyarrow_writer(arrow_nested),
    "pyarrow_plain": pyarrow_writer(arrow_flat, use_dictionary=False, store_schema=False, data_page_version="2.0"),
    "pyarrow_version_1": pyarrow_writer(some_flat, version="1.0", write_statistics=False, compression="gzip"),
    "pyarrow_indexed": pyarrow_writer(arrow_nested, write_page_index=True, data_page_size=512, compression="snappy"),
    "pyarrow_small_decimals": pyarrow_writer(lambda: (kind for kind in arrow_flat() if "decimal" in kind[0]), store_decimal_as_integer=True),
    "pyarrow_deltas": pyarrow_writer(some_flat, use_dictionary=False, column_encoding=DELTAS | {"bool": "RLE"}, compression="none"),
    "pyarrow_int96": pyarrow_writer(some_flat, use_deprecated_int96_timestamps=True),
    "far_int96": far_int96,
    "arrow_go": arrow_go,
    "duckdb": duckdb_writer,
    "polars": polars_writer,
    "fastparquet": fastparquet_writer("int64"),
    "fastparquet_int96": fastparquet_writer("int96"),
}
MIXED = ("pyarrow", "int96", "arrow_go", "duckdb", "polars", "fastparquet")


def main(folder):
    cases = []

    def add(name, writers):
        files = []
        for place, (writer, write) in enumerate(writers):
            for file in FILES:
                path = os.path.join(folder, f"{name}-{place}-{writer}-{file}.parquet")
                write(path, file)
                files.append(path)
        cases.append({"name": name, "inputs": files})

    def sharing(writer):
        return writer, lambda path, file: shared(path, file, writer)

    for writer, write in WRITERS.items():
        add(writer, [(writer, write)])
    for other in MIXED[1:]:
        add(f"mixed_pyarrow_{other}", [sharing("pyarrow"), sharing(other)])
    add("mixed_all", [sharing(writer) for writer in MIXED])
    with open(os.path.join(folder, "cases.json"), "w", encoding="utf-8") as out:
        json.dump(cases, out)


if __name__ == "__main__":
    main(sys.argv[1])
