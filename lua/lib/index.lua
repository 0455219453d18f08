-- Changes of the index, and what is planned from them: entries are applied one by one, then
-- the counts and queues that changed are written once each.

local call, format, encode = redis.call, string.format, cjson.encode

-- Randomness of the caller, if any; ids also hold the clock, what they were first made for in
-- this call, and a counter.
local nonce = ''
local id_count = 0
local id_start

local function fresh_id(content)
  if not id_start then
    local hex = redis.sha1hex(clock[1] .. '.' .. clock[2] .. '.' .. nonce .. '.' .. content)
    local variant = tonumber(string.sub(hex, 17, 17), 16) % 4 + 1
    id_start = string.sub(hex, 1, 8) .. '-' .. string.sub(hex, 9, 12) .. '-4' .. string.sub(hex, 14, 16)
      .. '-' .. string.sub('89ab', variant, variant) .. string.sub(hex, 18, 20)
      .. '-' .. string.sub(hex, 21, 26)
  end
  id_count = id_count + 1
  return id_start .. format('%06x', id_count)
end

-- One call's changes. `levels` and `layers` say what is planned for new files.
local function new_batch(levels, layers, grace_s)
  return { levels = levels, layers = layers, drop_at_s = now_s + grace_s, folders = {}, folder_list = {}, queues = {}, queue_list = {} }
end

local function merge_key(entry)
  return 'merge:' .. entry.database .. ':' .. entry.table_name .. ':' .. int_text(entry.iteration)
    .. ':' .. entry.dir .. ':' .. entry.layer .. ':' .. entry.writer .. ':idle'
end

local function side_key(prefix, entry)
  return prefix .. ':' .. entry.database .. ':' .. entry.table_name .. ':' .. entry.layer .. ':' .. entry.writer .. ':idle'
end

-- Where a new file goes: its merge queue, its move queue, or none; the earlier of both.
local function destination(batch, entry)
  local level = batch.levels[entry.iteration]
  if level and level.timeout_s < 0 then
    level = nil
  end
  if level and not (entry.ttl and entry.ttl.ttl_s < level.timeout_s) then
    return 'merge', level
  end
  if entry.ttl then
    return 'move'
  end
  return nil
end

