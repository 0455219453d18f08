-- dead_output: tells whether an announced output is what a dead worker left, and forgets it.
--
-- KEYS[1] text  merge or move
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer; of a move the one that the file leaves
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the value in announced:<db>:<table>, as it was read
-- ARGV[2] text  age in seconds that it must have
-- ARGV[3] text  look, or forget: remove the field if the reply is dead or indexed
--
-- Reply, one of:
--   dead     the claim ended without a commit, and no call can commit it any more
--   indexed  the index names the output
--   held     the claim is in :processing; its holder may still commit it, also after its lease
--   young    announced too short a time ago
--   changed  the field is not there with this value; nothing is known of the output
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
local output, age_s = decode_object(ARGV[1]), tonumber(ARGV[2])
if not problem and not (output and type(output.path) == 'string' and type(output.at_s) == 'number' and age_s) then
  problem = 'ERR an announcement with path and at_s, and an age, are needed'
end
if problem then
  return { err = problem }
end
local field = announced_field(queue, output)
if redis.call('HGET', queue.announced, field) ~= ARGV[1] then
  return 'changed'
end
if now_s - output.at_s < age_s then
  return 'young'
end
local start = 0
repeat
  local texts = redis.call('LRANGE', queue.processing, start, start + LOOK_ITEMS_MAX - 1)
  for _, text in ipairs(texts) do
    local item = decode_object(text)
    if item and tostring(item.id) == tostring(output.id) and (item.attempts or 0) == output.attempts
      and (queue.prefix ~= 'move' or item.path_from == output.path_from) then
      return 'held'
    end
  end
  start = start + LOOK_ITEMS_MAX
until #texts < LOOK_ITEMS_MAX
local files_key = 'files:' .. queue.database .. ':' .. queue.table_name .. ':' .. string.match(output.path, '^[^/]*')
problem = wrong_type(files_key, 'hash')
if problem then
  return { err = problem }
end
local is_indexed = redis.call('HEXISTS', files_key, output.path) == 1
if ARGV[3] == 'forget' then
  redis.call('HDEL', queue.announced, field)
end
return is_indexed and 'indexed' or 'dead'
