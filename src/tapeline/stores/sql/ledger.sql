-- What the ledger in PostgreSQL asks and says, by name. Values are parameters.

-- name: positions
SELECT partition, position FROM tapeline_ledger_positions

-- name: topics
SELECT topic, partition, begun FROM tapeline_ledger_topics

-- name: set_topic
INSERT INTO tapeline_ledger_topics (topic, partition, begun) VALUES ($1, $2, $3)
ON CONFLICT (topic, partition) DO UPDATE SET begun = excluded.begun

-- name: lives
SELECT name, body FROM tapeline_ledger_lives

-- name: runs
SELECT provider, feed, channel, symbol, body FROM tapeline_ledger_runs

-- name: intervals
SELECT provider, feed, channel, symbol, start_ns, end_ns, state, evidence, first_id, last_id
FROM tapeline_ledger_intervals ORDER BY provider COLLATE "C", feed COLLATE "C", symbol COLLATE "C", channel COLLATE "C", number

-- name: set_position
INSERT INTO tapeline_ledger_positions (partition, position) VALUES ($1, $2)
ON CONFLICT (partition) DO UPDATE SET position = excluded.position

-- name: set_life
INSERT INTO tapeline_ledger_lives (name, body) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET body = excluded.body

-- name: set_runs
INSERT INTO tapeline_ledger_runs (provider, feed, channel, symbol, body) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (provider, feed, channel, symbol) DO UPDATE SET body = excluded.body

-- name: forget_runs
DELETE FROM tapeline_ledger_runs WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4

-- name: forget_intervals
DELETE FROM tapeline_ledger_intervals WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4 AND number >= $5

-- name: add_interval
INSERT INTO tapeline_ledger_intervals
    (provider, feed, channel, symbol, number, start_ns, end_ns, state, evidence, first_id, last_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
