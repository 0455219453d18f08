-- announce_output: records under which name a claimed merge will publish bytes, before it does.
--
-- KEYS[1] text  merge
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir>
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the item's exact text in :processing
-- ARGV[2] text  the output's path
--
-- Hash announced:<db>:<table>: <suffix>:<layer>:<writer>:<id>:<attempts> ->
-- {"path","layer","at_s","suffix","writer","id","attempts","paths"}. A commit, release or failure of this claim removes the field; what
-- is left belongs to a worker that died, and says which bytes nobody else knows of.
-- Reply: 1, or 0 when the item is not there any more (the lease was lost).
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
if problem then
  return { err = problem }
end
local item = redis.call('LPOS', queue.processing, ARGV[1]) and decode_object(ARGV[1])
if not item then
  return 0
end
redis.call('HSET', queue.announced, announced_field(queue, item),
  '{"path":' .. cjson.encode(ARGV[2]) .. ',"layer":' .. cjson.encode(KEYS[5])
  .. ',"at_s":' .. int_text(now_s) .. ',"suffix":' .. cjson.encode(KEYS[4])
  .. ',"writer":' .. cjson.encode(KEYS[6]) .. ',"id":' .. cjson.encode(tostring(item.id))
  .. ',"attempts":' .. int_text(item.attempts or 0)
  .. ',"paths":' .. (type(item.paths) == 'table' and #item.paths > 0 and cjson.encode(item.paths) or '[]') .. '}')
return 1
