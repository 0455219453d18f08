-- Index entries, merge configurations and layers, as callers give them: read and checked
-- completely, before anything relies on them.

local PATH_BYTES_MAX = 1024
local NAME_BYTES_MAX = 200

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

-- The keys of each folder, as its last entry had them: most entries of a call share them.
local places = {}
local function place_of(entry, dir)
  local place = places[dir]
  if place and place.database == entry.database and place.table_name == entry.table then
    return place
  end
  local base = entry.database .. ':' .. entry.table
  place = {
    database = entry.database,
    table_name = entry.table,
    files_key = 'files:' .. base .. ':' .. (string.match(dir, '[^/]+') or ''),
    folders_key = 'folders:' .. base,
  }
  places[dir] = place
  return place
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
  local place = place_of(entry, dir)
  local checked = {
    text = text,
    is_add = entry.cmd == 'ADD',
    database = entry.database,
    table_name = entry.table,
    layer = entry.layer,
    writer = entry.writer_id,
    path = path,
    dir = dir,
    place = place,
    files_key = place.files_key,
    folders_key = place.folders_key,
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
