-- end_move: moves a file's index entry to the next layer, or expires it in the last one, all or nothing.
--
-- KEYS[1] text  database
-- KEYS[2] text  table
-- KEYS[3] text  the layer that the file leaves
-- KEYS[4] text  writer id
-- ARGV[1] JSON  the item's exact text in :processing
-- ARGV[2] text  grace: seconds until the bytes in the old layer may be deleted
-- ARGV[3] JSON  merge configurations, as for patch_index
-- ARGV[4] JSON  layers, as for patch_index
-- ARGV[5] text  the new path: same folder and iteration; "" when the file expires
-- ARGV[6] text  the new layer, "" when the file expires
-- ARGV[7] text  randomness that goes into new ids
--
-- The entry changes in "layer" and "path" only, as text. From there on the file is planned as a new
-- one of its layer would be, its old bytes are queued for deletion, and a mark in quarantine goes
-- with it. A file expires only in a last layer whose TTL, by ARGV[4], is over for it.
-- Reply, an array:
--   {"committed"}          done now, or by an earlier call whose reply was lost
--   {"lease_lost"}         the item is not in :processing with this text; nothing changed
--   {"source_gone", path}  the file is not in the index, or in another layer; nothing changed
--   {"output_exists"}      the index names the new path already; nothing changed
-- Errors, nothing changed: ERR …, and those of patch_index for the changed entry.

local database, table_name, layer, writer = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local queue = queue_keys('move', database, table_name, '', layer, writer)
local quarantine_key = 'quarantine:' .. database .. ':' .. table_name
local problem = queue_problem(queue) or wrong_type(quarantine_key, 'hash')
local move_item, grace_s, path_to, layer_to = ARGV[1], tonumber(ARGV[2]), ARGV[5], ARGV[6]
if not problem and (#ARGV < 7 or not grace_s) then
  problem = 'ERR item, grace, merge configurations, layers, path, layer and randomness are needed'
end
local levels, layers
if not problem then
  levels, problem = parse_levels(ARGV[3], 'ARGV[3]')
end
if not problem then
  layers, problem = parse_layers(ARGV[4], 'ARGV[4]')
end
if problem then
  return { err = problem }
end
nonce = ARGV[7]

-- Where a string of well-formed JSON that starts at `start` ends.
local function string_end(text, start)
  local at = start + 1
  while true do
    at = string.find(text, '["\\]', at)
    if not at or string.sub(text, at, at) == '"' then
      return at
    end
    at = at + 2
  end
end

-- Where a value of well-formed JSON that starts at `start` ends.
local function value_end(text, start)
  local first, depth, at = string.sub(text, start, start), 0, start
  if first == '"' then
    return string_end(text, start)
  elseif first ~= '{' and first ~= '[' then
    return string.match(text, '^[^,}%]%s]+()', start) - 1
  end
  repeat
    local found = string.sub(text, at, at)
    if found == '"' then
      at = string_end(text, at)
    else
      depth = depth + ((found == '{' or found == '[') and 1 or -1)
    end
    if depth > 0 then
      at = string.find(text, '["{}%[%]]', at + 1)
    end
  until depth == 0
  return at
end

-- The object's text with a field of its own (not of a column's bounds) set; nil when it has the field
-- not once.
local function with_own_field(text, name, value)
  local start, stop
  local at = string.match(text, '^%s*{%s*()')
  while string.sub(text, at, at) == '"' do
    local name_stop = string_end(text, at)
    local is_it = cjson.decode('[' .. string.sub(text, at, name_stop) .. ']')[1] == name
    local from = string.match(text, '^%s*:%s*()', name_stop + 1)
    local to = value_end(text, from)
    if is_it and start then
      return nil
    elseif is_it then
      start, stop = from, to
    end
    at = string.match(text, '^%s*,?%s*()', to + 1)
  end
  return start and string.sub(text, 1, start - 1) .. value .. string.sub(text, stop + 1)
end

