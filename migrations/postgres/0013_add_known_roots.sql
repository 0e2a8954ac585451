-- The last root that clients know of a volume whose journal they mirror: what it does not cover is kept for them.
CREATE TABLE known_root (
    volume BYTEA PRIMARY KEY REFERENCES volume (id) ON DELETE CASCADE,
    root   BYTEA NOT NULL
);
