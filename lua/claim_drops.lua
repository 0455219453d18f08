-- claim_drops: hands out several due items of one queue at once.
--
-- KEYS[1] text  drop (or move)
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] text  lease in seconds
-- ARGV[2] text  who claims; makes each item's text unique, and counts "attempts" in it
-- ARGV[3] text  how many items, at most
-- ARGV[4] JSON  optional: layers as for patch_index, for the TTL of moves without time_s
-- ARGV[5] JSON  optional: array of the values of layer_to that are served; moves to others are
--               passed over and stay for whom they concern
--
-- Reply: array of the items' JSON, as get_merge_plan hands them out one by one; may be empty.
-- Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
local lease_s, count = tonumber(ARGV[1]), tonumber(ARGV[3])
if not problem and not (lease_s and count and ARGV[2]) then
  problem = 'ERR lease, owner and number of items are needed'
end
local layers
if not problem and ARGV[4] then
  layers = decode_object(ARGV[4])
  problem = not layers and 'ERR ARGV[4] holds no JSON object of layers'
end
local served
if not problem and ARGV[5] then
  local ok, names = pcall(cjson.decode, ARGV[5])
  if ok and type(names) == 'table' then
    served = {}
    for _, name in ipairs(names) do
      served[name] = true
    end
  else
    problem = 'ERR ARGV[5] holds no JSON array of layers'
  end
end
if problem then
  return { err = problem }
end
local expires_s = math.max(seconds_from_now(lease_s), now_s + 1)
return claim(queue, math.max(1, math.floor(count)), expires_s, ARGV[2], layers, served)
