-- What the fleet needs to go on without this server, cut into segments that clients hold whole. The last one is the
-- newest; the one that the directory names is published.
CREATE TABLE bundle (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    published INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE bundle_segment (
    bundle   INTEGER NOT NULL REFERENCES bundle (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    id       BLOB NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (bundle, position)
) WITHOUT ROWID;
CREATE INDEX bundle_segment_id ON bundle_segment (id);

-- What an agent says it holds of them.
CREATE TABLE bundle_holding (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
