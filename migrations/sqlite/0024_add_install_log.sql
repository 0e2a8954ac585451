-- What happened in an install, in words: at most 200 lines of each.
CREATE TABLE install_log (
    install BLOB NOT NULL REFERENCES install (id) ON DELETE CASCADE,
    line    INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    text    TEXT NOT NULL,
    PRIMARY KEY (install, line)
) WITHOUT ROWID;
