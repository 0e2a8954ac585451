-- Installs that overwrite what clients hold.

-- The Ethernet address of the card by which an agent reaches the server: which machine it runs on.
ALTER TABLE agent ADD COLUMN mac TEXT;
CREATE INDEX agent_mac ON agent (mac);
-- When an install began that overwrites its storage: nothing of that counts until the agent is heard of again.
ALTER TABLE agent ADD COLUMN overwritten INTEGER;

-- Machines of this deployment do not wait until other clients hold what theirs take with them.
ALTER TABLE deployment ADD COLUMN at_once INTEGER NOT NULL DEFAULT 0;
-- Bytes of the storage partition that disks without one get.
ALTER TABLE deployment ADD COLUMN storage INTEGER;
