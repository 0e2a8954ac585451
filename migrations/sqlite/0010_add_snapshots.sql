-- A snapshot of a volume. What it holds is in segments and in a root of its own, under the volume's content key.
CREATE TABLE snapshot (
    id          BLOB PRIMARY KEY NOT NULL,
    volume      BLOB NOT NULL REFERENCES volume (id),
    name        TEXT NOT NULL,
    size        INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing')),
    created     INTEGER NOT NULL,
    UNIQUE (volume, name)
);
-- The snapshot it began as, whose segments it shares.
ALTER TABLE volume ADD COLUMN snapshot BLOB REFERENCES snapshot (id);
CREATE INDEX volume_snapshot ON volume (snapshot);
