"""What must happen at once in Redis, in Lua."""

MOVE_POINTER = """
-- KEYS: pointer, marker. ARGV: epoch, pointer's JSON, marker that the blocks were written under.
-- Returns 1: moved; 0: the stored epoch is not smaller; -1: Redis was emptied since.
if redis.call('GET', KEYS[2]) ~= ARGV[3] then return -1 end
local stored = redis.call('GET', KEYS[1])
if stored then
  local readable, pointer = pcall(cjson.decode, stored)
  if readable and type(pointer) == 'table' and (tonumber(pointer.epoch) or 0) >= tonumber(ARGV[1]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

# A generation that is about to be named may have been let go a while ago: what is left of its time is not enough.
MISSING = """
-- KEYS: to look for. ARGV: seconds. Returns the places (from 1) of those that are missing; the others stay at least
-- this long.
local missing = {}
for i, key in ipairs(KEYS) do
  local left = redis.call('TTL', key)
  if left == -2 then missing[#missing + 1] = i
  elseif left >= 0 and left < tonumber(ARGV[1]) then redis.call('EXPIRE', key, ARGV[1]) end
end
return missing
"""

LET_GO = """
-- KEYS: pointer, set of generations, keys to let go. ARGV: epoch, seconds, generation whose last keys these are or ''.
-- Does nothing once another epoch is current. Returns 1 when a generation is gone.
local stored = redis.call('GET', KEYS[1])
if not stored or tonumber(cjson.decode(stored).epoch) ~= tonumber(ARGV[1]) then return 0 end
for i = 3, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[2]) end
if ARGV[3] == '' then return 0 end
return redis.call('SREM', KEYS[2], ARGV[3])
"""

# Topics are compared by their bytes: Lua's own comparison follows the server's locale.
PUT_OVERLAYS = """
-- KEYS: one an overlay, then for each of them the slice that notes it. ARGV: seconds to keep, then for each overlay:
-- model, JSON [as_of, topic, partition, offset, record], entity.
-- Returns how many were newer than what was stored. What is stored is noted, whichever that is, and kept on.
local function bytes_greater(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x > y end
  end
  return #a > #b
end
local function newer(a, b)
  if a[1] ~= b[1] then return a[1] > b[1] end
  if a[2] ~= b[2] then return bytes_greater(a[2], b[2]) end
  if a[3] ~= b[3] then return a[3] > b[3] end
  return a[4] > b[4]
end
local function sequence(text)
  local readable, found = pcall(cjson.decode, text)
  if readable and type(found) == 'table' and type(found[1]) == 'number' then return found end
  return nil
end
local kept_us = tonumber(ARGV[1]) * 1000000
local written = 0
local count = #KEYS / 2
for i = 1, count do
  local key, slice = KEYS[i], KEYS[count + i]
  local model, value, entity = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
  local candidate = cjson.decode(value)
  local stored = redis.call('HGET', key, model)
  local held = stored and sequence(stored)
  if not held or newer(candidate, held) then
    redis.call('HSET', key, model, value)
    written = written + 1
  end
  redis.call('EXPIRE', key, ARGV[1])
  local fields, noted = redis.call('HGETALL', key), {}
  for f = 1, #fields, 2 do
    local old = sequence(fields[f + 1])
    if not old or old[1] < candidate[1] - kept_us then
      redis.call('HDEL', key, fields[f])
    else
      noted[fields[f]] = string.format('%.0f', old[1])
    end
  end
  redis.call('HSET', slice, entity, cjson.encode(noted))
end
return written
"""

# A slice that was lost while it was filled lacks the word, and what was noted in it before.
SEAL_SLICES = """
-- KEYS: slices. ARGV: field of the word, field that says that a slice is whole, word. Returns how many are whole now.
local sealed = 0
for _, slice in ipairs(KEYS) do
  if redis.call('HGET', slice, ARGV[1]) == ARGV[3] then
    redis.call('HSET', slice, ARGV[2], '1')
    redis.call('HDEL', slice, ARGV[1])
    sealed = sealed + 1
  end
end
return sealed
"""

FORGET_NOTES = """
-- KEYS: slice, overlay. ARGV: entity. Returns whether a note went; one of an overlay that is there stays.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
"""
