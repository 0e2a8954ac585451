-- How often each agent was looked for in each hour of the week (0: Monday 00:00 UTC), and was there.
CREATE TABLE availability (
    agent BLOB NOT NULL REFERENCES agent (id) ON DELETE CASCADE,
    hour  INTEGER NOT NULL CHECK (hour BETWEEN 0 AND 167),
    looks INTEGER NOT NULL,
    there INTEGER NOT NULL,
    PRIMARY KEY (agent, hour)
) WITHOUT ROWID;
