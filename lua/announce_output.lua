-- announce_output: records under which name a claimed merge or move will publish bytes, before it does.
--
-- KEYS[1] text  merge or move
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the item's exact text in :processing
-- ARGV[2] text  the output's path
-- ARGV[3] text  for move: the layer that gets the bytes
--
-- Hash announced:<db>:<table>: <suffix>:<layer>:<writer>:<id>:<attempts> ->
-- {"path","layer","at_s","suffix","writer","id","attempts","paths"}; of a move
-- move:<layer>:<writer>:<id>:<attempts>:<path_from>, and also "layer_from" and "path_from". A commit, release or failure of this claim removes the field; what
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
local layer, of_move, paths = KEYS[5], '', item.paths
if KEYS[1] == 'move' then
  if not ARGV[3] or type(item.path_from) ~= 'string' then
    return { err = 'ERR a move with path_from, and ARGV[3], its layer, are needed' }
  end
  layer, paths = ARGV[3], { item.path_from }
  of_move = ',"layer_from":' .. cjson.encode(KEYS[5]) .. ',"path_from":' .. cjson.encode(item.path_from)
end
redis.call('HSET', queue.announced, announced_field(queue, item),
  '{"path":' .. cjson.encode(ARGV[2]) .. ',"layer":' .. cjson.encode(layer)
  .. ',"at_s":' .. int_text(now_s) .. ',"suffix":' .. cjson.encode(KEYS[4])
  .. ',"writer":' .. cjson.encode(KEYS[6]) .. ',"id":' .. cjson.encode(tostring(item.id))
  .. ',"attempts":' .. int_text(item.attempts or 0)
  .. ',"paths":' .. (type(paths) == 'table' and #paths > 0 and cjson.encode(paths) or '[]') .. of_move .. '}')
return 1
