-- renew_lease: prolongs a claim.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the item's exact text, as it was handed out or renewed last
-- ARGV[2] text  lease in seconds from now
--
-- Reply: the item's new text, which is the new proof; "" when the item is not there any more
-- (the lease was lost). Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
local lease_s = tonumber(ARGV[2])
if not problem and not lease_s then
  problem = 'ERR ARGV[2], the lease, is not a number of seconds'
end
if problem then
  return { err = problem }
end
local place = redis.call('LPOS', queue.processing, ARGV[1])
local item = place and decode_object(ARGV[1])
if not item then
  return ''
end
local text = with_field(ARGV[1], item, 'time_s', int_text(math.max(seconds_from_now(lease_s), now_s + 1)))
if not text then
  return { err = 'ERR the time_s of this item cannot be set' }
end
redis.call('LSET', queue.processing, place, text)
return text
