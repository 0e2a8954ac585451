-- A machine that was seen at boot or asked to be installed. What it says of itself selects it, nothing more.
CREATE TABLE machine (
    id          BLOB PRIMARY KEY NOT NULL,
    name        TEXT UNIQUE,
    uuid        TEXT,
    serial      TEXT,
    vendor      TEXT,
    product     TEXT,
    firmware    TEXT,
    secure_boot INTEGER NOT NULL DEFAULT 0,
    -- JSON list of wire::DiskLine.
    disks       TEXT NOT NULL DEFAULT '[]',
    created     INTEGER NOT NULL,
    seen        INTEGER NOT NULL,
    -- The version it was last installed with.
    installed   BLOB REFERENCES version (id) ON DELETE SET NULL
);
CREATE INDEX machine_uuid ON machine (uuid);

CREATE TABLE machine_mac (
    mac     TEXT PRIMARY KEY NOT NULL,
    machine BLOB NOT NULL REFERENCES machine (id) ON DELETE CASCADE
);
CREATE INDEX machine_mac_machine ON machine_mac (machine);

-- What an administrator wants: an image version on some machines.
CREATE TABLE deployment (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    version     BLOB NOT NULL REFERENCES version (id),
    -- JSON of wire::DiskSelector.
    disk        TEXT NOT NULL,
    after       TEXT NOT NULL,
    preapproved INTEGER NOT NULL DEFAULT 0,
    created     INTEGER NOT NULL
);

-- One machine's share of a deployment.
CREATE TABLE install (
    id         BLOB PRIMARY KEY NOT NULL,
    deployment INTEGER NOT NULL REFERENCES deployment (id) ON DELETE CASCADE,
    machine    BLOB NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    state      TEXT NOT NULL
        CHECK (state IN ('scheduled', 'ticketed', 'running', 'done', 'failed', 'cancelled')),
    -- JSON of wire::InstallProgress, the last one that was told.
    progress   TEXT,
    error      TEXT,
    created    INTEGER NOT NULL,
    started    INTEGER,
    ended      INTEGER
);
-- A machine has one thing to do at a time.
CREATE UNIQUE INDEX install_active_once ON install (machine)
    WHERE state IN ('scheduled', 'ticketed', 'running');
CREATE INDEX install_deployment ON install (deployment);

-- One run of an installer, from its hello on. Only the hash of its bearer is kept.
CREATE TABLE target (
    hash       BLOB PRIMARY KEY NOT NULL,
    machine    BLOB NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    -- SubjectPublicKeyInfo, DER: what the ticket's certificate is made for.
    public_key BLOB NOT NULL UNIQUE,
    code       TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('waiting', 'approved', 'refused', 'ended')),
    -- The image asked for by name.
    image      TEXT,
    address    TEXT NOT NULL,
    install    BLOB REFERENCES install (id) ON DELETE SET NULL,
    created    INTEGER NOT NULL,
    seen       INTEGER NOT NULL
);
CREATE INDEX target_machine ON target (machine);
CREATE INDEX target_code ON target (code);
