-- What the PostgreSQL store asks and says, by name. Values are parameters; what stands in braces is a name of this program's own.

-- name: settings
SET timezone = 'UTC';
SET client_min_messages = 'warning'

-- name: wait_for_locks
SELECT set_config('lock_timeout', $1, false)

-- name: alone
-- Several stores of one database write one after another.
SELECT pg_advisory_xact_lock(5283001)

-- name: version
SELECT version FROM tapeline_schema

-- name: has_version
-- to_regclass would remember for the whole transaction that there was no such table, also after waiting for the process that makes it.
SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'tapeline_schema' AND pg_table_is_visible(oid))

-- name: has_table
SELECT to_regclass($1) IS NOT NULL

-- name: begin_version
CREATE TABLE IF NOT EXISTS tapeline_schema (version integer NOT NULL)

-- name: set_version
WITH gone AS (DELETE FROM tapeline_schema) INSERT INTO tapeline_schema (version) VALUES ($1)

-- name: has_timescale
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')

-- name: positions
SELECT partition, position FROM tapeline_positions WHERE topic = $1

-- name: counts
SELECT read, rows, duplicates, refused FROM tapeline_counts WHERE topic = $1

-- name: set_position
INSERT INTO tapeline_positions (topic, partition, position) VALUES ($1, $2, $3)
ON CONFLICT (topic, partition) DO UPDATE SET position = excluded.position

-- name: set_counts
INSERT INTO tapeline_counts (topic, read, rows, duplicates, refused) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (topic) DO UPDATE SET
    read = excluded.read, rows = excluded.rows, duplicates = excluded.duplicates, refused = excluded.refused

-- name: refuse
INSERT INTO tapeline_refused (topic, id, reason, record) VALUES ($1, $2, $3, $4)

-- name: known_parts
SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = '{table}'::regclass

-- name: new_part
-- Attaching locks out no reader and no writer of the other parts, as PARTITION OF would.
CREATE TABLE {part} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS);
ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES FROM ('{begin}+00') TO ('{end}+00')

-- name: old_parts
SELECT inhrelid::regclass::text FROM pg_inherits
WHERE inhparent = 'ticks'::regclass
    AND to_date(right(inhrelid::regclass::text, 8), 'YYYYMMDD') < (now() AT TIME ZONE 'UTC')::date - $1::integer

-- name: drop_part
DROP TABLE {part}

-- name: old_chunks
SELECT remove_retention_policy('ticks', if_exists => true);
SELECT add_retention_policy('ticks', drop_after => INTERVAL '{days} days')

-- name: keep_chunks
SELECT remove_retention_policy('ticks', if_exists => true)

-- name: held
SELECT {columns} FROM {table}
WHERE provider = $1 AND feed = $2 AND channel = $3 AND ts >= $4 AND ts <= $5

-- name: held_of_all
SELECT {columns} FROM {table}
WHERE ts >= $1 AND ts <= $2

-- name: highest
SELECT symbol, max({id}) FROM {table}
WHERE provider = $1 AND feed = $2 AND channel = $3 AND ts >= $4 AND symbol = ANY ($5)
GROUP BY symbol

-- name: copy_of
CREATE TEMPORARY TABLE {name} (LIKE {table}) ON COMMIT DROP

-- name: replace_bars
INSERT INTO bars
SELECT DISTINCT ON (symbol, ts, provider, feed, "interval") * FROM new_bars
ORDER BY symbol, ts, provider, feed, "interval", received_ns DESC, raw_partition DESC, raw_offset DESC, raw_index DESC
ON CONFLICT (symbol, ts, provider, feed, "interval") DO UPDATE SET
    id = excluded.id, open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, vwap = excluded.vwap, trades = excluded.trades, final = excluded.final, exchange = excluded.exchange,
    channel = excluded.channel, ts_ns = excluded.ts_ns, received_ns = excluded.received_ns, latency_ns = excluded.latency_ns,
    raw_partition = excluded.raw_partition, raw_offset = excluded.raw_offset, raw_index = excluded.raw_index
WHERE (excluded.received_ns, excluded.raw_partition, excluded.raw_offset, excluded.raw_index)
    > (bars.received_ns, bars.raw_partition, bars.raw_offset, bars.raw_index)

-- name: hypertables
SELECT create_hypertable('ticks', by_range('ts', INTERVAL '1 day'), create_default_indexes => false);
SELECT create_hypertable('bar_revisions', by_range('ts', INTERVAL '1 month'), create_default_indexes => false);
SELECT create_hypertable('bars', by_range('ts', INTERVAL '1 month'), create_default_indexes => false);
SELECT create_hypertable('notices', by_range('ts', INTERVAL '1 month'), create_default_indexes => false);
SELECT create_hypertable('rejected', by_range('ts', INTERVAL '1 month'), create_default_indexes => false);
ALTER TABLE ticks SET (timescaledb.compress, timescaledb.compress_segmentby = 'symbol, provider, feed, channel', timescaledb.compress_orderby = 'ts');
SELECT add_compression_policy('ticks', INTERVAL '7 days')

