-- What took back a trade, and the trades that nothing took back; docs/records.md says how a notice names its trade.

-- Where the database has something of that name already, that stays; `trades` is made of our own `amendments` alone.
DO $$ BEGIN IF to_regclass('amendments') IS NULL THEN
    CREATE VIEW amendments AS SELECT provider, feed, symbol, day AS date, amends[1] AS exchange, amends[2] AS trade_id, kind, ts_ns, detail
    FROM (SELECT provider, feed, symbol, (ts AT TIME ZONE 'UTC')::date AS day, kind, ts_ns, detail,
        regexp_match(detail, '"amends":[{]"exchange":"([^"\\]*)","trade_id":"([^"\\]+)"[}][}]$') AS amends
        FROM notices WHERE kind IN ('correction', 'cancel')) AS named
    WHERE amends IS NOT NULL; IF to_regclass('trades') IS NULL THEN
    CREATE VIEW trades AS SELECT t.* FROM ticks AS t WHERE t.kind = 'trade' AND NOT EXISTS (SELECT FROM amendments AS a
        WHERE a.provider = t.provider AND a.feed = t.feed AND a.symbol = t.symbol AND a.date = (t.ts AT TIME ZONE 'UTC')::date
            AND a.exchange = t.exchange AND a.trade_id = t.trade_id); END IF; END IF; END $$;
