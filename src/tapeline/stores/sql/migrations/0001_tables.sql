-- The tables of records and of how far each topic has been read. {by_time} is empty where TimescaleDB divides the tables by time.

CREATE TABLE ticks (
    id            text             NOT NULL,
    symbol        text             NOT NULL,
    ts            timestamptz      NOT NULL,
    kind          text             NOT NULL,
    bid           double precision,
    ask           double precision,
    bid_size      double precision,
    ask_size      double precision,
    last          double precision,
    volume        double precision,
    side          text,
    exchange      text             NOT NULL,
    provider      text             NOT NULL,
    feed          text             NOT NULL,
    channel       text             NOT NULL,
    sequence      bigint,
    trade_id      text,
    conditions    text,
    ts_ns         bigint           NOT NULL,
    received_ns   bigint           NOT NULL,
    latency_ns    bigint,
    raw_partition integer          NOT NULL,
    raw_offset    bigint           NOT NULL,
    raw_index     integer          NOT NULL
) {by_time};
CREATE INDEX ticks_symbol_ts ON ticks (symbol, ts);
CREATE INDEX ticks_ts ON ticks USING brin (ts);

CREATE TABLE bar_revisions (
    id            text             NOT NULL,
    symbol        text             NOT NULL,
    ts            timestamptz      NOT NULL,
    "interval"    text             NOT NULL,
    open          double precision NOT NULL,
    high          double precision NOT NULL,
    low           double precision NOT NULL,
    close         double precision NOT NULL,
    volume        double precision NOT NULL,
    vwap          double precision,
    trades        bigint,
    final         boolean          NOT NULL,
    exchange      text             NOT NULL,
    provider      text             NOT NULL,
    feed          text             NOT NULL,
    channel       text             NOT NULL,
    ts_ns         bigint           NOT NULL,
    received_ns   bigint           NOT NULL,
    latency_ns    bigint,
    raw_partition integer          NOT NULL,
    raw_offset    bigint           NOT NULL,
    raw_index     integer          NOT NULL
) {by_time};
CREATE INDEX bar_revisions_symbol_ts ON bar_revisions (symbol, ts);

-- The last revision of each bar: a later one replaces it.
CREATE TABLE bars (
    LIKE bar_revisions,
    PRIMARY KEY (symbol, ts, provider, feed, "interval")
) {by_time};

CREATE TABLE notices (
    id            text             NOT NULL,
    provider      text             NOT NULL,
    feed          text             NOT NULL,
    connection    text             NOT NULL,
    kind          text             NOT NULL,
    symbol        text,
    ts            timestamptz      NOT NULL,
    detail        text             NOT NULL,
    ts_ns         bigint           NOT NULL,
    received_ns   bigint           NOT NULL,
    raw_partition integer          NOT NULL,
    raw_offset    bigint           NOT NULL,
    raw_index     integer          NOT NULL
) {by_time};
CREATE INDEX notices_ts ON notices (ts);

CREATE TABLE rejected (
    id            text             NOT NULL,
    provider      text             NOT NULL,
    feed          text             NOT NULL,
    connection    text             NOT NULL,
    reason        text             NOT NULL,
    payload       bytea            NOT NULL,
    ts            timestamptz      NOT NULL,
    received_ns   bigint           NOT NULL,
    raw_partition integer          NOT NULL,
    raw_offset    bigint           NOT NULL,
    raw_index     integer          NOT NULL
) {by_time};
CREATE INDEX rejected_ts ON rejected (ts);

-- Where to read each partition of a topic next.
CREATE TABLE tapeline_positions (
    topic         text             NOT NULL,
    partition     integer          NOT NULL,
    position      bigint           NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- What became of what was read: read = rows + duplicates + refused.
CREATE TABLE tapeline_counts (
    topic         text             PRIMARY KEY,
    read          bigint           NOT NULL,
    rows          bigint           NOT NULL,
    duplicates    bigint           NOT NULL,
    refused       bigint           NOT NULL
);

-- Records that PostgreSQL cannot hold, with its reason.
CREATE TABLE tapeline_refused (
    topic         text             NOT NULL,
    id            text             NOT NULL,
    reason        text             NOT NULL,
    record        text             NOT NULL,
    at            timestamptz      NOT NULL DEFAULT now()
);