local item = redis.call('LPOS', queue.processing, move_item) and decode_object(move_item)
-- The path of a lost call's item names its hash as well.
local path = (item or decode_object(move_item) or {}).path_from
local dir = type(path) == 'string' and string.match(path, '^(.+)/[^/]*$')
if not dir then
  return { err = 'ERR the item has no path_from with a folder' }
end
local source = {
  path = path, dir = dir, database = database, table_name = table_name, layer = layer, writer = writer,
  files_key = 'files:' .. database .. ':' .. table_name .. ':' .. string.match(dir, '^[^/]*'),
  folders_key = 'folders:' .. database .. ':' .. table_name,
}
local batch = new_batch(levels, layers, 0)
batch.drop_at_s = seconds_from_now(grace_s)
problem = apply_problem(batch, source)
if problem then
  return { err = problem }
end

if path_to ~= '' then
  local iteration = string.match(path_to, '%.(%d+)%.parquet$')
  if string.match(path_to, '^(.+)/[^/]*$') ~= dir or iteration ~= string.match(path, '%.(%d+)%.parquet$')
    or path_to == path or layer_to == layer then
    return { err = 'ERR the new path is not another one of the same folder and iteration, in another layer' }
  end
  local indexed = redis.call('HGET', source.files_key, path_to)
  if indexed then
    -- Its name belongs to this item and attempt alone: the first reply was lost.
    local entry = not item and decode_object(indexed)
    return { entry and entry.layer == layer_to and 'committed' or 'output_exists' }
  end
end
if not item then
  return { 'lease_lost' }
end

local stored = redis.call('HGET', source.files_key, path)
local entry = stored and decode_object(stored)
if not entry or (entry.layer or '') ~= layer then
  return { 'source_gone', path }
end

local output
local mark = redis.call('HGET', quarantine_key, path)
if path_to ~= '' then
  local text = with_own_field(stored, 'path', cjson.encode(path_to))
  text = text and with_own_field(text, 'layer', cjson.encode(layer_to))
  if not text then
    return { err = 'ERR the entry of ' .. path .. ' does not have path and layer once each' }
  end
  output, problem = check_entry(text, 1, layers)
  if output and not (output.is_add and output.database == database and output.table_name == table_name) then
    problem = 'ERR the entry of ' .. path .. ' is no ADD of this table'
  end
  if output and mark then
    -- What was set aside is moved on, and not merged.
    batch.levels = {}
  end
  problem = problem or apply_problem(batch, output)
else
  local rule, chunk = layers[layer], entry.str_chunk_time
  local chunk_s = type(chunk) == 'string' and string.find(chunk, '^%d+$') and tonumber(string.sub(chunk, 1, -10)) or 0
  if not rule or rule.ttl_s <= 0 or rule.next ~= '' then
    problem = 'ERR layer "' .. layer .. '" is not a last one with a TTL'
  elseif chunk_s <= 0 then
    problem = 'ERR the entry of ' .. path .. ' has no str_chunk_time, so that nobody knows when it expires'
  elseif chunk_s + math.ceil(rule.ttl_s) > now_s then
    problem = 'ERR the time of ' .. path .. ' in layer "' .. layer .. '" is not over'
  end
end
if problem then
  return { err = problem }
end

if output then
  add_file(batch, output)
end
redis.call('HDEL', source.files_key, path)
local folder = folder_of(batch, source)
folder.change = folder.change - 1
plan_drop(batch, source)
write_batch(batch)
if mark then
  local record = decode_object(mark) or {}
  redis.call('HDEL', quarantine_key, path)
  if output then
    redis.call('HSET', quarantine_key, path_to, '{"reason":' .. cjson.encode(tostring(record.reason))
      .. ',"at_s":' .. int_text(type(record.at_s) == 'number' and record.at_s or now_s)
      .. ',"layer":' .. cjson.encode(layer_to) .. '}')
  end
end
redis.call('HDEL', queue.announced, announced_field(queue, item))
redis.call('LREM', queue.processing, 1, move_item)
return { 'committed' }
