-- Programs that are told of events. The secret signs what they are told, so it is kept as it is.
CREATE TABLE webhook (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    url       TEXT NOT NULL,
    secret    BLOB NOT NULL,
    -- Kinds of events, with a space between them; empty: all.
    events    TEXT NOT NULL,
    created   INTEGER NOT NULL,
    -- The last event that was delivered, or was not for it.
    delivered INTEGER NOT NULL,
    -- Why the next one was not delivered yet.
    problem   TEXT
);
