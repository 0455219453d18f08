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
-- ARGV[4] text  optional: forgiven or failed, a count in the item that grows by one
--
-- The item keeps its "attempts"; the output that its claim announced is forgotten.
-- Reply: 1, or 0 when the item is not there any more (the lease was lost). With "forgiven" such an
-- attempt is then noted in hash outlived:<db>:<table>, if the plan was taken over: the next claim
-- of the plan adds it to "forgiven". What is not asked for is forgotten after a week.
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

local OUTLIVED_S = 604800

-- Whether somebody claimed this plan since.
local function is_taken_over(lost)
  local marker = cjson.encode(lost.id)
  for _, list in ipairs({ queue.processing, queue.idle }) do
    for _, text in ipairs(redis.call('LRANGE', list, 0, LOOK_ITEMS_MAX)) do
      local item = string.find(text, marker, 1, true) and decode_object(text)
      if item and item.id == lost.id and count_in(item, 'attempts') > count_in(lost, 'attempts') then
        return true
      end
    end
  end
  return false
end

local counted = (ARGV[4] == 'forgiven' or ARGV[4] == 'failed') and ARGV[4]
local item = redis.call('LPOS', queue.processing, ARGV[1]) and decode_object(ARGV[1])
if not item then
  local lost = counted == 'forgiven' and decode_object(ARGV[1])
  if lost and is_taken_over(lost) then
    redis.call('HSET', queue.outlived, announced_field(queue, lost), int_text(now_s))
    redis.call('EXPIRE', queue.outlived, OUTLIVED_S)
  end
  return 0
end
local text = with_field(ARGV[1], item, 'time_s', int_text(seconds_from_now(delay_s)))
if text and counted then
  -- A count that cannot be set is no reason to keep the plan from the next worker.
  text = with_field(text, item, counted, int_text(count_in(item, counted) + 1)) or text
end
if not text then
  return { err = 'ERR the time_s of this item cannot be set' }
end
redis.call('LREM', queue.processing, 1, ARGV[1])
redis.call(ARGV[3] == 'tail' and 'RPUSH' or 'LPUSH', queue.idle, text)
redis.call('HDEL', queue.announced, announced_field(queue, item))
return 1
