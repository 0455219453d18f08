-- Items of queues: looking for due ones, handing them out, setting broken ones aside.
-- Items are changed as text, so that fields and numbers of other programs survive.

-- How far a call looks behind items that are not due.
local LOOK_ITEMS_MAX = 128
local LOOK_BYTES_MAX = 4194304

local function queue_keys(prefix, database, table_name, suffix, layer, writer)
  local base = prefix .. ':' .. database .. ':' .. table_name
  if suffix ~= '' then
    base = base .. ':' .. suffix
  end
  base = base .. ':' .. layer .. ':' .. writer
  return {
    prefix = prefix,
    database = database,
    table_name = table_name,
    idle = base .. ':idle',
    processing = base .. ':processing',
    failed = base .. ':failed',
    announced = 'announced:' .. database .. ':' .. table_name,
    outlived = 'outlived:' .. database .. ':' .. table_name,
    field_prefix = (prefix == 'merge' and suffix or prefix) .. ':' .. layer .. ':' .. writer .. ':',
  }
end

local function queue_problem(queue)
  return wrong_type(queue.idle, 'list')
    or wrong_type(queue.processing, 'list')
    or wrong_type(queue.failed, 'list')
    or wrong_type(queue.announced, 'hash')
    or wrong_type(queue.outlived, 'hash')
end

-- The field of one claim in the hashes announced:… and outlived:…. Moves of one queue may share an
-- id, so theirs also names the file.
local function claim_field(queue, item, attempts)
  local field = queue.field_prefix .. tostring(item.id) .. ':' .. tostring(attempts or 0)
  if queue.prefix == 'move' then
    field = field .. ':' .. tostring(item.path_from)
  end
  return field
end

local function announced_field(queue, item)
  return claim_field(queue, item, item.attempts)
end

-- A count of our own in an item; anything else that stands there is none.
local function count_in(item, name)
  local count = item[name]
  return type(count) == 'number' and count >= 0 and count < 2 ^ 31 and math.floor(count) or 0
end

local function push_failed(queue, text, reason)
  redis.call('RPUSH', queue.failed, '{"reason":' .. cjson.encode(reason)
    .. ',"item":' .. cjson.encode(text) .. ',"at_s":' .. int_text(now_s) .. '}')
end

