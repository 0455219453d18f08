-- retry_failed: brings an item that was given up back to work.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the exact text in :failed, {"reason","item","at_s"}
--
-- The item goes to the tail of :idle and is due now; its attempts are forgiven.
-- Reply: 1, or 0 when this text is not in :failed any more.
-- Errors, nothing changed: ERR … when the item can never be handed out

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
if problem then
  return { err = problem }
end
if not redis.call('LPOS', queue.failed, ARGV[1]) then
  return 0
end
local failed = decode_object(ARGV[1])
local text = failed and failed.item
local item = type(text) == 'string' and decode_object(text)
if not item then
  return { err = 'ERR it is not a JSON object; drop it' }
end
local counts = { time_s = now_s }
if KEYS[1] ~= 'drop' then
  counts.forgiven = count_in(item, 'attempts')
  counts.failed = 0
end
for _, name in ipairs({ 'time_s', 'forgiven', 'failed' }) do
  if counts[name] and (counts[name] > 0 or item[name] ~= nil) then
    text = with_field(text, item, name, int_text(counts[name]))
    if not text then
      return { err = 'ERR its ' .. name .. ' cannot be set; drop it' }
    end
  end
end
redis.call('LREM', queue.failed, 1, ARGV[1])
redis.call('RPUSH', queue.idle, text)
return 1
