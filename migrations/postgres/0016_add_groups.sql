-- What an image's name stands for: the version of its last step, the newest without any. A rollback takes the last step back.
CREATE TABLE promotion (
    image   BYTEA NOT NULL REFERENCES image (id) ON DELETE CASCADE,
    step    BIGINT NOT NULL,
    version BYTEA NOT NULL REFERENCES version (id) ON DELETE CASCADE,
    created BIGINT NOT NULL,
    PRIMARY KEY (image, step)
);
CREATE INDEX promotion_version ON promotion (version);

-- Groups of machines. A machine may be in several.
CREATE TABLE machine_group (
    name    TEXT CONSTRAINT machine_group_name PRIMARY KEY,
    -- What its machines are to run: of the groups of a machine, one at most says so.
    image   BYTEA REFERENCES image (id) ON DELETE SET NULL,
    created BIGINT NOT NULL
);
CREATE TABLE group_member (
    machine  BYTEA NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    in_group TEXT NOT NULL REFERENCES machine_group (name) ON DELETE CASCADE,
    PRIMARY KEY (machine, in_group)
);
CREATE INDEX group_member_group ON group_member (in_group);
