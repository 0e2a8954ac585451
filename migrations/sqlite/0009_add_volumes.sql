-- A volume. What it holds is in its journal, its segments and its root; the size here is what it was given last.
CREATE TABLE volume (
    id          BLOB PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL UNIQUE,
    size        INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
    -- The content key in age format, for the server and the recovery key.
    content_key BLOB NOT NULL,
    -- The version it began as, whose segments it shares.
    origin      BLOB REFERENCES version (id),
    created     INTEGER NOT NULL
);
CREATE INDEX volume_origin ON volume (origin);
