"""soak_reader.py CONFIG.json: queries a lake again and again, as any reader does, and counts what is wrong.

CONFIG is {"socket", "key", "data", "acked", "rows_per_file", "grace_s", "once"}. A query takes its file list
from Redis in one call, with the layer of each file ("data" has their folders), waits for up to half of the grace, and reads every file with DuckDB. Whatever was
registered before must be there, each row once, with its value. One line of JSON for each query; ends when
stdin does.
"""
import json
import os
import random
import select
import sys
import time

import duckdb
import redis

WRITER = 1_000_000_000


def acked(config):
    with open(config["acked"], encoding="utf-8") as file:
        return [int(count) for count in file.read().split()]


def query(con, server, config):
    before = acked(config)
    listed = server.hgetall(config["key"])
    listed_at = time.monotonic()
    if not listed:
        return None
    if not config.get("once"):
        time.sleep(random.uniform(0, config["grace_s"] / 2))
    files = [os.path.join(config["data"][json.loads(entry)["layer"]], path.decode()) for path, entry in listed.items()]
    found = {"rows": 0, "lost": 0, "doubled": 0, "wrong": 0}
    try:
        rows, distinct, wrong = con.execute(
            "SELECT count(*), count(DISTINCT id), count(*) FILTER (value <> id * 7 % 1000003) "
            "FROM read_parquet(?, union_by_name = true, hive_partitioning = false)", [files]).fetchone()
        counts = dict(con.execute(
            f"SELECT id // {WRITER}, count(DISTINCT id) FILTER (id % {WRITER} < acked) FROM "
            "read_parquet(?, union_by_name = true, hive_partitioning = false) "
            "JOIN (SELECT unnest(range(len($2))) AS writer, unnest($2) AS acked) ON writer = id // 1000000000 GROUP BY 1".replace("?", "$1"),
            [files, [count * config["rows_per_file"] for count in before]]).fetchall())
    except duckdb.Error as error:
        # Later than the grace, nothing is promised.
        if time.monotonic() - listed_at > config["grace_s"] - 1:
            return {**found, "late": 1}
        return {**found, "lost": 1, "error": str(error).splitlines()[0]}
    lost = sum(max(0, count * config["rows_per_file"] - counts.get(writer, 0)) for writer, count in enumerate(before))
    # A file is registered whole: a part of one is a loss too.
    lost += -distinct % config["rows_per_file"]
    return {"rows": rows, "lost": lost, "doubled": rows - distinct, "wrong": wrong}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        config = json.load(file)
    con = duckdb.connect(config={"threads": 1})
    server = redis.Redis(unix_socket_path=config["socket"])
    while True:
        try:
            found = query(con, server, config)
        except redis.RedisError:
            found = None
            time.sleep(0.1)
        if found:
            print(json.dumps(found), flush=True)
        if config.get("once") and found or select.select([sys.stdin], [], [], 0.05)[0]:
            return


main()
