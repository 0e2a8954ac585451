CREATE TABLE image (
    id      BLOB PRIMARY KEY NOT NULL,
    name    TEXT NOT NULL UNIQUE,
    created INTEGER NOT NULL,
    -- What the planner promised for it, in words, when it was last placed.
    promise TEXT
);

CREATE TABLE version (
    id          BLOB PRIMARY KEY NOT NULL,
    image       BLOB NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    number      INTEGER NOT NULL CHECK (number >= 1),
    state       TEXT NOT NULL CHECK (state IN ('registering', 'ready', 'removing')),
    format      TEXT NOT NULL,
    -- Plain bytes of the disk image.
    size        INTEGER NOT NULL DEFAULT 0,
    -- Sealed bytes of all segments this version uses.
    stored      INTEGER NOT NULL DEFAULT 0,
    -- Sealed bytes that came with this version.
    added       INTEGER NOT NULL DEFAULT 0,
    -- SHA-256 that two versions share when their content is the same.
    content     BLOB,
    -- The content key in age format, for the server and the recovery key.
    content_key BLOB,
    created     INTEGER NOT NULL,
    UNIQUE (image, number)
);
-- Two registrations of one image at once are refused.
CREATE UNIQUE INDEX version_registering_once ON version (image) WHERE state = 'registering';

CREATE TABLE segment (
    id    BLOB PRIMARY KEY NOT NULL,
    image BLOB NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    bytes INTEGER NOT NULL,
    class TEXT NOT NULL CHECK (class IN ('data', 'parity', 'document'))
) WITHOUT ROWID;
CREATE INDEX segment_image ON segment (image);

-- The data segments of a version in the order of its manifest.
CREATE TABLE version_segment (
    version  BLOB NOT NULL REFERENCES version (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    segment  BLOB NOT NULL REFERENCES segment (id),
    PRIMARY KEY (version, position)
) WITHOUT ROWID;
CREATE INDEX version_segment_segment ON version_segment (segment);

-- The newest stripe map of each image, signed.
CREATE TABLE stripe_map (
    image  BLOB PRIMARY KEY NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    signed BLOB NOT NULL
);
