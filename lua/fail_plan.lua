-- fail_plan: ends a claimed item that cannot succeed. Its files stay in the index.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the item's exact text in :processing
-- ARGV[2] text  why
--
-- The item goes to :failed as {"reason","item","at_s"}; its announced output is forgotten.
-- Reply: 1, or 0 when the item is not there any more (the lease was lost).
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
if problem then
  return { err = problem }
end
if redis.call('LREM', queue.processing, 1, ARGV[1]) == 0 then
  return 0
end
push_failed(queue, ARGV[1], ARGV[2])
local item = decode_object(ARGV[1])
if item then
  redis.call('HDEL', queue.announced, announced_field(queue, item))
end
return 1
