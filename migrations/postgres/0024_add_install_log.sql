-- What happened in an install, in words: at most 200 lines of each.
CREATE TABLE install_log (
    install BYTEA NOT NULL REFERENCES install (id) ON DELETE CASCADE,
    line    BIGINT NOT NULL,
    at      BIGINT NOT NULL,
    text    TEXT NOT NULL,
    PRIMARY KEY (install, line)
);
