CREATE TABLE agent (
    id          BLOB PRIMARY KEY NOT NULL,
    name        TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'revoked', 'left')),
    -- Of its one certificate.
    serial      BLOB NOT NULL UNIQUE,
    lend        INTEGER NOT NULL,
    used        INTEGER NOT NULL DEFAULT 0,
    peer_port   INTEGER NOT NULL,
    -- IP:PORT of its peer service, once it was seen.
    address     TEXT,
    joined      INTEGER NOT NULL,
    seen        INTEGER,
    -- The assignment the server wants, and the last one the agent reported as fulfilled.
    assignment  INTEGER NOT NULL DEFAULT 0,
    fulfilled   INTEGER NOT NULL DEFAULT 0,
    -- The server asks for a full list of holdings.
    want_holdings INTEGER NOT NULL DEFAULT 1
);

-- What an agent is to hold.
CREATE TABLE assignment (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL REFERENCES segment (id) ON DELETE CASCADE,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
CREATE INDEX assignment_segment ON assignment (segment);

-- What an agent says it holds.
CREATE TABLE holding (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL REFERENCES segment (id) ON DELETE CASCADE,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
CREATE INDEX holding_segment ON holding (segment);

-- Segments that an agent was reported to serve damaged, until it looked at them again.
CREATE TABLE recheck (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL REFERENCES segment (id) ON DELETE CASCADE,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
