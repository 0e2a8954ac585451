-- The last root that clients know of a volume whose journal they mirror: what it does not cover is kept for them.
CREATE TABLE known_root (
    volume BLOB PRIMARY KEY NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    root   BLOB NOT NULL
);

-- The clients that have, or may have, the end of a volume's journal.
CREATE TABLE tail_holder (
    volume BLOB NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    agent  BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    PRIMARY KEY (volume, agent)
) WITHOUT ROWID;

-- The server on whose disk a volume's journal is: a random number that its data folder has.
CREATE TABLE journal_home (
    volume BLOB PRIMARY KEY NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    server BLOB NOT NULL
);
