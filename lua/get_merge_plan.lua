-- get_merge_plan: hands out the next due item of a queue.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] text  optional: lease in seconds; 1800 without it
-- ARGV[2] text  optional: who claims; makes the item's text unique, and counts "attempts" in it
-- ARGV[3] JSON  optional: layers as for patch_index, for the TTL of moves without time_s
--
-- Lists <prefix>:<db>:<table>[:<suffix>]:<layer>:<writer>:idle, :processing, :failed.
-- Reply: the item's JSON, which now stands in :processing with time_s = end of the lease; ""
-- when nothing is due. The item that is due longest comes first, waiting or left by a dead
-- worker. What can never be due (not JSON, no time_s) goes to :failed as {"reason","item","at_s"}.
-- Errors, nothing changed: ERR …

if #KEYS < 6 then
  return { err = 'ERR six KEYS are needed: prefix, database, table, suffix, layer, writer id' }
end
local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
if problem then
  return { err = problem }
end

local expires_s = now_s + 1800
if ARGV[1] then
  local lease_s = tonumber(ARGV[1])
  if not lease_s then
    return { err = 'ERR ARGV[1], the lease, is not a number of seconds' }
  end
  expires_s = math.max(seconds_from_now(lease_s), now_s + 1)
end
local layers
if ARGV[3] then
  local ok, decoded = pcall(cjson.decode, ARGV[3])
  if not ok or type(decoded) ~= 'table' then
    return { err = 'ERR ARGV[3] holds no JSON object of layers' }
  end
  layers = decoded
end

return claim(queue, 1, expires_s, ARGV[2], layers)[1] or ''