-- Where a field's value starts, and how often the text has a field of that name: 2 stands for more.
-- Plans have megabytes of paths: a plain search passes over them, a pattern would try each byte.
local function field_in(text, name)
  local quoted = '"' .. name .. '"'
  local count, start = 0, nil
  local at = string.find(text, quoted, 1, true)
  while at and count < 2 do
    local value = string.match(text, '^%s*:%s*()', at + #quoted)
    if value then
      count = count + 1
      start = start or value
    end
    at = string.find(text, quoted, at + 1, true)
  end
  return start, count
end

-- The item's text with one field set to a JSON value; nil when that cannot be done safely.
local function with_field(text, item, name, value)
  local start, count = field_in(text, name)
  local old = item[name]
  if count == 0 and old == nil then
    local rest = string.match(text, '^%s*{%s*(.*)$')
    local comma = string.sub(rest, 1, 1) == '}' and '' or ','
    return '{"' .. name .. '":' .. value .. comma .. rest
  end
  -- Twice, or under another spelling: it is not known which one a reader would take.
  if count ~= 1 or old == nil then
    return nil
  end
  local stop
  if type(old) == 'number' then
    stop = string.match(text, '^[%-%+%.%deE]+()', start)
  else
    local encoded = cjson.encode(old)
    stop = string.sub(text, start, start + #encoded - 1) == encoded and start + #encoded
  end
  if not stop then
    return nil
  end
  return string.sub(text, 1, start - 1) .. value .. string.sub(text, stop)
end

-- When an item without time_s is due: only moves may lack it (the original writes them so).
-- A move to "" deletes; without knowing the TTL it must not happen early, so it keeps waiting.
local function due_without_time(queue, item, layers)
  if queue.prefix ~= 'move' then
    return nil, 'it has no time_s'
  end
  local path, from = item.path_from, item.layer_from
  if type(path) ~= 'string' or type(from) ~= 'string' then
    return nil, 'it has neither time_s nor path_from and layer_from'
  end
  local layer = layers and layers[from]
  local first = string.match(path, '^([^/]+)/')
  local stored = first and redis.call('HGET',
    'files:' .. queue.database .. ':' .. queue.table_name .. ':' .. first, path)
  if not stored then
    return now_s
  end
  local entry = decode_object(stored)
  local chunk = entry and tostring(entry.str_chunk_time or '')
  if layer and chunk and string.find(chunk, '^%d+$') then
    return (tonumber(string.sub(chunk, 1, -10)) or 0) + (tonumber(layer.ttl_sec) or 0)
  end
  if item.layer_to == '' or item.layer_to == nil then
    return math.huge
  end
  return now_s
end

-- Moves to layers that the caller does not serve, behind which a call still looks.
local PASSED_ITEMS_MAX = 1000

local function is_passed_over(queue, item, served)
  return served and queue.prefix == 'move' and type(item.layer_to) == 'string' and not served[item.layer_to]
end

-- Reads a list's head, then further. Returns what is due (text, item, due_s), at most `count`,
-- and what can never be due (text, reason). Changes nothing.
local function look(queue, list_key, count, layers, served)
  local due, broken = {}, {}
  local start, bytes, step, passed = 0, 0, count > 1 and count or 1, 0
  while #due < count and start < LOOK_ITEMS_MAX + count + math.min(passed, PASSED_ITEMS_MAX)
    and bytes < LOOK_BYTES_MAX do
    local texts = redis.call('LRANGE', list_key, start, start + step - 1)
    for _, text in ipairs(texts) do
      bytes = bytes + #text
      local time_s = tonumber(string.match(text, '"time_s"%s*:%s*(%d+)[,}%s]'))
      if #due < count and not (time_s and time_s > now_s) then
        local item = decode_object(text)
        local due_s, reason
        if not item then
          reason = 'it is not a JSON object'
        elseif is_passed_over(queue, item, served) then
          passed, due_s = passed + 1, math.huge
        elseif type(item.time_s) == 'number' then
          due_s = item.time_s
        elseif item.time_s == nil then
          due_s, reason = due_without_time(queue, item, layers)
        else
          reason = 'its time_s is not a number'
        end
        if reason then
          broken[#broken + 1] = { text = text, reason = reason }
        elseif due_s <= now_s then
          due[#due + 1] = { text = text, item = item, due_s = due_s, list = list_key }
        end
      end
    end
    if #texts < step then
      break
    end
    start = start + step
    step = 32
  end
  return due, broken
end

local function set_broken_aside(queue, list_key, broken)
  for _, entry in ipairs(broken) do
    if redis.call('LREM', list_key, 1, entry.text) == 1 then
      push_failed(queue, entry.text, entry.reason)
    end
  end
end

-- How far back attempts are asked for that lost their lease though their worker lived.
local OUTLIVED_ATTEMPTS_MAX = 16

-- Attempts of this plan whose worker lost the lease and lived to say so; each is told once.
local function take_outlived(queue, item)
  local attempts = count_in(item, 'attempts')
  if queue.prefix == 'drop' or attempts == 0 or redis.call('EXISTS', queue.outlived) == 0 then
    return 0
  end
  local fields = {}
  for attempt = math.max(1, attempts - OUTLIVED_ATTEMPTS_MAX), attempts do
    fields[#fields + 1] = claim_field(queue, item, attempt)
  end
  return redis.call('HDEL', queue.outlived, unpack(fields))
end

-- Moves a found item to the tail of processing; nil when its text cannot carry the claim.
-- With an owner the attempt is counted before the work starts, and the text becomes unique.
local function hand_out(queue, found, expires_s, owner)
  local text = with_field(found.text, found.item, 'time_s', int_text(expires_s))
  if text and owner then
    local attempts = found.item.attempts
    if attempts ~= nil and type(attempts) ~= 'number' then
      text = nil
    else
      text = with_field(text, found.item, 'attempts', int_text((attempts or 0) + 1))
      text = text and with_field(text, found.item, 'owner', cjson.encode(owner))
      local outlived = text and take_outlived(queue, found.item) or 0
      if outlived > 0 then
        local forgiven = int_text(count_in(found.item, 'forgiven') + outlived)
        text = with_field(text, found.item, 'forgiven', forgiven) or text
      end
    end
  end
  if redis.call('LREM', found.list, 1, found.text) == 0 then
    return nil
  end
  if not text then
    push_failed(queue, found.text, 'its time_s, attempts or owner cannot be set')
    return nil
  end
  redis.call('RPUSH', queue.processing, text)
  return text
end

-- Hands out up to `count` due items, longest due first, so that neither waiting items nor
-- those of dead workers can starve the others.
local function claim(queue, count, expires_s, owner, layers, served)
  local idle, idle_broken = look(queue, queue.idle, count, layers, served)
  local late, late_broken = look(queue, queue.processing, count, layers, served)
  set_broken_aside(queue, queue.idle, idle_broken)
  set_broken_aside(queue, queue.processing, late_broken)
  local claimed = {}
  local i, l = 1, 1
  while #claimed < count and (idle[i] or late[l]) do
    local found
    if idle[i] and (not late[l] or idle[i].due_s <= late[l].due_s) then
      found = idle[i]
      i = i + 1
    else
      found = late[l]
      l = l + 1
    end
    local mark = owner and (count > 1 and owner .. '.' .. (i + l) or owner)
    claimed[#claimed + 1] = hand_out(queue, found, expires_s, mark)
  end
  return claimed
end
