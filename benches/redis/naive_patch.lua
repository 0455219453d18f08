-- The way of working that the recorded speeds of the original show, for one ADD after the other:
-- the tail plan is decoded and encoded again for each file. Not for use.
-- KEYS[1] JSON [[timeout_sec,max_size_bytes,iteration],…]; ARGV JSON index entries.
local levels = cjson.decode(KEYS[1])
local now_s = tonumber(redis.call('TIME')[1])
for n, text in ipairs(ARGV) do
  local entry = cjson.decode(text)
  local dir, iteration = string.match(entry.path, '^(.*)/[^/]*%.(%d+)%.parquet$')
  local base = ':' .. entry.database .. ':' .. entry.table
  local files = 'files' .. base .. ':' .. string.match(dir, '^[^/]*')
  if entry.cmd == 'ADD' then
    redis.call('HINCRBY', 'folders' .. base, dir, 1)
    redis.call('HSET', files, entry.path, cjson.encode(entry))
    local key = 'merge' .. base .. ':' .. iteration .. ':' .. dir .. ':' .. entry.layer .. ':' .. entry.writer_id .. ':idle'
    local level = levels[tonumber(iteration)]
    local tail = redis.call('LINDEX', key, -1)
    local plan = tail and cjson.decode(tail)
    if plan and plan.size + entry.size_bytes <= level[2] then
      plan.size = plan.size + entry.size_bytes
      plan.paths[#plan.paths + 1] = entry.path
      redis.call('LSET', key, -1, cjson.encode(plan))
    else
      redis.call('RPUSH', key, cjson.encode({ id = redis.sha1hex(n .. text), time_s = now_s + level[1], size = entry.size_bytes, paths = { entry.path } }))
    end
  else
    redis.call('HDEL', files, entry.path)
    if redis.call('HINCRBY', 'folders' .. base, dir, -1) == 0 then
      redis.call('HDEL', 'folders' .. base, dir)
    end
    redis.call('RPUSH', 'drop' .. base .. ':' .. entry.layer .. ':' .. entry.writer_id .. ':idle',
      cjson.encode({ id = redis.sha1hex(n .. text), writer_id = entry.writer_id, layer = entry.layer, path = entry.path, database = entry.database, table = entry.table, time_s = now_s + 30 }))
  end
end
return #ARGV