local function folder_of(batch, entry)
  local of_table = batch.folders[entry.folders_key]
  if not of_table then
    of_table = {}
    batch.folders[entry.folders_key] = of_table
  end
  local folder = of_table[entry.dir]
  if not folder then
    folder = { key = entry.folders_key, dir = entry.dir, change = 0 }
    of_table[entry.dir] = folder
    batch.folder_list[#batch.folder_list + 1] = folder
  end
  return folder
end

local function folder_problem(folder, entry)
  if folder.problem == nil then
    folder.problem = wrong_type(entry.files_key, 'hash') or wrong_type(entry.folders_key, 'hash') or false
    if not folder.problem then
      local count = call('HGET', entry.folders_key, entry.dir)
      if count and not string.find(count, '^%-?%d+$') then
        folder.problem = 'ERR the count of folder ' .. entry.dir .. ' in ' .. entry.folders_key .. ' is not a number'
      end
    end
  end
  return folder.problem
end

-- Everything that could still fail while an entry is applied; nil when nothing can. Where it
-- goes is found once for each place and iteration (0 for a delete). An entry without a place is
-- its own.
local function apply_problem(batch, entry)
  local place = entry.place or entry
  local iteration = entry.is_add and entry.iteration or 0
  local routes = place.routes
  if not routes then
    routes = {}
    place.routes, place.folder = routes, folder_of(batch, entry)
  end
  local route = routes[iteration]
  if not route then
    local problem = folder_problem(place.folder, entry)
    if problem then
      return problem
    end
    route = { kind = 'drop' }
    if entry.is_add then
      route.kind, route.level = destination(batch, entry)
    end
    if route.kind then
      route.queue_key = route.kind == 'merge' and merge_key(entry) or side_key(route.kind, entry)
      problem = wrong_type(route.queue_key, 'list')
      if problem then
        return problem
      end
    end
    routes[iteration] = route
  end
  entry.route = route
  return nil
end

local function queue_of(batch, key)
  local queue = batch.queues[key]
  if not queue then
    queue = { key = key, pushed = {} }
    batch.queues[key] = queue
    batch.queue_list[#batch.queue_list + 1] = queue
  end
  return queue
end

local function plan_text(plan)
  local paths = encode(plan.paths)
  local start = plan.head .. int_text(plan.size) .. ',"paths":'
  if plan.stored_paths then
    return start .. plan.stored_paths .. ',' .. string.sub(paths, 2) .. '}'
  end
  return start .. paths .. '}'
end

-- Some 14,000 paths. Whoever claims, renews or splits a plan reads all of it, in one call.
local PLAN_BYTES_MAX = 1048576

-- The list's last plan, if it takes more files: read once in a call. Our own form is extended
-- as text; a long plan is never decoded. A plan that was tried before takes no more files, so
-- that what failed does not grow; what we do not understand is left alone.
local function tail_plan(key)
  local text = call('LINDEX', key, -1)
  if not text or #text > PLAN_BYTES_MAX then
    return nil
  end
  local head, size, start = string.match(text, '^({"id":"[^"\\]*","time_s":%d+,"size":)(%d+),"paths":()%["')
  if head and string.find(text, ']', start, true) == #text - 1 then
    return { head = head, size = tonumber(size), paths = {}, stored_paths = string.sub(text, start, -3), is_stored = true }
  end
  local plan = decode_object(text)
  if not plan or type(plan.id) ~= 'string' or type(plan.time_s) ~= 'number'
    or type(plan.size) ~= 'number' or type(plan.paths) ~= 'table' then
    return nil
  end
  for field in pairs(plan) do
    if field ~= 'id' and field ~= 'time_s' and field ~= 'size' and field ~= 'paths' then
      return nil
    end
  end
  local paths = {}
  for place, path in ipairs(plan.paths) do
    if type(path) ~= 'string' then
      return nil
    end
    paths[place] = path
  end
  return {
    head = '{"id":' .. encode(plan.id) .. ',"time_s":' .. int_text(plan.time_s) .. ',"size":',
    size = plan.size, paths = paths, is_stored = true,
  }
end

local function plan_merge(batch, entry, level)
  local queue = queue_of(batch, (entry.route or entry).queue_key)
  if not queue.was_read then
    queue.was_read = true
    queue.plan = tail_plan(queue.key)
  end
  local plan = queue.plan
  if not plan or plan.size + entry.size > level.size_max then
    plan = {
      head = '{"id":"' .. fresh_id(entry.path) .. '","time_s":' .. int_text(now_s + level.timeout_s) .. ',"size":',
      size = 0, paths = {},
    }
    queue.plan = plan
    queue.pushed[#queue.pushed + 1] = plan
  elseif plan.is_stored then
    queue.stored = plan
  end
  plan.size = plan.size + entry.size
  plan.paths[#plan.paths + 1] = entry.path
end

-- Names repeat from item to item.
local encoded_names = {}
local function encoded(name)
  local text = encoded_names[name]
  if not text then
    text = encode(name)
    encoded_names[name] = text
  end
  return text
end

local function push_item(batch, key, item)
  local queue = queue_of(batch, key)
  queue.pushed[#queue.pushed + 1] = item
end

local function plan_move(batch, entry)
  push_item(batch, (entry.route or entry).queue_key, '{"id":"' .. fresh_id(entry.path)
    .. '","writer_id":' .. encoded(entry.writer)
    .. ',"database":' .. encoded(entry.database)
    .. ',"table":' .. encoded(entry.table_name)
    .. ',"path_from":' .. encode(entry.path)
    .. ',"layer_from":' .. encoded(entry.layer)
    .. ',"path_to":' .. encode(entry.dir .. '/' .. fresh_id(entry.path) .. '.' .. int_text(entry.iteration) .. '.parquet')
    .. ',"layer_to":' .. encoded(entry.ttl.next)
    .. ',"time_s":' .. int_text(entry.chunk_s + math.ceil(entry.ttl.ttl_s)) .. '}')
end

-- A file that a merge replaced keeps what is needed to bring it back.
local function replaced_fields(batch, entry)
  if not (batch.replaced_by and entry.stored) then
    return ''
  end
  if not batch.replaced_text then
    batch.replaced_text = ',"replaced_by":' .. encode(batch.replaced_by)
      .. ',"replaced_count":' .. int_text(batch.replaced_count) .. ',"entry":'
  end
  return batch.replaced_text .. encode(entry.stored)
end

local function plan_drop(batch, entry)
  local place = entry.place or entry
  if not place.drop_start then
    place.drop_start = '","writer_id":' .. encoded(entry.writer)
      .. ',"layer":' .. encoded(entry.layer)
      .. ',"path":'
    place.drop_end = ',"database":' .. encoded(entry.database)
      .. ',"table":' .. encoded(entry.table_name)
      .. ',"time_s":' .. int_text(batch.drop_at_s)
  end
  push_item(batch, (entry.route or entry).queue_key, '{"id":"' .. fresh_id(entry.path) .. place.drop_start
    .. encode(entry.path) .. place.drop_end .. replaced_fields(batch, entry) .. '}')
end

-- A new file is counted and planned.
local function plan_file(batch, entry)
  local route = entry.route
  entry.place.folder.change = entry.place.folder.change + 1
  if route.kind == 'merge' then
    plan_merge(batch, entry, route.level)
  elseif route.kind == 'move' then
    plan_move(batch, entry)
  end
end

-- A file that is in the index already only changes its entry: it was counted and planned before.
local function add_file(batch, entry)
  if call('HSET', entry.place.files_key, entry.path, entry.text) == 1 then
    plan_file(batch, entry)
  end
end

-- A file is named by layer and path; "" stands for the first layer, whose name is not known here.
local function is_stored_as(stored, entry)
  -- Most clients write the layer first: then nothing needs to be decoded.
  local place = entry.place
  local start = place.stored_start
  if not start then
    start = '{"layer":' .. encoded(entry.layer)
    place.stored_start = start
  end
  if sub(stored, 1, #start) == start then
    return true
  end
  local known = decode_object(stored)
  local layer = known and known.layer
  return type(layer) ~= 'string' or layer == entry.layer or layer == '' or entry.layer == ''
end

-- Entries of one command, two arguments each: Lua's stack ends at about 8,000.
local RUN_MAX = 500

-- Adds or removes files of one hash, each path once.
local function apply_run(batch, run, paths)
  local key, is_add = run[1].place.files_key, run[1].is_add
  local stored, arguments = call('HMGET', key, unpack(paths)), {}
  for at = 1, #run do
    local entry, text = run[at], stored[at]
    if is_add then
      arguments[2 * at - 1], arguments[2 * at] = entry.path, entry.text
      if not text then
        plan_file(batch, entry)
      end
    elseif text and is_stored_as(text, entry) then
      arguments[#arguments + 1] = entry.path
      entry.place.folder.change = entry.place.folder.change - 1
      plan_drop(batch, entry)
    end
  end
  if #arguments > 0 then
    call(is_add and 'HSET' or 'HDEL', key, unpack(arguments))
  end
end

-- In the order of the entries. Those of one hash that follow each other and do the same go in one command.
local function apply_entries(batch, entries)
  local run, paths, seen = {}, {}, {}
  local key, is_add
  for at = 1, #entries do
    local entry = entries[at]
    local path, files_key = entry.path, entry.place.files_key
    if files_key ~= key or entry.is_add ~= is_add or seen[path] or #run == RUN_MAX then
      if key then
        apply_run(batch, run, paths)
      end
      run, paths, seen = {}, {}, {}
      key, is_add = files_key, entry.is_add
    end
    run[#run + 1] = entry
    paths[#paths + 1] = path
    seen[path] = true
  end
  if key then
    apply_run(batch, run, paths)
  end
end

-- Items of one command.
local PUSH_MAX = 500

local function write_batch(batch)
  for _, folder in ipairs(batch.folder_list) do
    if folder.change ~= 0 then
      if call('HINCRBY', folder.key, folder.dir, int_text(folder.change)) <= 0 then
        call('HDEL', folder.key, folder.dir)
      end
    end
  end
  for _, queue in ipairs(batch.queue_list) do
    if queue.stored then
      call('LSET', queue.key, -1, plan_text(queue.stored))
    end
    local texts = {}
    for place, item in ipairs(queue.pushed) do
      texts[#texts + 1] = type(item) == 'table' and plan_text(item) or item
      if #texts == PUSH_MAX or place == #queue.pushed then
        call('RPUSH', queue.key, unpack(texts))
        texts = {}
      end
    end
  end
end
