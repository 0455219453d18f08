-- mend: one repair, made only if what was seen is still so; or a look that needs to be one step.
--
-- KEYS[1] text  database
-- KEYS[2] text  table
-- KEYS[3] text  randomness that goes into new ids
-- ARGV[1] text  what: entry, item, folder, plans, drop or announced
-- ARGV[2] text  entry, drop: a path; item: a list; folder: a folder; plans: <iteration>:<dir>;
--               announced: a field of announced:<db>:<table>
-- ARGV[3] text  entry, item, announced: the exact text that was seen; folder: look or set;
--               plans, drop: a layer
-- ARGV[4] text  entry: the new text, "" to forget it; item: remove, replace, fail or release;
--               plans, drop: a writer id
-- ARGV[5] text  item: the new text, or the reason; plans: merge configurations, as for patch_index;
--               drop: grace, seconds
-- ARGV[6] text  plans: look or plan
-- ARGV[7...]    plans: paths
--
-- entry      replaces or forgets an index entry; the old text goes to list mended:<db>:<table>, of
--            which the last 10,000 are kept: {"path","entry","at_s"}.
-- item       changes an item of a queue: fail moves it to :failed, release from :processing to :idle.
-- folder     counts the files of a folder, and sets the count in folders:<db>:<table>.
-- plans      which of these files are in the index with this layer and writer, and in no plan of
--            their queue; puts them into plans.
-- drop       queues the deletion of a file that the index does not name in this layer.
-- announced  forgets an announcement.
-- Reply: 1, or 0 when it is not so any more and nothing changed. For folder {count, files}, for
-- plans the paths; both {"too_large"} when there is too much to look at in one step.
-- Errors, nothing changed: ERR …

-- A step that looks at more would keep others waiting.
local FIELDS_MAX = 100000
local BYTES_MAX = 8388608
local MENDED_MAX = 10000

local database, table_name = KEYS[1], KEYS[2]
nonce = KEYS[3] or ''
local what, name, seen = ARGV[1], ARGV[2] or '', ARGV[3] or ''
local of_table = database .. ':' .. table_name
local folders_key = 'folders:' .. of_table

local function files_key_of(path)
  return 'files:' .. of_table .. ':' .. (string.match(path, '^[^/]*'))
end

local function mend_entry()
  local files_key, mended_key = files_key_of(name), 'mended:' .. of_table
  local problem = wrong_type(files_key, 'hash') or wrong_type(folders_key, 'hash') or wrong_type(mended_key, 'list')
  if problem then
    return { err = problem }
  end
  if redis.call('HGET', files_key, name) ~= seen then
    return 0
  end
  redis.call('RPUSH', mended_key, '{"path":' .. cjson.encode(name) .. ',"entry":' .. cjson.encode(seen)
    .. ',"at_s":' .. int_text(now_s) .. '}')
  redis.call('LTRIM', mended_key, -MENDED_MAX, -1)
  if ARGV[4] ~= '' then
    redis.call('HSET', files_key, name, ARGV[4])
    return 1
  end
  redis.call('HDEL', files_key, name)
  local dir = string.match(name, '^(.+)/[^/]*$')
  local count = dir and tonumber(redis.call('HGET', folders_key, dir) or '')
  if count and redis.call('HINCRBY', folders_key, dir, -1) <= 0 then
    redis.call('HDEL', folders_key, dir)
  end
  return 1
end

