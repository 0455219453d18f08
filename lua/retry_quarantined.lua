-- retry_quarantined: brings a file that was set aside back to work.
--
-- KEYS[1] text  database
-- KEYS[2] text  table
-- ARGV[1] text  the file's path
-- ARGV[2] JSON  merge configurations, as for patch_index
-- ARGV[3] text  randomness that goes into new ids
--
-- The file leaves quarantine:<db>:<table> and becomes a plan of its own, due now and marked as a
-- suspect. Reply, a text:
--   planned   done
--   final     it left the quarantine; files of its iteration are not merged
--   gone      it left the quarantine; the index does not have it any more
--   absent    it is not in quarantine; nothing changed
-- Errors, nothing changed: ERR …

local database, table_name, path = KEYS[1], KEYS[2], ARGV[1]
local quarantine_key = 'quarantine:' .. database .. ':' .. table_name
local levels
local problem = #ARGV < 3 and 'ERR path, merge configurations and randomness are needed'
  or wrong_type(quarantine_key, 'hash')
if not problem then
  levels, problem = parse_levels(ARGV[2], 'ARGV[2]')
end
if problem then
  return { err = problem }
end
nonce = ARGV[3]
if redis.call('HEXISTS', quarantine_key, path) == 0 then
  return 'absent'
end
local dir, digits = string.match(path, '^(.+)/[^/]+%.(%d+)%.parquet$')
local iteration = tonumber(digits)
local stored
if dir then
  local files_key = 'files:' .. database .. ':' .. table_name .. ':' .. string.match(dir, '^[^/]*')
  problem = wrong_type(files_key, 'hash')
  if problem then
    return { err = problem }
  end
  stored = redis.call('HGET', files_key, path)
end
if not stored then
  redis.call('HDEL', quarantine_key, path)
  return 'gone'
end
local entry = decode_object(stored)
local layer, writer, size = entry and entry.layer or '', entry and entry.writer_id or '', entry and entry.size_bytes or 0
if writer == cjson.null then
  writer = ''
end
if not entry or name_problem('layer', layer, true) or name_problem('writer_id', writer, true)
  or type(size) ~= 'number' or size < 0 or size >= 2 ^ 63 then
  return { err = 'ERR the index entry of ' .. path .. ' cannot be used; register the file again, or drop it' }
end
if not levels[iteration] then
  redis.call('HDEL', quarantine_key, path)
  return 'final'
end
local list = 'merge:' .. database .. ':' .. table_name .. ':' .. int_text(iteration) .. ':' .. dir
  .. ':' .. layer .. ':' .. writer .. ':idle'
problem = wrong_type(list, 'list')
if problem then
  return { err = problem }
end
redis.call('RPUSH', list, '{"id":"' .. fresh_id(path) .. '","time_s":' .. int_text(now_s)
  .. ',"size":' .. int_text(size) .. ',"paths":[' .. cjson.encode(path) .. '],"suspect":true}')
redis.call('HDEL', quarantine_key, path)
return 'planned'
