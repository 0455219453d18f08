-- The index and its planning: entries are checked completely, then applied, then the
-- counts and queues that changed are written once each.

local PATH_BYTES_MAX = 1024
local NAME_BYTES_MAX = 200

-- Randomness of the caller, if any; ids also hold the clock, a counter and their content.
local nonce = ''
local id_count = 0

local function fresh_id(content)
  id_count = id_count + 1
  local hex = redis.sha1hex(clock[1] .. '.' .. clock[2] .. '.' .. id_count .. '.' .. nonce .. '.' .. content)
  local variant = tonumber(string.sub(hex, 17, 17), 16) % 4 + 1
  return string.sub(hex, 1, 8) .. '-' .. string.sub(hex, 9, 12)
    .. '-4' .. string.sub(hex, 14, 16)
    .. '-' .. string.sub('89ab', variant, variant) .. string.sub(hex, 18, 20)
    .. '-' .. string.sub(hex, 21, 32)
end

-- [[timeout_sec, max_size_bytes, iteration], …]: the place in the array is the iteration.
local function parse_levels(text, where)
  if text == '' or text == 'null' then
    return {}
  end
  local ok, configured = pcall(cjson.decode, text)
  if not ok or type(configured) ~= 'table' then
    return nil, 'ERR ' .. where .. ' holds no JSON array of merge configurations'
  end
  local levels = {}
  for place, level in pairs(configured) do
    if type(place) ~= 'number' then
      return nil, 'ERR ' .. where .. ' holds no JSON array of merge configurations'
    end
    if type(level) == 'table' and type(level[1]) == 'number' and type(level[2]) == 'number' then
      levels[place] = { timeout_s = math.floor(level[1]), size_max = level[2] }
    elseif level ~= cjson.null then
      return nil, 'ERR ' .. where .. ': merge configuration ' .. place .. ' is not [timeout_sec, max_size_bytes, iteration]'
    end
  end
  return levels
end

-- name -> {ttl_sec, layer_to, …}
local function parse_layers(text, where)
  local ok, layers = pcall(cjson.decode, text)
  if ok and layers == cjson.null then
    return {}
  end
  if not ok or type(layers) ~= 'table' then
    return nil, 'ERR ' .. where .. ' holds no JSON object of layers'
  end
  for name, layer in pairs(layers) do
    if type(name) ~= 'string' or type(layer) ~= 'table' then
      return nil, 'ERR ' .. where .. ' holds no JSON object of layers'
    end
    layer.ttl_s = type(layer.ttl_sec) == 'number' and layer.ttl_sec or 0
    layer.next = type(layer.layer_to) == 'string' and layer.layer_to or ''
  end
  return layers
end

local function name_problem(what, name, empty_allowed)
  if type(name) ~= 'string' then
    return what .. ' is missing or not a string'
  end
  if name == '' and not empty_allowed then
    return what .. ' is empty'
  end
  if #name > NAME_BYTES_MAX then
    return what .. ' is longer than 200 bytes'
  end
  if string.find(name, '[:/\\%c]') or name == '.' or name == '..' then
    return what .. ' holds a colon, slash or control character, or is a folder reference'
  end
  return nil
end

-- Names and folders repeat from entry to entry: each is looked at once in a call.
local name_problems = {}
local function known_name_problem(what, name, empty_allowed)
  local key = type(name) == 'string' and what .. name or nil
  if key and name_problems[key] ~= nil then
    return name_problems[key] or nil
  end
  local problem = name_problem(what, name, empty_allowed)
  if key then
    name_problems[key] = problem or false
  end
  return problem
end

local inside = {}
local function is_inside(dir)
  if inside[dir] == nil then
    local framed = '/' .. dir .. '/'
    inside[dir] = not string.find(framed, '//', 1, true)
      and not string.find(framed, '/./', 1, true)
      and not string.find(framed, '/../', 1, true)
      and not string.find(dir, '[\\%c]')
  end
  return inside[dir]
end

local function invalid_path(path)
  local shown = string.sub(path, 1, PATH_BYTES_MAX)
  return 'Error processing file: ' .. shown .. ' - Invalid file path format: ' .. shown
end

local function refused(path, reason)
  return nil, 'Error processing file: ' .. string.sub(path, 1, PATH_BYTES_MAX) .. ' - ' .. reason
end

