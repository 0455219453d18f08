-- end_merge: ends a merge; with ARGV also replaces its sources by its output, all or nothing.
--
-- KEYS[1] text  database
-- KEYS[2] text  table
-- KEYS[3] text  <iteration>:<dir>, or <iteration> alone (then every folder is looked at)
-- KEYS[4] text  layer
-- KEYS[5] text  writer id
-- KEYS[6] text  the plan's id
-- ARGV[1] JSON  the plan's exact text in :processing
-- ARGV[2] text  grace: seconds until the sources' bytes may be deleted
-- ARGV[3] JSON  merge configurations, as for patch_index
-- ARGV[4] JSON  layers, as for patch_index
-- ARGV[5] JSON  the output's index entry with "cmd": "ADD"; "" for none
-- ARGV[6] text  randomness that goes into new ids
-- ARGV[7] text  number of sources, n
-- ARGV[8...]    n paths of sources, then path and reason of each file that was set aside
--
-- Without ARGV: the plan with this id leaves :processing if exactly one has it. Reply "".
-- With ARGV, an array:
--   {"committed"}          done now, or by an earlier call whose reply was lost
--   {"lease_lost"}         the plan is not in :processing with this text; nothing changed
--   {"source_gone", path}  a source is not in the index, or in another layer; nothing changed
--   {"output_exists"}      the index names the output already; nothing changed
-- Hash kept:<db>:<table> then holds source -> second until which its bytes stay. A delete from an
-- earlier life of a path, which still waits, must not end the grace of this one.
-- Files set aside stay in the index; hash quarantine:<db>:<table>: path -> {"reason","at_s","layer"}.
-- Errors, nothing changed: ERR …, and those of patch_index for the output.

if #KEYS < 6 then
  return { err = 'ERR six KEYS are needed: database, table, iteration, layer, writer id, merge id' }
end
local database, table_name, suffix, layer, writer, id = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
-- Arguments of one command; Lua's stack ends at about 8,000.
local ARGUMENTS_MAX = 1000

-- The texts of all items with this id in a list.
local function items_with_id(list_key, found)
  local marker = cjson.encode(id)
  local start = 0
  repeat
    local texts = redis.call('LRANGE', list_key, start, start + ARGUMENTS_MAX - 1)
    for _, text in ipairs(texts) do
      if string.find(text, marker, 1, true) then
        local item = decode_object(text)
        if item and item.id == id then
          found[#found + 1] = { list = list_key, text = text }
        end
      end
    end
    start = start + ARGUMENTS_MAX
  until #texts < ARGUMENTS_MAX
end

local function end_by_id()
  local found = {}
  local prefix = 'merge:' .. database .. ':' .. table_name .. ':' .. suffix
  local rest = ':' .. layer .. ':' .. writer .. ':processing'
  if string.find(suffix, ':', 1, true) then
    items_with_id(prefix .. rest, found)
  else
    for _, dir in ipairs(redis.call('HKEYS', 'folders:' .. database .. ':' .. table_name)) do
      items_with_id(prefix .. ':' .. dir .. rest, found)
    end
  end
  -- Ids of the original repeat within a millisecond: one of several must not be ended by chance.
  if #found == 1 then
    redis.call('LREM', found[1].list, 1, found[1].text)
  end
  return ''
end

if #ARGV == 0 then
  return end_by_id()
end

local queue = queue_keys('merge', database, table_name, suffix, layer, writer)
local quarantine_key = 'quarantine:' .. database .. ':' .. table_name
local kept_key = 'kept:' .. database .. ':' .. table_name
local problem = queue_problem(queue) or wrong_type(quarantine_key, 'hash') or wrong_type(kept_key, 'hash')
if problem then
  return { err = problem }
end
local plan_item, grace_s, source_count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[7])
if not grace_s or not source_count or #ARGV < 7 + source_count or (#ARGV - 7 - source_count) % 2 ~= 0 then
  return { err = 'ERR grace, number of sources, sources and pairs of path and reason are needed' }
end
local levels, layers
levels, problem = parse_levels(ARGV[3], 'ARGV[3]')
if levels then
  layers, problem = parse_layers(ARGV[4], 'ARGV[4]')
end
if problem then
  return { err = problem }
end
nonce = ARGV[6]

local batch = new_batch(levels, layers, 0)
batch.drop_at_s = seconds_from_now(grace_s)
local output
if ARGV[5] ~= '' then
  output, problem = check_entry(ARGV[5], 1, layers)
  if output and not (output.is_add and output.database == database and output.table_name == table_name) then
    problem = 'ERR the output is no ADD of this table'
  end
  problem = problem or apply_problem(batch, output)
  if problem then
    return { err = problem }
  end
end

local plan = redis.call('LPOS', queue.processing, plan_item) and decode_object(plan_item)
local indexed = output and redis.call('HGET', output.files_key, output.path)
if indexed then
  -- Nobody else can have stored this very text: the first reply was lost.
  if not plan and indexed == output.text then
    return { 'committed' }
  end
  -- Also without a plan: bytes that the index names must not be taken for leftovers.
  return { 'output_exists' }
