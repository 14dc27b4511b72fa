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

-- name: pasts
SELECT provider, feed, channel, symbol, body FROM tapeline_ledger_pasts

-- name: pieces
SELECT body FROM tapeline_ledger_pieces
WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4 AND number >= $5 AND number < $6 ORDER BY number

-- name: keys
SELECT DISTINCT provider, feed, channel, symbol FROM tapeline_ledger_intervals

-- name: intervals
SELECT provider, feed, channel, symbol, start_ns, end_ns, state, evidence, first_id, last_id
FROM tapeline_ledger_intervals
WHERE ($1 = '[]' OR symbol IN (SELECT jsonb_array_elements_text($1::jsonb)))
    AND ($2 = '[]' OR state IN (SELECT jsonb_array_elements_text($2::jsonb)))
ORDER BY provider COLLATE "C", feed COLLATE "C", symbol COLLATE "C", channel COLLATE "C", number

-- name: set_position
INSERT INTO tapeline_ledger_positions (partition, position) VALUES ($1, $2)
ON CONFLICT (partition) DO UPDATE SET position = excluded.position

-- name: set_life
INSERT INTO tapeline_ledger_lives (name, body) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET body = excluded.body

-- name: forget_life
DELETE FROM tapeline_ledger_lives WHERE name = $1

-- name: past_connections
SELECT name, at_ns FROM tapeline_ledger_past_connections

-- name: add_past_connection
INSERT INTO tapeline_ledger_past_connections (name, at_ns) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET at_ns = excluded.at_ns

-- name: forget_past_connections
DELETE FROM tapeline_ledger_past_connections WHERE at_ns < $1

-- name: set_past
INSERT INTO tapeline_ledger_pasts (provider, feed, channel, symbol, body) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (provider, feed, channel, symbol) DO UPDATE SET body = excluded.body

-- name: forget_pasts
DELETE FROM tapeline_ledger_pasts WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4

-- name: add_piece
INSERT INTO tapeline_ledger_pieces (provider, feed, channel, symbol, number, before_ns, body) VALUES ($1, $2, $3, $4, $5, $6, $7)

-- name: old_states
SELECT state, count(*) FROM tapeline_ledger_intervals
WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4 AND number < $5 AND end_ns < $6 GROUP BY state

-- name: prune_intervals
DELETE FROM tapeline_ledger_intervals
WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4 AND number < $5 AND end_ns < $6

-- name: prune_pieces
DELETE FROM tapeline_ledger_pieces WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4 AND before_ns < $5

-- name: forget_pieces
DELETE FROM tapeline_ledger_pieces WHERE provider = $1 AND feed = $2 AND channel = $3 AND symbol = $4 AND number >= $5

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