-- Checks one entry against everything that applying it relies on. Without `layers` any layer is accepted.
local function check_entry(text, position, layers)
  local entry = decode_object(text)
  if not entry then
    return nil, 'Error processing entry ' .. position .. ': it is not a JSON object'
  end
  local path = entry.path
  if type(path) ~= 'string' then
    return nil, 'Error processing entry ' .. position .. ': path is missing or not a string'
  end
  if entry.cmd ~= 'ADD' and entry.cmd ~= 'DELETE' then
    return refused(path, 'cmd is neither ADD nor DELETE')
  end
  if entry.writer_id == cjson.null or entry.writer_id == nil then
    entry.writer_id = ''
  end
  local problem = known_name_problem('database', entry.database)
    or known_name_problem('table', entry.table)
    or known_name_problem('layer', entry.layer, true)
    or known_name_problem('writer_id', entry.writer_id, true)
  local dir, name = string.match(path, '^(.*)/([^/]*)$')
  if not dir or dir == '' then
    return nil, invalid_path(path)
  end
  if problem then
    return refused(path, problem)
  end
  local checked = {
    text = text,
    is_add = entry.cmd == 'ADD',
    database = entry.database,
    table_name = entry.table,
    layer = entry.layer,
    writer = entry.writer_id,
    path = path,
    dir = dir,
    files_key = 'files:' .. entry.database .. ':' .. entry.table .. ':' .. string.match(path, '[^/]+'),
    folders_key = 'folders:' .. entry.database .. ':' .. entry.table,
  }
  if checked.is_add then
    local digits = string.match(name, '^.+%.(%d+)%.parquet$')
    local iteration = tonumber(digits)
    if not iteration or iteration < 1 or iteration > 4294967295 or #path > PATH_BYTES_MAX
      or #name > 255 or string.find(name, '[\\%c]') or not is_inside(dir) then
      return nil, invalid_path(path)
    end
    checked.iteration = iteration
    local size = entry.size_bytes
    if type(size) ~= 'number' or size < 0 or size ~= size or size >= 2 ^ 63 then
      return refused(path, 'size_bytes is missing or not a size')
    end
    checked.size = size
    if layers then
      local layer = layers[entry.layer]
      if not layer then
        return refused(path, 'layer "' .. entry.layer .. '" is not configured')
      end
      if layer.ttl_s > 0 then
        local chunk = entry.str_chunk_time
        if chunk == nil or chunk == '' or chunk == cjson.null then
          chunk = type(entry.chunk_time) == 'number' and int_text(entry.chunk_time) or ''
        end
        if type(chunk) ~= 'string' or not string.find(chunk, '^%-?%d+$') then
          return refused(path, 'str_chunk_time is missing or not a number, and its layer has a TTL')
        end
        checked.chunk_s = tonumber(string.sub(chunk, 1, -10)) or 0
        checked.ttl = layer
      end
    end
  end
  return checked
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

-- Everything that could still fail while an entry is applied; nil when nothing can.
local function apply_problem(batch, entry)
  local folder = folder_of(batch, entry)
  if folder.problem == nil then
    folder.problem = wrong_type(entry.files_key, 'hash') or wrong_type(entry.folders_key, 'hash') or false
    if not folder.problem then
      local count = redis.call('HGET', entry.folders_key, entry.dir)
      if count and not string.find(count, '^%-?%d+$') then
        folder.problem = 'ERR the count of folder ' .. entry.dir .. ' in ' .. entry.folders_key .. ' is not a number'
      end
    end
  end
  if folder.problem then
    return folder.problem
  end
  local kind = 'drop'
  if entry.is_add then
    kind = destination(batch, entry)
  end
  entry.kind = kind
  if kind then
    entry.queue_key = kind == 'merge' and merge_key(entry) or side_key(kind, entry)
    return wrong_type(entry.queue_key, 'list')
  end
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
  return plan.head .. int_text(plan.size) .. ',"paths":[' .. table.concat(plan.paths, ',') .. ']}'
end

