-- patch_index: registers and removes files, and queues what follows from that.
--
-- KEYS[1] JSON     merge configurations [[timeout_sec,max_size_bytes,iteration],…]; the place
--                  counts as the iteration; null or "" for none; a negative timeout plans nothing
-- KEYS[2] JSON     layers: name -> {"url","name","type","ttl_sec","layer_to"}
-- KEYS[3] text     optional: randomness that goes into new ids
-- KEYS[1...]       the older form: plain numbers, max_size_bytes of iterations 1, 2, …; the
--                  timeout is 10 s, every layer is accepted, nothing is moved
-- ARGV[1...] JSON  index entries, each with "cmd": "ADD" or "DELETE", applied in this order
--
-- Reply: integer, the number of entries. An ADD of an indexed path only replaces its entry; a
-- DELETE of a path that is not indexed (in that layer) changes nothing; both are counted.
-- Errors, all before the first write, so that nothing is applied:
--   Error processing file: <path> - Invalid file path format: <path>
--   Error processing file: <path> - <what is wrong with its fields or layer>
--   Error processing entry <n>: <what is wrong>
--   ERR KEYS[…] …, ERR key …   unusable configuration, or a key of another type

local levels, layers, problem

if #KEYS > 0 and tonumber(KEYS[1]) then
  levels = {}
  for place, text in ipairs(KEYS) do
    local size_max = tonumber(text)
    if not size_max then
      return { err = 'ERR KEYS[' .. place .. '] is not a number, as KEYS[1] is' }
    end
    levels[place] = { timeout_s = 10, size_max = size_max }
  end
elseif #KEYS > 0 then
  levels, problem = parse_levels(KEYS[1], 'KEYS[1]')
  if levels then
    layers, problem = parse_layers(KEYS[2] or '', 'KEYS[2]')
  end
  nonce = KEYS[3] or ''
else
  problem = 'ERR KEYS[1], the merge configurations, is missing'
end
if problem then
  return { err = problem }
end

local batch = new_batch(levels, layers, 30)
local entries = {}
for position, text in ipairs(ARGV) do
  local entry
  entry, problem = check_entry(text, position, layers)
  problem = problem or apply_problem(batch, entry)
  if problem then
    return { err = problem }
  end
  entries[position] = entry
end

apply_entries(batch, entries)
write_batch(batch)
return #ARGV
