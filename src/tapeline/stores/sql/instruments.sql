-- What the table of instruments is asked, by name. Values are parameters; what stands in braces is a name of this program's own.

-- name: changed
SELECT greatest(max(valid_from_ns), max(valid_to_ns)) FROM tapeline_instruments WHERE provider = $1 AND market = $2

-- name: versions
-- The parameter is JSON. What it leaves out may have any value.
SELECT {columns} FROM tapeline_instruments, (SELECT $1::jsonb AS wanted) AS given
WHERE provider = coalesce(wanted ->> 'provider', provider) AND market = coalesce(wanted ->> 'market', market)
    AND (wanted -> 'symbols' IS NULL OR wanted -> 'symbols' ? symbol)
    AND (wanted -> 'at_ns' IS NULL OR (valid_from_ns <= (wanted ->> 'at_ns')::bigint
        AND (valid_to_ns IS NULL OR valid_to_ns > (wanted ->> 'at_ns')::bigint)))
    AND (wanted -> 'open' IS NULL OR valid_to_ns IS NULL)
    AND (wanted -> 'since_ns' IS NULL OR valid_from_ns > (wanted ->> 'since_ns')::bigint
        OR valid_to_ns > (wanted ->> 'since_ns')::bigint)

-- name: put
INSERT INTO tapeline_instruments SELECT * FROM new_instruments
ON CONFLICT (provider, market, native, valid_from_ns) DO UPDATE SET valid_to_ns = excluded.valid_to_ns, valid_to = excluded.valid_to
