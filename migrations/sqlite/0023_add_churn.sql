-- How the fleet changed on each day (UTC): the newest 90 are kept.
CREATE TABLE churn (
    -- Since 1970.
    day    INTEGER NOT NULL CONSTRAINT churn_day PRIMARY KEY,
    -- Times that a client came, or went: was switched on or off, or lost its network.
    came   INTEGER NOT NULL,
    went   INTEGER NOT NULL,
    -- Clients that were approved, and that left, were revoked or forgotten.
    joined INTEGER NOT NULL,
    gone   INTEGER NOT NULL
) WITHOUT ROWID;
