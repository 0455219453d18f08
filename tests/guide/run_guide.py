"""Runs the code of INTEGRATION.md, taken from the document itself, against a Redis.

Usage: run_guide.py INTEGRATION.md REDIS_URL SCRIPTS_DIR OUT_JSON
SCRIPTS_DIR holds patch_index.lua, get_merge_plan.lua and end_merge.lua, complete.
What the guide leaves out (two helpers of its query, and the place of its query method in the
class) is supplied here; nothing of its own text is changed but the server's address.
"""

import json
import pathlib
import re
import sys


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def block_with(blocks, marker):
    found = [block for block in blocks if marker in block]
    assert len(found) == 1, f"{marker!r} is in {len(found)} blocks of the guide"
    return found[0]


def main():
    document, url, scripts, out = sys.argv[1:]
    blocks = code_blocks(pathlib.Path(document).read_text())
    names = {"__name__": "guide"}
    for name in ("patch_index", "get_merge_plan", "end_merge"):
        text = (pathlib.Path(scripts) / f"{name}.lua").read_text()
        names[f"{name.upper()}_SCRIPT"] = text

    def run(marker):
        source = block_with(blocks, marker)
        source = source.replace("redis://localhost:6379/0", url)
        exec(compile(source, f"guide: {marker}", "exec"), names)

    run("class IndexEntry")
    run("class RedisConnection")

    # The guide connects by host and port; a socket has neither.
    import redis

    if url.startswith("unix://"):
        connection = names["RedisConnection"]
        connection._create_client = lambda self: redis.Redis(
            unix_socket_path=url.removeprefix("unix://"), decode_responses=False
        )
    run("class RedisIndex:")
    run("class QueryOptions")

    index = names["RedisIndex"]
    entry_type = names["IndexEntry"]

    def get_main_keys(self, options):
        pattern = f"files:{self.database}:{self.table}:*"
        return [key.decode() for key in self.connection.client.scan_iter(match=pattern)]

    def filter_keys(self, fields, day, options):
        return {k: v for k, v in fields.items() if options.folder.encode() in k}

    def filter_values(self, fields, options):
        found = []
        for text in fields.values():
            data = json.loads(text)
            found.append(
                entry_type(
                    database=data["database"],
                    table=data["table"],
                    path=data["path"],
                    size_bytes=data["size_bytes"],
                    min_time=int(data["str_min_time"]),
                    max_time=int(data["str_max_time"]),
                )
            )
        return found

    index._get_main_keys = get_main_keys
    index._filter_keys = filter_keys
    index._filter_values = filter_values
    index.query = names["query"]

    run("def test_redis_integration")
    names["test_redis_integration"]()
    run("# Initialize the Redis index")

    everything = index(url, "default", "test").query(names["QueryOptions"]())
    result = {
        "registered": len(everything),
        "times_exact": all(e.max_time - e.min_time > 0 for e in everything),
        "example_paths": [entry.path for entry in names["results"]],
        "missing_is_none": index(url, "default", "test").get("date=2024-01-15/no.1.parquet")
        is None,
    }
    pathlib.Path(out).write_text(json.dumps(result))


main()
