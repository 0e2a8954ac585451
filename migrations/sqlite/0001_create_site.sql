-- Identifiers and hashes are BLOBs in their binary form, times are milliseconds since 1970 UTC,
-- sizes are bytes. Names of constraints are mapped to domain errors in server/src/db/.

CREATE TABLE setting (
    key   TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
);

CREATE TABLE account (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    -- PHC string, argon2id.
    password TEXT NOT NULL,
    created  INTEGER NOT NULL
);

-- A dashboard session; only the hash of its cookie is kept.
CREATE TABLE session (
    hash    BLOB PRIMARY KEY NOT NULL,
    account INTEGER NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL
);

-- Join tokens (single use) and API tokens; only the hash of the secret is kept.
CREATE TABLE token (
    id           INTEGER PRIMARY KEY,
    kind         TEXT NOT NULL CHECK (kind IN ('join', 'api')),
    hash         BLOB NOT NULL UNIQUE,
    note         TEXT NOT NULL,
    auto_approve INTEGER NOT NULL DEFAULT 0,
    created      INTEGER NOT NULL,
    expires      INTEGER,
    used         INTEGER,
    revoked      INTEGER
);

-- What happened, for people. Newest 10,000 are kept.
CREATE TABLE event (
    id      INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    payload TEXT NOT NULL
);

-- Work that survives kill -9. `unique_key` keeps the same work from being queued twice.
CREATE TABLE job (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT NOT NULL,
    payload    TEXT NOT NULL,
    unique_key TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    attempts   INTEGER NOT NULL DEFAULT 0,
    error      TEXT,
    progress   TEXT,
    -- Not before this time.
    due        INTEGER NOT NULL,
    created    INTEGER NOT NULL,
    updated    INTEGER NOT NULL
);
CREATE UNIQUE INDEX job_queued_once ON job (unique_key) WHERE state = 'queued';
CREATE INDEX job_due ON job (state, due);
