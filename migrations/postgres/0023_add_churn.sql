-- How the fleet changed on each day (UTC): the newest 90 are kept.
CREATE TABLE churn (
    -- Since 1970.
    day    BIGINT NOT NULL CONSTRAINT churn_day PRIMARY KEY,
    -- Times that a client came, or went: was switched on or off, or lost its network.
    came   BIGINT NOT NULL,
    went   BIGINT NOT NULL,
    -- Clients that were approved, and that left, were revoked or forgotten.
    joined BIGINT NOT NULL,
    gone   BIGINT NOT NULL
);
