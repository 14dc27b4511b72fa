-- What a renaming asks and says, by name. Values are parameters: $1 provider, $2 feed, $3 the old name, then what each block says.
-- What stands in braces is a name of this program's own, or equal columns of its own.

-- name: days
SELECT (ts AT TIME ZONE 'UTC')::date AS day, count(*) FROM {table}
WHERE provider = $1 AND feed = $2 AND symbol = $3 GROUP BY day ORDER BY day

-- name: channels
-- $4 to $5: the day.
SELECT DISTINCT channel FROM {table} WHERE provider = $1 AND feed = $2 AND symbol = $3 AND ts >= $4 AND ts < $5 ORDER BY channel

-- name: copies
-- How many rows under the old name, and how many under the new one, are of an event that is kept under the other. $4 the new name,
-- $5 to $6 the day, $7 to $8 the times at which the same event may stand under the new name, $9 the channel, where `same` asks for it.
SELECT count(DISTINCT id) FILTER (WHERE stays), count(DISTINCT other) FILTER (WHERE NOT stays) FROM (
    SELECT o.id AS id, n.id AS other, n.ts < $5 OR n.ts >= $6
        OR (n.received_ns, n.raw_partition, n.raw_offset, n.raw_index) <= (o.received_ns, o.raw_partition, o.raw_offset, o.raw_index) AS stays
    FROM {table} AS o JOIN {table} AS n ON {same}
    WHERE o.provider = $1 AND o.feed = $2 AND o.symbol = $3 AND o.ts >= $5 AND o.ts < $6
        AND n.provider = $1 AND n.feed = $2 AND n.symbol = $4 AND n.ts >= $7 AND n.ts < $8) AS both_names

-- name: remove_later
-- Rows under the new name whose event came earlier under the old one, on the same day. $4 the new name, $5 to $6 the day, $7 the channel.
WITH gone AS (DELETE FROM {table} AS n
    WHERE n.provider = $1 AND n.feed = $2 AND n.symbol = $4 AND n.ts >= $5 AND n.ts < $6 AND EXISTS (
        SELECT FROM {table} AS o
        WHERE o.provider = $1 AND o.feed = $2 AND o.symbol = $3 AND o.ts >= $5 AND o.ts < $6 AND {same}
            AND (o.received_ns, o.raw_partition, o.raw_offset, o.raw_index) < (n.received_ns, n.raw_partition, n.raw_offset, n.raw_index))
    RETURNING 1)
SELECT count(*) FROM gone

-- name: remove_copies
-- Rows under the old name whose event is still there under the new one. As `copies`.
WITH gone AS (DELETE FROM {table} AS o
    WHERE o.provider = $1 AND o.feed = $2 AND o.symbol = $3 AND o.ts >= $5 AND o.ts < $6 AND EXISTS (
        SELECT FROM {table} AS n
        WHERE n.provider = $1 AND n.feed = $2 AND n.symbol = $4 AND n.ts >= $7 AND n.ts < $8 AND {same})
    RETURNING 1)
SELECT count(*) FROM gone

-- name: rename
-- $4 the new name, $5 to $6 the day.
UPDATE {table} SET symbol = $4 WHERE provider = $1 AND feed = $2 AND symbol = $3 AND ts >= $5 AND ts < $6

-- name: forget_bars
-- $4 the new name, $5 to $6 the day. The last revision of each bar is found anew among all revisions.
DELETE FROM bars WHERE provider = $1 AND feed = $2 AND symbol IN ($3, $4) AND ts >= $5 AND ts < $6

-- name: last_bars
-- $3 the new name, $4 to $5 the day.
INSERT INTO bars
SELECT DISTINCT ON (symbol, ts, provider, feed, "interval") * FROM bar_revisions
WHERE provider = $1 AND feed = $2 AND symbol = $3 AND ts >= $4 AND ts < $5
ORDER BY symbol, ts, provider, feed, "interval", received_ns DESC, raw_partition DESC, raw_offset DESC, raw_index DESC

-- name: more_duplicates
-- $1 the topic, $2 so many rows were copies.
UPDATE tapeline_counts SET rows = rows - $2, duplicates = duplicates + $2 WHERE topic = $1