-- The list's last plan, if it takes more files: read once in a call. Our own form is extended
-- as text; a long plan is never decoded. A plan that was tried before takes no more files, so
-- that what failed does not grow; what we do not understand is left alone.
local function tail_plan(key)
  local text = redis.call('LINDEX', key, -1)
  if not text then
    return nil
  end
  local head, size, start = string.match(text, '^({"id":"[^"\\]*","time_s":%d+,"size":)(%d+),"paths":%["()')
  if head and string.find(text, ']', start, true) == #text - 1 then
    return { head = head, size = tonumber(size), paths = { string.sub(text, start - 1, -3) }, is_stored = true }
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
  local texts = {}
  for place, path in ipairs(plan.paths) do
    if type(path) ~= 'string' then
      return nil
    end
    texts[place] = cjson.encode(path)
  end
  return {
    head = '{"id":' .. cjson.encode(plan.id) .. ',"time_s":' .. int_text(plan.time_s) .. ',"size":',
    size = plan.size, paths = texts, is_stored = true,
  }
end

local function plan_merge(batch, entry, level)
  local queue = queue_of(batch, entry.queue_key)
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
  plan.paths[#plan.paths + 1] = cjson.encode(entry.path)
end

-- Names repeat from item to item.
local encoded_names = {}
local function encoded(name)
  local text = encoded_names[name]
  if not text then
    text = cjson.encode(name)
    encoded_names[name] = text
  end
  return text
end

local function push_item(batch, key, item)
  local queue = queue_of(batch, key)
  queue.pushed[#queue.pushed + 1] = item
end

local function plan_move(batch, entry)
  push_item(batch, entry.queue_key, '{"id":"' .. fresh_id(entry.path)
    .. '","writer_id":' .. encoded(entry.writer)
    .. ',"database":' .. encoded(entry.database)
    .. ',"table":' .. encoded(entry.table_name)
    .. ',"path_from":' .. cjson.encode(entry.path)
    .. ',"layer_from":' .. encoded(entry.layer)
    .. ',"path_to":' .. cjson.encode(entry.dir .. '/' .. fresh_id(entry.path) .. '.' .. int_text(entry.iteration) .. '.parquet')
    .. ',"layer_to":' .. encoded(entry.ttl.next)
    .. ',"time_s":' .. int_text(entry.chunk_s + math.ceil(entry.ttl.ttl_s)) .. '}')
end

local function plan_drop(batch, entry)
  push_item(batch, entry.queue_key, '{"id":"' .. fresh_id(entry.path)
    .. '","writer_id":' .. encoded(entry.writer)
    .. ',"layer":' .. encoded(entry.layer)
    .. ',"path":' .. cjson.encode(entry.path)
    .. ',"database":' .. encoded(entry.database)
    .. ',"table":' .. encoded(entry.table_name)
    .. ',"time_s":' .. int_text(batch.drop_at_s) .. '}')
end

-- A file that is in the index already only changes its entry: it was counted and planned before.
local function add_file(batch, entry)
  if redis.call('HSET', entry.files_key, entry.path, entry.text) == 0 then
    return
  end
  local folder = folder_of(batch, entry)
  folder.change = folder.change + 1
  if entry.kind == 'merge' then
    plan_merge(batch, entry, batch.levels[entry.iteration])
  elseif entry.kind == 'move' then
    plan_move(batch, entry)
  end
end

-- A file is named by layer and path; "" stands for the first layer, whose name is not known here.
local function delete_file(batch, entry)
  local stored = redis.call('HGET', entry.files_key, entry.path)
  if not stored then
    return
  end
  -- Most clients write the layer first: then nothing needs to be decoded.
  local layer = entry.layer
  local first = string.match(entry.text, '^{"layer":"[^"\\]*"')
  if not first or string.sub(stored, 1, #first) ~= first then
    local known = decode_object(stored)
    layer = known and known.layer
  end
  if type(layer) == 'string' and layer ~= entry.layer and layer ~= '' and entry.layer ~= '' then
    return
  end
  redis.call('HDEL', entry.files_key, entry.path)
  local folder = folder_of(batch, entry)
  folder.change = folder.change - 1
  plan_drop(batch, entry)
end

local function write_batch(batch)
  for _, folder in ipairs(batch.folder_list) do
    if folder.change ~= 0 then
      if redis.call('HINCRBY', folder.key, folder.dir, int_text(folder.change)) <= 0 then
        redis.call('HDEL', folder.key, folder.dir)
      end
    end
  end
  for _, queue in ipairs(batch.queue_list) do
    if queue.stored then
      redis.call('LSET', queue.key, -1, plan_text(queue.stored))
    end
    for _, item in ipairs(queue.pushed) do
      redis.call('RPUSH', queue.key, type(item) == 'table' and plan_text(item) or item)
    end
  end
end
