-- One step of a stage. If the group is not where the records were read, the script does nothing; otherwise it does all of the step.
-- KEYS: the streams of the partitions read, end and stream of each partition written, the totals.
-- ARGV: run id, group, number of partitions read; begin and id of each; number of partitions written; for each the number of its entries,
-- and their record counts and data; names and values of totals.
local read = tonumber(ARGV[3])
for i = 1, read do
  if place(KEYS[i], ARGV[2]) ~= ARGV[2 + 2 * i] then return 0 end
end
local at = 4 + 2 * read
local key = read + 1
for _ = 1, tonumber(ARGV[at]) do
  local entries = tonumber(ARGV[at + 1])
  extend(KEYS[key], KEYS[key + 1], ARGV[1], at + 2, at + 1 + 2 * entries)
  at, key = at + 1 + 2 * entries, key + 2
end
for i = 1, read do move(KEYS[i], ARGV[2], ARGV[3 + 2 * i]) end
for i = at + 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[key], ARGV[i], ARGV[i + 1]) end
return 1
