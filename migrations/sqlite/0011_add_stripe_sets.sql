-- What forms stripes with each other: the segments of an image over all its versions, or those of a volume. It has the id
-- of the one or the other.
CREATE TABLE stripe_set (
    id     BLOB PRIMARY KEY NOT NULL,
    image  BLOB UNIQUE REFERENCES image (id) ON DELETE CASCADE,
    volume BLOB UNIQUE REFERENCES volume (id) ON DELETE CASCADE,
    CHECK ((image IS NULL) <> (volume IS NULL))
) WITHOUT ROWID;
INSERT INTO stripe_set (id, image) SELECT id, id FROM image;
INSERT INTO stripe_set (id, volume) SELECT id, id FROM volume;

-- Who holds a part of it, and what the planner promised for it, in words, when it was last placed.
ALTER TABLE volume ADD COLUMN layout TEXT NOT NULL DEFAULT 'server'
    CHECK (layout IN ('server', 'mirror', 'swarm', 'client-parity', 'server-parity'));
ALTER TABLE volume ADD COLUMN promise TEXT;

-- Tables that name segments are made anew, because segments belong to sets now.
CREATE TABLE new_segment (
    id         BLOB PRIMARY KEY NOT NULL,
    stripe_set BLOB NOT NULL REFERENCES stripe_set (id) ON DELETE CASCADE,
    bytes      INTEGER NOT NULL,
    class      TEXT NOT NULL CHECK (class IN ('data', 'parity'))
) WITHOUT ROWID;
INSERT INTO new_segment (id, stripe_set, bytes, class) SELECT id, image, bytes, class FROM segment;

CREATE TABLE new_version_segment (
    version  BLOB NOT NULL REFERENCES version (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    segment  BLOB NOT NULL REFERENCES new_segment (id),
    PRIMARY KEY (version, position)
) WITHOUT ROWID;
INSERT INTO new_version_segment SELECT version, position, segment FROM version_segment;

CREATE TABLE new_assignment (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL REFERENCES new_segment (id) ON DELETE CASCADE,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
INSERT INTO new_assignment SELECT agent, segment FROM assignment;

CREATE TABLE new_holding (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL REFERENCES new_segment (id) ON DELETE CASCADE,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
INSERT INTO new_holding SELECT agent, segment FROM holding;

CREATE TABLE new_recheck (
    agent   BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    segment BLOB NOT NULL REFERENCES new_segment (id) ON DELETE CASCADE,
    PRIMARY KEY (agent, segment)
) WITHOUT ROWID;
INSERT INTO new_recheck SELECT agent, segment FROM recheck;

CREATE TABLE new_stripe_map (
    stripe_set BLOB PRIMARY KEY NOT NULL REFERENCES stripe_set (id) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    signed     BLOB NOT NULL,
    -- Of a volume: the root whose segments it places.
    root       BLOB
);
INSERT INTO new_stripe_map (stripe_set, number, signed) SELECT image, number, signed FROM stripe_map;

DROP TABLE recheck;
DROP TABLE holding;
DROP TABLE assignment;
DROP TABLE version_segment;
DROP TABLE segment;
DROP TABLE stripe_map;

ALTER TABLE new_segment RENAME TO segment;
ALTER TABLE new_version_segment RENAME TO version_segment;
ALTER TABLE new_assignment RENAME TO assignment;
ALTER TABLE new_holding RENAME TO holding;
ALTER TABLE new_recheck RENAME TO recheck;
ALTER TABLE new_stripe_map RENAME TO stripe_map;

CREATE INDEX segment_stripe_set ON segment (stripe_set);
CREATE INDEX version_segment_segment ON version_segment (segment);
CREATE INDEX assignment_segment ON assignment (segment);
CREATE INDEX holding_segment ON holding (segment);

-- Jobs name sets, too.
UPDATE job SET payload = replace(payload, '"image"', '"set"') WHERE kind = 'scatter';
