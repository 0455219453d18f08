-- undelete: brings back the files that a merge replaced, and takes its output out, in one step.
--
-- KEYS[1] text  database
-- KEYS[2] text  table
-- KEYS[3] text  layer
-- KEYS[4] text  writer id
-- ARGV[1] text  the output's path
-- ARGV[2] text  grace: seconds until the output's bytes may be deleted
-- ARGV[3] text  randomness that goes into new ids
-- ARGV[4] text  why the files are not merged again, for quarantine:<db>:<table>
--
-- A replaced file waits in drop:…:idle with "replaced_by", "replaced_count" and its "entry". All of
-- them come back, or none. They join no plan: nobody wants the same merge again.
-- Reply, one of:
--   done
--   output_gone    the index does not name the output: it was merged on, moved or deleted
--   being_deleted  some of the files are not waiting any more, or a worker has them
-- Errors, nothing changed: ERR …, and those of patch_index for the entries.

local database, table_name, layer, writer = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local output_path, grace_s = ARGV[1], tonumber(ARGV[2])
local quarantine_key = 'quarantine:' .. database .. ':' .. table_name
local drop_key = 'drop:' .. database .. ':' .. table_name .. ':' .. layer .. ':' .. writer .. ':idle'
local files_key = 'files:' .. database .. ':' .. table_name .. ':' .. string.match(output_path, '^[^/]*')
local problem = not grace_s and 'ERR ARGV[2], the grace, is not a number of seconds'
  or wrong_type(quarantine_key, 'hash') or wrong_type(drop_key, 'list') or wrong_type(files_key, 'hash')
if problem then
  return { err = problem }
end
nonce = ARGV[3]

local stored = redis.call('HGET', files_key, output_path)
if not stored then
  return 'output_gone'
end
local output
output, problem = check_entry(stored, 1)
if problem then
  return { err = problem }
end

local PAGE = 500
local marker = '"replaced_by":' .. cjson.encode(output_path)
local waiting, wanted, start = {}, nil, 0
repeat
  local texts = redis.call('LRANGE', drop_key, start, start + PAGE - 1)
  for place, text in ipairs(texts) do
    if string.find(text, marker, 1, true) then
      local item = decode_object(text)
      -- Who claimed it once may be about to delete the bytes, even after its lease.
      if item and item.replaced_by == output_path and type(item.entry) == 'string' and not item.attempts then
        waiting[#waiting + 1] = { place = start + place - 1, entry = item.entry }
        wanted = item.replaced_count
      end
    end
  end
  start = start + PAGE
until #texts < PAGE
if #waiting == 0 or #waiting ~= wanted then
  return 'being_deleted'
end

local batch = new_batch({}, nil, 0)
batch.drop_at_s = seconds_from_now(grace_s)
output.is_add = false
problem = apply_problem(batch, output)
for position, file in ipairs(waiting) do
  if not problem then
    file.checked, problem = check_entry(file.entry, position)
  end
  if not problem and (file.checked.database ~= database or file.checked.table_name ~= table_name or not file.checked.is_add) then
    problem = 'ERR an entry in ' .. drop_key .. ' is no ADD of this table'
  end
  problem = problem or apply_problem(batch, file.checked)
end
if problem then
  return { err = problem }
end

-- Taken out together at the end: one by one, each would be looked for behind all others.
local taken = '"taken by undelete ' .. fresh_id(output_path) .. '"'
local aside = '{"reason":' .. cjson.encode(ARGV[4])
  .. ',"at_s":' .. int_text(now_s) .. ',"layer":' .. cjson.encode(layer) .. '}'
for _, file in ipairs(waiting) do
  redis.call('LSET', drop_key, file.place, taken)
  add_file(batch, file.checked)
  redis.call('HSET', quarantine_key, file.checked.path, aside)
end
redis.call('LREM', drop_key, 0, taken)
redis.call('HDEL', files_key, output_path)
local folder = folder_of(batch, output)
folder.change = folder.change - 1
plan_drop(batch, output)
write_batch(batch)
return 'done'
