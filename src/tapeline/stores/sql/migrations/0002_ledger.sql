-- The ledger: facts of completeness, what follows from them, and how far the raw topic has been read.

CREATE TABLE tapeline_ledger_positions (
    partition integer NOT NULL PRIMARY KEY,
    position  bigint  NOT NULL
);

CREATE TABLE tapeline_ledger_lives (
    name text NOT NULL PRIMARY KEY,
    body text NOT NULL
);

CREATE TABLE tapeline_ledger_runs (
    provider text NOT NULL,
    feed     text NOT NULL,
    channel  text NOT NULL,
    symbol   text NOT NULL,
    body     text NOT NULL,
    PRIMARY KEY (provider, feed, channel, symbol)
);

CREATE TABLE tapeline_ledger_intervals (
    provider text    NOT NULL,
    feed     text    NOT NULL,
    channel  text    NOT NULL,
    symbol   text    NOT NULL,
    number   integer NOT NULL,
    start_ns bigint  NOT NULL,
    end_ns   bigint,
    state    text    NOT NULL,
    evidence text    NOT NULL,
    first_id bigint,
    last_id  bigint,
    PRIMARY KEY (provider, feed, channel, symbol, number)
);

-- What is there and what is not; an end that is null: it goes on. Where the database has something of that name already, that stays.
DO $$ BEGIN IF to_regclass('coverage') IS NULL THEN CREATE VIEW coverage AS SELECT provider, feed, channel, symbol, start_ns, end_ns, state,
    timestamptz 'epoch' + start_ns / 1000 * interval '1 microsecond' AS "start",
    timestamptz 'epoch' + end_ns / 1000 * interval '1 microsecond' AS "end",
    evidence, first_id, last_id FROM tapeline_ledger_intervals; END IF; END $$;

DO $$ BEGIN IF to_regclass('gaps') IS NULL THEN CREATE VIEW gaps AS SELECT provider, feed, channel, symbol, start_ns, end_ns, state,
    timestamptz 'epoch' + start_ns / 1000 * interval '1 microsecond' AS "start",
    timestamptz 'epoch' + end_ns / 1000 * interval '1 microsecond' AS "end",
    evidence, first_id, last_id FROM tapeline_ledger_intervals WHERE state IN ('open', 'repairing', 'unrecoverable'); END IF; END $$;
