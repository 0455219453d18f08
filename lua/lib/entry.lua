-- Index entries, merge configurations and layers, as callers give them: read and checked
-- completely, before anything relies on them.

local PATH_BYTES_MAX = 1024
local NAME_BYTES_MAX = 200
local NAME_PART_BYTES_MAX = 255
local SIZE_END = 2 ^ 63

local match, find, sub, decode = string.match, string.find, string.sub, cjson.decode

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

local function is_inside(dir)
  local framed = '/' .. dir .. '/'
  return not string.find(framed, '//', 1, true)
    and not string.find(framed, '/./', 1, true)
    and not string.find(framed, '/../', 1, true)
    and not string.find(dir, '[\\%c]')
end

-- A place: what the entries of one folder, layer and writer share, checked and made once in a
-- call. By folder stands the one that came last, for most folders have one only.
local last_places, all_places = {}, {}

local function is_of(place, entry, writer, dir)
  return place and place.dir == dir and place.layer == entry.layer and place.writer == writer
    and place.table_name == entry.table and place.database == entry.database
end

local function place_of(entry, writer, dir)
  local database, table_name, layer = entry.database, entry.table, entry.layer
  local problem = name_problem('database', database)
    or name_problem('table', table_name)
    or name_problem('layer', layer, true)
    or name_problem('writer_id', writer, true)
  if problem then
    return nil, problem
  end
  local name = database .. ':' .. table_name .. ':' .. layer .. ':' .. writer .. ':' .. dir
  local place = all_places[name]
  if not place then
    local base = database .. ':' .. table_name
    place = {
      database = database,
      table_name = table_name,
      layer = layer,
      writer = writer,
      dir = dir,
      is_inside = is_inside(dir),
      files_key = 'files:' .. base .. ':' .. (string.match(dir, '[^/]+') or ''),
      folders_key = 'folders:' .. base,
    }
    place.of_entry = { __index = place }
    all_places[name] = place
  end
  last_places[dir] = place
  return place
end

local function invalid_path(path)
  local shown = string.sub(path, 1, PATH_BYTES_MAX)
  return 'Error processing file: ' .. shown .. ' - Invalid file path format: ' .. shown
end

local function refused(path, reason)
  return nil, 'Error processing file: ' .. string.sub(path, 1, PATH_BYTES_MAX) .. ' - ' .. reason
end

-- Where the last slash is. Short paths have few: plain searches find it faster than a pattern.
local function last_slash(path)
  if #path > PATH_BYTES_MAX then
    return (find(path, '/[^/]*$'))
  end
  local slash
  local at = find(path, '/', 1, true)
  while at do
    slash, at = at, find(path, '/', at + 1, true)
  end
  return slash
end

-- Checks one entry against everything that applying it relies on. Without `layers` any layer is
-- accepted. What the entry shares with others is read through it from its place.
local function check_entry(text, position, layers)
  local ok, entry = pcall(decode, text)
  local path = ok and type(entry) == 'table' and entry.path
  if type(path) ~= 'string' then
    return nil, 'Error processing entry ' .. position .. ': '
      .. (decode_object(text) and 'path is missing or not a string' or 'it is not a JSON object')
  end
  local command = entry.cmd
  local is_add = command == 'ADD'
  if not is_add and command ~= 'DELETE' then
    return refused(path, 'cmd is neither ADD nor DELETE')
  end
  local writer = entry.writer_id
  if writer == nil or writer == cjson.null then
    writer = ''
  end
  local slash = last_slash(path)
  if not slash or slash == 1 then
    return nil, invalid_path(path)
  end
  local dir = sub(path, 1, slash - 1)
  local place = last_places[dir]
  if not is_of(place, entry, writer, dir) then
    local problem
    place, problem = place_of(entry, writer, dir)
    if problem then
      return refused(path, problem)
    end
  end
  if not is_add then
    return setmetatable({ text = text, is_add = false, path = path, place = place, route = false }, place.of_entry)
  end
  -- %C: no control character.
  local iteration = tonumber(match(path, '^%C+%.(%d+)%.parquet$', slash + 1))
  if not iteration or iteration < 1 or iteration > 4294967295 or #path > PATH_BYTES_MAX
    or #path - slash > NAME_PART_BYTES_MAX or find(path, '\\', slash, true) or not place.is_inside then
    return nil, invalid_path(path)
  end
  local size = entry.size_bytes
  if type(size) ~= 'number' or size < 0 or size ~= size or size >= SIZE_END then
    return refused(path, 'size_bytes is missing or not a size')
  end
  local chunk_s
  if layers then
    local layer = layers[place.layer]
    if not layer then
      return refused(path, 'layer "' .. place.layer .. '" is not configured')
    end
    if layer.ttl_s > 0 then
      local chunk = entry.str_chunk_time
      if chunk == nil or chunk == '' or chunk == cjson.null then
        chunk = type(entry.chunk_time) == 'number' and int_text(entry.chunk_time) or ''
      end
      if type(chunk) ~= 'string' or not find(chunk, '^%-?%d+$') then
        return refused(path, 'str_chunk_time is missing or not a number, and its layer has a TTL')
      end
      place.ttl, chunk_s = layer, tonumber(sub(chunk, 1, -10)) or 0
    end
  end
  -- All fields that it will have: a table that grows is copied.
  return setmetatable({
    text = text, is_add = true, path = path, place = place,
    iteration = iteration, size = size, chunk_s = chunk_s, route = false,
  }, place.of_entry)
end
