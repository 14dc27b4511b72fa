-- The runs of jobs, which jobs are paused, which schedulers are alive, and the alerts.

CREATE TABLE tapeline_runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job         text   NOT NULL,
    thing       text   NOT NULL,
    due_ns      bigint,
    arguments   text   NOT NULL,
    origin      text   NOT NULL,
    origin_id   text   NOT NULL,
    origin_url  text   NOT NULL,
    attempt     bigint NOT NULL,
    process     text   NOT NULL,
    pid         bigint NOT NULL,
    space       text   NOT NULL,
    started_ns  bigint NOT NULL,
    renewed_ns  bigint NOT NULL,
    ended_ns    bigint,
    state       text   NOT NULL,
    exit_status bigint,
    retry_ns    bigint,
    progress    text   NOT NULL,
    result      text   NOT NULL,
    error       text   NOT NULL
);

CREATE UNIQUE INDEX tapeline_runs_one_at_a_time ON tapeline_runs (job, thing) WHERE state = 'running';

CREATE UNIQUE INDEX tapeline_runs_one_attempt ON tapeline_runs (job, thing, due_ns, attempt) WHERE due_ns IS NOT NULL;

CREATE INDEX tapeline_runs_by_job ON tapeline_runs (job, started_ns);

CREATE TABLE tapeline_jobs (
    job      text   NOT NULL PRIMARY KEY,
    since_ns bigint NOT NULL,
    paused   bigint NOT NULL
);

CREATE TABLE tapeline_schedulers (
    scheduler text   NOT NULL PRIMARY KEY,
    at_ns     bigint NOT NULL
);

CREATE TABLE tapeline_alerts (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text   NOT NULL,
    raised_ns   bigint NOT NULL,
    seen_ns     bigint NOT NULL,
    resolved_ns bigint,
    text        text   NOT NULL,
    runbook     text   NOT NULL,
    receivers   text   NOT NULL,
    sent        text   NOT NULL
);

CREATE UNIQUE INDEX tapeline_alerts_one ON tapeline_alerts (name) WHERE resolved_ns IS NULL;
