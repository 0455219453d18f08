-- renew_lease: prolongs a claim.
--
-- KEYS[1] text  merge, move or drop
-- KEYS[2] text  database
-- KEYS[3] text  table
-- KEYS[4] text  <iteration>:<dir> for merge, else ""
-- KEYS[5] text  layer
-- KEYS[6] text  writer id
-- ARGV[1] JSON  the item's exact text, as it was handed out or renewed last
-- ARGV[2] text  lease in seconds from now
--
-- The new text's "owner" is the SHA1 of the old text, a dot and the new time_s: a caller whose reply
-- was lost repeats the call with the old text and is recognized. A program that does not know owners
-- takes an item over by setting another time_s: then both disagree, and the lease is lost.
-- Reply: the item's new text, which is the new proof; "" when the item is not there any more
-- (the lease was lost). Errors, nothing changed: ERR …

local queue = queue_keys(KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
local problem = queue_problem(queue)
local lease_s = tonumber(ARGV[2])
if not problem and not lease_s then
  problem = 'ERR ARGV[2], the lease, is not a number of seconds'
end
if problem then
  return { err = problem }
end
local expires_s = math.max(seconds_from_now(lease_s), now_s + 1)
local renewed = redis.sha1hex(ARGV[1]) .. '.'

-- The item as an earlier, unheard renewal of this very text left it, to the second.
local function renewed_before()
  for place, text in ipairs(redis.call('LRANGE', queue.processing, 0, LOOK_ITEMS_MAX)) do
    if string.find(text, renewed, 1, true) then
      local item = decode_object(text)
      if item and type(item.time_s) == 'number' and item.owner == renewed .. int_text(item.time_s) then
        return place - 1, text
      end
    end
  end
end

local old = ARGV[1]
local place = redis.call('LPOS', queue.processing, old)
if not place then
  place, old = renewed_before()
end
local item = place and decode_object(old)
if not item then
  return ''
end
local text = with_field(old, item, 'time_s', int_text(expires_s))
text = text and with_field(text, item, 'owner', cjson.encode(renewed .. int_text(expires_s)))
if not text then
  return { err = 'ERR time_s or owner of this item cannot be set' }
end
redis.call('LSET', queue.processing, place, text)
return text
