-- release_plan: gives a claimed item back.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the item's exact text in :processing
-- ARGV[2] text  seconds until it is due again; 0 for at once
-- ARGV[3] text  head or tail: which end of :idle it goes to
--
-- The item keeps its "attempts"; the output that its claim announced is forgotten.
-- Reply: 1, or 0 when the item is not there any more (the lease was lost).
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
local delay_s = tonumber(ARGV[2])
if not problem and not delay_s then
  problem = 'ERR ARGV[2], the delay, is not a number of seconds'
end
if problem then
  return { err = problem }
end
local item = redis.call('LPOS', queue.processing, ARGV[1]) and decode_object(ARGV[1])
if not item then
  return 0
end
local text = with_field(ARGV[1], item, 'time_s', int_text(seconds_from_now(delay_s)))
if not text then
  return { err = 'ERR the time_s of this item cannot be set' }
end
redis.call('LREM', queue.processing, 1, ARGV[1])
redis.call(ARGV[3] == 'tail' and 'RPUSH' or 'LPUSH', queue.idle, text)
redis.call('HDEL', queue.announced, announced_field(queue, item))
return 1