-- name: trade_bars
CREATE MATERIALIZED VIEW trade_bars_{name} WITH (timescaledb.continuous, timescaledb.materialized_only = false) AS
SELECT symbol, provider, feed, time_bucket(INTERVAL '{width}', ts) AS ts,
    first(last, ts_ns) AS open, max(last) AS high, min(last) AS low, last(last, ts_ns) AS close,
    sum(volume) AS volume, sum(last * volume) / nullif(sum(volume), 0) AS vwap, count(*) AS trades
FROM ticks WHERE kind = 'trade'
GROUP BY 1, 2, 3, 4 WITH NO DATA;
SELECT add_continuous_aggregate_policy('trade_bars_{name}',
    start_offset => INTERVAL '{back}', end_offset => INTERVAL '{width}', schedule_interval => INTERVAL '{every}')

-- name: choose
-- What is asked for, as JSON, for the statements below: a COPY takes no parameters.
SELECT set_config('tapeline.selection', $1, false)

-- name: chosen
SELECT {columns} FROM {table}
WHERE symbol = ANY (ARRAY (SELECT jsonb_array_elements_text(current_setting('tapeline.selection')::jsonb -> 'symbols')))
    AND ts >= (SELECT timestamptz 'epoch' + (current_setting('tapeline.selection')::jsonb ->> 'since_us')::bigint * interval '1 microsecond')
    AND ts <= (SELECT timestamptz 'epoch' + (current_setting('tapeline.selection')::jsonb ->> 'until_us')::bigint * interval '1 microsecond')
    AND ts_ns >= (SELECT (current_setting('tapeline.selection')::jsonb ->> 'start_ns')::bigint)
    AND ts_ns < (SELECT (current_setting('tapeline.selection')::jsonb ->> 'end_ns')::bigint)
    {where}
ORDER BY ts_ns, symbol COLLATE "C", raw_partition, raw_offset, raw_index

-- name: last
SELECT last.* FROM jsonb_array_elements_text(current_setting('tapeline.selection')::jsonb -> 'symbols') AS wanted,
LATERAL (
    SELECT {columns} FROM ticks
    WHERE symbol = wanted
        AND ts >= (SELECT timestamptz 'epoch' + (current_setting('tapeline.selection')::jsonb ->> 'since_us')::bigint * interval '1 microsecond')
        AND ts <= (SELECT timestamptz 'epoch' + (current_setting('tapeline.selection')::jsonb ->> 'until_us')::bigint * interval '1 microsecond')
        AND ts_ns >= (SELECT (current_setting('tapeline.selection')::jsonb ->> 'start_ns')::bigint)
        AND ts_ns < (SELECT (current_setting('tapeline.selection')::jsonb ->> 'end_ns')::bigint)
        {where}
    ORDER BY ts DESC, ts_ns DESC, raw_partition DESC, raw_offset DESC, raw_index DESC LIMIT 1
) AS last

-- name: equals
AND "{column}" = (SELECT current_setting('tapeline.selection')::jsonb ->> '{column}')

-- name: symbols
-- From one symbol to the next by the index, without reading what lies between.
WITH RECURSIVE known (symbol) AS (
    (SELECT symbol FROM {table} ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT symbol FROM {table} WHERE symbol > known.symbol ORDER BY symbol LIMIT 1) FROM known WHERE known.symbol IS NOT NULL
)
SELECT symbol FROM known WHERE symbol IS NOT NULL

-- name: newest
WITH RECURSIVE known (symbol) AS (
    (SELECT symbol FROM ticks ORDER BY symbol LIMIT 1)
    UNION ALL
    SELECT (SELECT symbol FROM ticks WHERE symbol > known.symbol ORDER BY symbol LIMIT 1) FROM known WHERE known.symbol IS NOT NULL
)
SELECT max(newest.ts_ns) FROM known, LATERAL (
    SELECT ts_ns FROM ticks WHERE symbol = known.symbol ORDER BY ts DESC, ts_ns DESC LIMIT 1
) AS newest

-- name: without
SELECT wanted FROM jsonb_array_elements_text(current_setting('tapeline.selection')::jsonb -> 'symbols') AS wanted
WHERE NOT EXISTS (SELECT FROM {table} WHERE symbol = wanted)
