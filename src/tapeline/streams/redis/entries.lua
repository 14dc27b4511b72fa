-- Functions to write entries.
-- More offsets than a Redis that lost power can have given out and forgotten.
local SKIP = 1073741824
-- Turns a position into the id behind every entry that ends there.
local AFTER = '9223372036854775808'
local function behind(key, at)
  local facts = redis.pcall('XINFO', 'STREAM', key)
  if facts.err then return at end
  for i = 1, #facts, 2 do
    if facts[i] == 'last-generated-id' then return math.max(at, tonumber(string.match(facts[i + 1], '%d+'))) end
  end
end
-- Write an entry. After an entry of another program, whose id is a time, offsets continue from that id.
local function put(finish, key, at, count, fields, last_end)
  local done = redis.pcall('XADD', key, string.format('%.0f-%.0f', at + count, count), unpack(fields))
  if type(done) == 'table' and done.err then
    at = behind(key, at)
    redis.call('XADD', key, string.format('%.0f-%.0f', at + count, count), unpack(fields))
  end
  if at ~= last_end then redis.call('HSET', finish, 'before', string.format('%.0f', last_end), 'since', string.format('%.0f', at)) end
  return at + count
end
local function birth()
  local now = redis.call('TIME')
  return (now[1] * 1000 + math.floor(now[2] / 1000)) * 1024
end
-- Write entries after the partition's end. ARGV holds the record count and data of each. If the server has restarted since the last
-- write, it may have lost its last moments or be an older copy, so offsets begin far ahead. If the stream or its end is gone, or the
-- writer knows that something was lost, a new life begins (lives.py).
local function extend(finish, key, run, first, last, torn)
  local before, started, count = unpack(redis.call('HMGET', finish, 'next', 'run', 'count'))
  local last_end = tonumber(before or 0)
  local at = last_end
  local gone = torn or not before or (redis.call('XLEN', key) == 0 and behind(key, 0) < last_end)
  if gone then
    at = math.max(birth(), behind(key, at + SKIP))
    redis.call('HSET', finish, 'life', string.format('%.0f', at), 'records', 0)
  else
    -- An entry of another program may lie where ours would begin. Its id need not be above ours, and no position lies before it. Such an
    -- entry is written again with an id of its own.
    local other = redis.call('XRANGE', key, string.format('(%.0f-%s', at, count or AFTER), '+', 'COUNT', 1)[1]
    while other and tonumber(string.match(other[1], '%d+')) == last_end do
      at = put(finish, key, at, 1, other[2], at)
      redis.call('XDEL', key, other[1])
      other = redis.call('XRANGE', key, '(' .. other[1], '+', 'COUNT', 1)[1]
    end
    if other then
      at = behind(key, at)
      redis.call('HDEL', finish, 'records') -- the number of records of another program is not known
    end
    if started and started ~= run then at = math.max(birth(), at + SKIP) end
  end
  count = nil
  local written = 0
  for i = first, last, 2 do
    local records = tonumber(ARGV[i])
    if records > 0 then
      at = put(finish, key, at, records, {'d', ARGV[i + 1]}, last_end)
      last_end, count, written = at, ARGV[i], written + records
    end
  end
  redis.call('HSET', finish, 'next', string.format('%.0f', at), 'run', run)
  if count then redis.call('HSET', finish, 'count', count) end
  if redis.call('HEXISTS', finish, 'records') == 1 then redis.call('HINCRBY', finish, 'records', written) end
end
