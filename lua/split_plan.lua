-- split_plan: puts several smaller plans in the place of a claimed one.
--
-- KEYS[1] text  merge
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir>
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the plan's exact text in :processing
-- ARGV[2] text  randomness that goes into new ids
-- ARGV[3...] JSON  the new plans, each {"size","paths",…} without id and time_s
--
-- Each new plan gets an id of its own and is due now, at the head of :idle. Paths that the old plan
-- does not name are refused; those that no new plan names are in no plan any more. The output that
-- the old claim announced is forgotten: the caller has removed it.
-- Reply: 1, or 0 when the plan is not there any more (the lease was lost).
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
if not problem and #ARGV < 3 then
  problem = 'ERR the plan, randomness and new plans are needed'
end
if problem then
  return { err = problem }
end
local plan = redis.call('LPOS', queue.processing, ARGV[1]) and decode_object(ARGV[1])
if not plan then
  return 0
end
local planned = {}
for _, path in ipairs(type(plan.paths) == 'table' and plan.paths or {}) do
  planned[path] = true
end
local texts = {}
for place = 3, #ARGV do
  local part = decode_object(ARGV[place])
  if not part or type(part.size) ~= 'number' or type(part.paths) ~= 'table' then
    return { err = 'ERR ARGV[' .. place .. '] is no plan' }
  end
  for _, path in ipairs(part.paths) do
    if not planned[path] then
      return { err = 'ERR path ' .. tostring(path) .. ' is not in the plan, or in two parts of it' }
    end
    planned[path] = nil
  end
  local id = redis.sha1hex(clock[1] .. '.' .. clock[2] .. '.' .. ARGV[2] .. '.' .. place)
  id = string.sub(id, 1, 8) .. '-' .. string.sub(id, 9, 12) .. '-4' .. string.sub(id, 14, 16)
    .. '-8' .. string.sub(id, 18, 20) .. '-' .. string.sub(id, 21, 32)
  texts[place] = '{"id":"' .. id .. '","time_s":' .. int_text(now_s) .. ','
    .. string.match(ARGV[place], '^%s*{%s*(.*)$')
end
redis.call('LREM', queue.processing, 1, ARGV[1])
for place = #ARGV, 3, -1 do
  redis.call('LPUSH', queue.idle, texts[place])
end
redis.call('HDEL', queue.announced, announced_field(queue, plan))
return 1
