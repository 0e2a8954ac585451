-- Answers to requests that came with a key: what is asked for twice is done once.
CREATE TABLE once (
    -- Who asked.
    actor   TEXT NOT NULL,
    -- The key.
    word    TEXT NOT NULL,
    -- SHA-256 of the request.
    request BLOB NOT NULL,
    -- None while it is under way.
    status  INTEGER,
    kind    TEXT,
    body    BLOB,
    created INTEGER NOT NULL,
    PRIMARY KEY (actor, word)
) WITHOUT ROWID;
CREATE INDEX once_created ON once (created);
