-- The providers' lists of instruments over time. Each row is one version of an instrument.

CREATE TABLE tapeline_instruments (
    provider      text             NOT NULL,
    market        text             NOT NULL,
    symbol        text             NOT NULL,
    native        text             NOT NULL,
    id            text,
    name          text,
    kind          text,
    base          text,
    quote         text,
    exchange      text,
    status        text,
    listed        boolean          NOT NULL,
    tick_size     double precision,
    lot_size      double precision,
    renamed_from  text,
    valid_from_ns bigint           NOT NULL,
    valid_to_ns   bigint,
    valid_from    timestamptz      NOT NULL,
    valid_to      timestamptz,
    PRIMARY KEY (provider, market, native, valid_from_ns)
);
CREATE INDEX tapeline_instruments_symbol ON tapeline_instruments (symbol, valid_from_ns);

-- Many databases have a table of this name already. That one stays.
DO $$ BEGIN IF to_regclass('instruments') IS NULL THEN
    CREATE VIEW instruments AS SELECT * FROM tapeline_instruments; END IF; END $$;