end
if not plan then
  return { 'lease_lost' }
end

local planned = {}
for _, path in ipairs(type(plan.paths) == 'table' and plan.paths or {}) do
  planned[path] = true
end

-- What the sources of one folder share.
local places = {}
local function place_of_source(dir)
  local place = places[dir]
  if not place then
    place = {
      dir = dir, database = database, table_name = table_name, layer = layer, writer = writer,
      files_key = 'files:' .. database .. ':' .. table_name .. ':' .. string.match(dir, '^[^/]*'),
      folders_key = 'folders:' .. database .. ':' .. table_name,
    }
    place.of_entry = { __index = place }
    places[dir] = place
  end
  return place
end

-- Sources by the hash that holds them.
local sources, source_lists, list_order = {}, {}, {}
for place = 8, 7 + source_count do
  local path = ARGV[place]
  local dir = string.match(path, '^(.+)/[^/]*$')
  if not dir or not planned[path] then
    return { err = 'ERR source ' .. path .. ' is not in the plan' }
  end
  local place_in = place_of_source(dir)
  local source = setmetatable({ path = path, place = place_in, route = false, stored = false }, place_in.of_entry)
  problem = apply_problem(batch, source)
  if problem then
    return { err = problem }
  end
  -- A repeated source would be counted and dropped twice.
  planned[path] = false
  sources[#sources + 1] = source
  if not source_lists[source.files_key] then
    source_lists[source.files_key] = {}
    list_order[#list_order + 1] = source.files_key
  end
  local paths = source_lists[source.files_key]
  paths[#paths + 1] = path
end

local function in_chunks(paths, act)
  for first = 1, #paths, ARGUMENTS_MAX do
    local last = math.min(first + ARGUMENTS_MAX - 1, #paths)
    local gone = act(first, { unpack(paths, first, last) })
    if gone then
      return gone
    end
  end
end

-- What is kept no longer goes away with later commits, twice as fast as it comes, and all of it
-- when there are none.
local function keep_sources()
  local looked = redis.call('HRANDFIELD', kept_key, math.min(2 * #sources + 10, ARGUMENTS_MAX), 'WITHVALUES')
  for place = 1, #looked, 2 do
    if (tonumber(looked[place + 1]) or 0) < now_s then
      redis.call('HDEL', kept_key, looked[place])
    end
  end
  local until_s = int_text(batch.drop_at_s)
  for first = 1, #sources, ARGUMENTS_MAX do
    local pairs_of = {}
    for place = first, math.min(first + ARGUMENTS_MAX - 1, #sources) do
      pairs_of[#pairs_of + 1] = sources[place].path
      pairs_of[#pairs_of + 1] = until_s
    end
    redis.call('HSET', kept_key, unpack(pairs_of))
  end
  local expires_s = math.max(batch.drop_at_s, now_s + redis.call('TTL', kept_key)) + 1
  redis.call('EXPIREAT', kept_key, int_text(expires_s))
end

-- The sources' entries: what waits for its deletion can be brought back (undelete).
local stored = {}
local start_of_layer = '{"layer":' .. cjson.encode(layer)
for _, files_key in ipairs(list_order) do
  local paths = source_lists[files_key]
  local gone = in_chunks(paths, function(first, chunk)
    for place, text in ipairs(redis.call('HMGET', files_key, unpack(chunk))) do
      -- Most clients write the layer first: then nothing needs to be decoded.
      if not text or string.sub(text, 1, #start_of_layer) ~= start_of_layer then
        local entry = text and decode_object(text)
        if not entry or (entry.layer or '') ~= layer then
          return paths[first + place - 1]
        end
      end
      stored[paths[first + place - 1]] = text
    end
  end)
  if gone then
    return { 'source_gone', gone }
  end
end

if output then
  add_file(batch, output)
end
for _, files_key in ipairs(list_order) do
  in_chunks(source_lists[files_key], function(_, chunk)
    redis.call('HDEL', files_key, unpack(chunk))
  end)
end
batch.replaced_by, batch.replaced_count = output and output.path, source_count
for _, source in ipairs(sources) do
  source.stored = stored[source.path]
  local folder = folder_of(batch, source)
  folder.change = folder.change - 1
  plan_drop(batch, source)
end
write_batch(batch)
if #sources > 0 then
  keep_sources()
end
for place = 8 + source_count, #ARGV, 2 do
  redis.call('HSET', quarantine_key, ARGV[place], '{"reason":' .. cjson.encode(ARGV[place + 1])
    .. ',"at_s":' .. int_text(now_s) .. ',"layer":' .. cjson.encode(layer) .. '}')
end
redis.call('HDEL', queue.announced, announced_field(queue, plan))
redis.call('LREM', queue.processing, 1, plan_item)
return { 'committed' }
