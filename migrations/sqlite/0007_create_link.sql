-- How an agent's machine was last reached on a network of this server: what wakes it.
CREATE TABLE link (
    agent     BLOB PRIMARY KEY NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    mac       TEXT NOT NULL,
    interface TEXT NOT NULL
) WITHOUT ROWID;