local function mend_item()
  local queue_name, state = string.match(name, '^(.*):(%a+)$')
  local prefix = string.match(name, '^(%a+):')
  if not queue_name or not (prefix == 'merge' or prefix == 'drop' or prefix == 'move')
    or string.sub(name, #prefix + 2, #prefix + 2 + #of_table) ~= of_table .. ':' then
    return { err = 'ERR ' .. name .. ' is no list of this table' }
  end
  local lists = { idle = queue_name .. ':idle', failed = queue_name .. ':failed' }
  local problem = wrong_type(name, 'list') or wrong_type(lists.idle, 'list') or wrong_type(lists.failed, 'list')
  if problem then
    return { err = problem }
  end
  local place = redis.call('LPOS', name, seen)
  if not place then
    return 0
  end
  if ARGV[4] == 'replace' then
    redis.call('LSET', name, place, ARGV[5])
    return 1
  end
  local text
  if ARGV[4] == 'release' then
    local item = decode_object(seen)
    text = item and with_field(seen, item, 'time_s', int_text(now_s))
    if not text or state ~= 'processing' then
      return { err = 'ERR this item cannot be released' }
    end
  elseif ARGV[4] ~= 'fail' and ARGV[4] ~= 'remove' then
    return { err = 'ERR ARGV[4] is neither remove, replace, fail nor release' }
  end
  redis.call('LREM', name, 1, seen)
  if text then
    redis.call('LPUSH', lists.idle, text)
  elseif ARGV[4] == 'fail' then
    push_failed(lists, seen, ARGV[5])
  end
  return 1
end

local function mend_folder()
  local files_key = files_key_of(name)
  local problem = wrong_type(files_key, 'hash') or wrong_type(folders_key, 'hash')
  if problem then
    return { err = problem }
  end
  if redis.call('HLEN', files_key) > FIELDS_MAX then
    return { 'too_large' }
  end
  local files = 0
  for _, path in ipairs(redis.call('HKEYS', files_key)) do
    if string.match(path, '^(.+)/[^/]*$') == name then
      files = files + 1
    end
  end
  local count = redis.call('HGET', folders_key, name) or '0'
  if seen == 'set' and files > 0 then
    redis.call('HSET', folders_key, name, int_text(files))
  elseif seen == 'set' then
    redis.call('HDEL', folders_key, name)
  end
  return { count, int_text(files) }
end

local function mend_plans()
  local writer = ARGV[4]
  local queue = queue_keys('merge', database, table_name, name, seen, writer)
  local problem = queue_problem(queue)
  local levels
  if not problem then
    levels, problem = parse_levels(ARGV[5], 'ARGV[5]')
  end
  local iteration = tonumber(string.match(name, '^%d+'))
  if problem or not iteration then
    return { err = problem or 'ERR ARGV[2] has no iteration' }
  end
  local planned, bytes = {}, 0
  for _, list in ipairs({ queue.idle, queue.processing, queue.failed }) do
    local start = 0
    repeat
      local texts = redis.call('LRANGE', list, start, start + 99)
      for _, text in ipairs(texts) do
        bytes = bytes + #text
        if bytes > BYTES_MAX then
          return { 'too_large' }
        end
        local item = decode_object(text)
        if item and list == queue.failed and type(item.item) == 'string' then
          item = decode_object(item.item)
        end
        for _, path in ipairs(item and type(item.paths) == 'table' and item.paths or {}) do
          planned[path] = true
        end
      end
      start = start + 100
    until #texts < 100
  end
  local batch = new_batch(levels, {}, 0)
  local left = {}
  for place = 7, #ARGV do
    local path = ARGV[place]
    local text = not planned[path] and redis.call('HGET', files_key_of(path), path)
    local entry = text and decode_object(text)
    if entry and (entry.layer or '') == seen and (type(entry.writer_id) == 'string' and entry.writer_id or '') == writer
      and redis.call('HEXISTS', 'quarantine:' .. of_table, path) == 0 then
      planned[path] = true
      left[#left + 1] = path
      if ARGV[6] == 'plan' and levels[iteration] and type(entry.size_bytes) == 'number' then
        plan_merge(batch, { path = path, size = entry.size_bytes, queue_key = queue.idle }, levels[iteration])
      end
    end
  end
  write_batch(batch)
  return left
end

local function queue_drop()
  local queue_key = 'drop:' .. of_table .. ':' .. seen .. ':' .. ARGV[4] .. ':idle'
  local grace_s = tonumber(ARGV[5])
  local files_key = files_key_of(name)
  local problem = wrong_type(queue_key, 'list') or wrong_type(files_key, 'hash')
  if problem or not grace_s then
    return { err = problem or 'ERR ARGV[5], the grace, is not a number of seconds' }
  end
  local text = redis.call('HGET', files_key, name)
  local entry = text and decode_object(text)
  -- What the index says cannot be known, or it names these bytes: they stay.
  if text and not (entry and type(entry.layer) == 'string' and entry.layer ~= '' and seen ~= '' and entry.layer ~= seen) then
    return 0
  end
  local batch = new_batch({}, {}, 0)
  batch.drop_at_s = seconds_from_now(grace_s)
  plan_drop(batch, {
    path = name, layer = seen, writer = ARGV[4], database = database, table_name = table_name, queue_key = queue_key,
  })
  write_batch(batch)
  return 1
end

local function forget_announcement()
  local key = 'announced:' .. of_table
  local problem = wrong_type(key, 'hash')
  if problem then
    return { err = problem }
  end
  if redis.call('HGET', key, name) ~= seen then
    return 0
  end
  return redis.call('HDEL', key, name)
end

local acts = {
  entry = mend_entry, item = mend_item, folder = mend_folder, plans = mend_plans,
  drop = queue_drop, announced = forget_announcement,
}
if #ARGV < 3 or not acts[what] then
  return { err = 'ERR ARGV[1] is neither entry, item, folder, plans, drop nor announced' }
end
return acts[what]()
