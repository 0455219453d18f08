-- drop_quarantined: removes files that were set aside or given up from the index, and queues their
-- deletion.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for an item of merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] text  grace: seconds until the bytes may be deleted
-- ARGV[2] text  randomness that goes into new ids
-- ARGV[3] JSON  the exact text of an item in :failed, which leaves it; "" for none
-- ARGV[4...]    paths, each of them in quarantine:<db>:<table> or named by that item
--
-- Without an item KEYS[4] to KEYS[6] do not matter. Files that the index does not have (any more)
-- only leave the quarantine.
-- Reply: the number of files that left the index; -1 when the item is not in :failed any more, or
-- a path neither in quarantine nor in the item: then nothing changed.
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local database, table_name = KEYS[2], KEYS[3]
local quarantine_key = 'quarantine:' .. database .. ':' .. table_name
local grace_s = tonumber(ARGV[1])
local problem = queue_problem(queue) or wrong_type(quarantine_key, 'hash')
  or (not grace_s or not ARGV[3]) and 'ERR grace, randomness and item or "" are needed'
if problem then
  return { err = problem }
end
nonce = ARGV[2]
local named = {}
if ARGV[3] ~= '' then
  if not redis.call('LPOS', queue.failed, ARGV[3]) then
    return -1
  end
  local failed = decode_object(ARGV[3])
  local item = failed and type(failed.item) == 'string' and decode_object(failed.item)
  for _, path in ipairs(item and type(item.paths) == 'table' and item.paths or {}) do
    named[path] = true
  end
end

local batch = new_batch({}, nil, 0)
batch.drop_at_s = seconds_from_now(grace_s)
local files = {}
for place = 4, #ARGV do
  local path = ARGV[place]
  if not named[path] and redis.call('HEXISTS', quarantine_key, path) == 0 then
    return -1
  end
  named[path] = true
  local dir = string.match(path, '^(.+)/[^/]*$')
  if dir then
    local file = {
      path = path, dir = dir, database = database, table_name = table_name, layer = '', writer = '',
      files_key = 'files:' .. database .. ':' .. table_name .. ':' .. string.match(dir, '^[^/]*'),
      folders_key = 'folders:' .. database .. ':' .. table_name,
    }
    local stored = not wrong_type(file.files_key, 'hash') and redis.call('HGET', file.files_key, path)
    if stored then
      local entry = decode_object(stored) or {}
      if not name_problem('layer', entry.layer, true) then
        file.layer = entry.layer
      end
      if not name_problem('writer_id', entry.writer_id, true) then
        file.writer = entry.writer_id
      end
      problem = apply_problem(batch, file)
      if problem then
        return { err = problem }
      end
      files[#files + 1] = file
    end
  end
end

local removed = 0
for _, file in ipairs(files) do
  if redis.call('HDEL', file.files_key, file.path) == 1 then
    removed = removed + 1
    local folder = folder_of(batch, file)
    folder.change = folder.change - 1
    plan_drop(batch, file)
  end
end
write_batch(batch)
for place = 4, #ARGV do
  redis.call('HDEL', quarantine_key, ARGV[place])
end
if ARGV[3] ~= '' then
  redis.call('LREM', queue.failed, 1, ARGV[3])
end
return removed
