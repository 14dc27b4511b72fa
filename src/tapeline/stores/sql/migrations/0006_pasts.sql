-- What connections that ended long ago leave behind of each key, and the pieces of it that are archived.
-- And the names of those connections, for a week.

CREATE TABLE tapeline_ledger_pasts (
    provider text NOT NULL,
    feed     text NOT NULL,
    channel  text NOT NULL,
    symbol   text NOT NULL,
    body     text NOT NULL,
    PRIMARY KEY (provider, feed, channel, symbol)
);

CREATE TABLE tapeline_ledger_pieces (
    provider text    NOT NULL,
    feed     text    NOT NULL,
    channel  text    NOT NULL,
    symbol   text    NOT NULL,
    number   integer NOT NULL,
    before_ns bigint NOT NULL,
    body     text    NOT NULL,
    PRIMARY KEY (provider, feed, channel, symbol, number)
);

CREATE TABLE tapeline_ledger_past_connections (
    name  text   NOT NULL PRIMARY KEY,
    at_ns bigint NOT NULL
);
