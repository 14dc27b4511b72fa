-- Where the life of each partition of the normalized topics began, as the ledger last saw it.

CREATE TABLE tapeline_ledger_topics (
    topic     text    NOT NULL,
    partition integer NOT NULL,
    begun     bigint  NOT NULL,
    PRIMARY KEY (topic, partition)
);
